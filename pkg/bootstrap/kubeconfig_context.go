// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"fmt"
	"path/filepath"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// kubeconfigContext is what one context of a kubeconfig says about reaching an API server.
type kubeconfigContext struct {
	cluster *clientcmdapi.Cluster
	user    *clientcmdapi.AuthInfo
}

// contextOf returns everything that the current context of a kubeconfig says about reaching its API
// server: the cluster and the user with all their fields. It is the one place where a command takes
// them from a kubeconfig. The result is a copy, and its references to files are absolute: in a
// kubeconfig, they are relative to its folder.
func contextOf(config *clientcmdapi.Config) (*kubeconfigContext, error) {
	current := config.Contexts[config.CurrentContext]
	if current == nil {
		return nil, fmt.Errorf("the kubeconfig has no context %q", config.CurrentContext)
	}
	c := &kubeconfigContext{cluster: config.Clusters[current.Cluster].DeepCopy(), user: config.AuthInfos[current.AuthInfo].DeepCopy()}
	if c.cluster == nil {
		return nil, fmt.Errorf("the kubeconfig has no cluster %q, which its context %q names", current.Cluster, config.CurrentContext)
	}
	if c.user == nil {
		c.user = clientcmdapi.NewAuthInfo()
	}
	if err := resolveFiles(c.cluster.LocationOfOrigin, clientcmd.GetClusterFileReferences(c.cluster)); err != nil {
		return nil, err
	}
	if err := resolveFiles(c.user.LocationOfOrigin, clientcmd.GetAuthInfoFileReferences(c.user)); err != nil {
		return nil, err
	}
	c.cluster.LocationOfOrigin, c.user.LocationOfOrigin = "", ""
	return c, nil
}

// resolveFiles makes references to files absolute. origin is the kubeconfig that they are written
// in.
func resolveFiles(origin string, references []*string) error {
	if origin == "" {
		return nil
	}
	dir, err := filepath.Abs(filepath.Dir(origin))
	if err != nil {
		return err
	}
	return clientcmd.ResolvePaths(references, dir)
}

// embedFiles replaces references to certificates and keys by their content, so that the kubeconfig
// works on its own. A token file and the command of an exec plugin stay references: others renew
// them.
func (c *kubeconfigContext) embedFiles() error {
	config := clientcmdapi.NewConfig()
	config.Clusters[""], config.AuthInfos[""] = c.cluster, c.user
	return clientcmdapi.FlattenConfig(config)
}
