// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// sessionKubeconfigs are the kubeconfigs of a command that runs other programs. They hold the
// caller's credential for the hub, and exist only while the command runs.
type sessionKubeconfigs struct {
	target *gatewayTarget
	dir    string
}

// newSessionKubeconfigs creates a folder that only the caller may open. The caller calls remove.
func newSessionKubeconfigs(target *gatewayTarget) (*sessionKubeconfigs, error) {
	dir, err := os.MkdirTemp("", "cluster-gateway-") // mode 0700
	if err != nil {
		return nil, err
	}
	return &sessionKubeconfigs{target: target, dir: dir}, nil
}

// write writes the kubeconfig of a cluster, and returns its path.
func (s *sessionKubeconfigs) write(name string) (string, error) {
	entries, err := s.target.entries(name, name)
	if err != nil {
		return "", err
	}
	config := clientcmdapi.NewConfig()
	if _, err := entries.addTo(config, false); err != nil {
		return "", err
	}
	config.CurrentContext = name
	text, err := clientcmd.Write(*config)
	if err != nil {
		return "", err
	}
	path := filepath.Join(s.dir, name)
	return path, os.WriteFile(path, text, 0o600)
}

func (s *sessionKubeconfigs) remove() error { return os.RemoveAll(s.dir) }

// programEnvironment returns the environment of a program that is to use a kubeconfig.
func programEnvironment(kubeconfig string) []string {
	// Helm prefers these variables to its kubeconfig, and would use another cluster.
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "HELM_KUBE") || strings.HasPrefix(v, "KUBECONFIG=")
	})
	return append(env, "KUBECONFIG="+kubeconfig)
}
