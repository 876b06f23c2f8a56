// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// readAgentSecret reads the certificate of an agent that runs as Pods. It returns nil if there is
// none.
func readAgentSecret(ctx context.Context, c *clusterClient) (*registration.AgentPair, error) {
	secret, err := c.kube.CoreV1().Secrets(registration.AgentNamespace).Get(ctx, registration.AgentName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, c.explain(err)
	}
	pair := registration.AgentPairOf(secret)
	return &pair, nil
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") }

// Files of an agent that runs as a process.
const (
	fileCert  = "tls.crt"
	fileKey   = "tls.key"
	fileCA    = "ca.crt"
	fileFlags = "agent.flags"
	fileUnit  = "konnectivity-agent.service"
)

const unit = `# Install: copy to /etc/systemd/system, then systemctl enable --now konnectivity-agent. proxy-agent is that of
# sigs.k8s.io/apiserver-network-proxy (image registry.k8s.io/kas-network-proxy/proxy-agent).
[Unit]
Description=Konnectivity agent of cluster %s
Wants=network-online.target
After=network-online.target

[Service]
ExecStart=/usr/local/bin/proxy-agent \
  %s
Restart=always
RestartSec=2
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes

[Install]
WantedBy=multi-user.target
`

func readAgentDir(dir string) (*registration.AgentPair, error) {
	var pair registration.AgentPair
	for name, into := range map[string]*[]byte{fileCert: &pair.Certificate, fileKey: &pair.Key, fileCA: &pair.CA} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil // missing or incomplete: it is written again
		}
		if err != nil {
			return nil, fmt.Errorf("--out-dir: %w", err)
		}
		*into = data
	}
	return &pair, nil
}

// writeAgentDir writes the files that differ. It writes the certificate last, so that a later run
// completes an incomplete folder.
func writeAgentDir(dir, name, address string, pair registration.AgentPair) (written int, err error) {
	args, err := registration.AgentArgs(address, dir)
	if err != nil {
		return 0, err
	}
	return writeFiles(dir, name, args, pair)
}

func writeFiles(dir, name string, args []string, pair registration.AgentPair) (written int, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, fmt.Errorf("--out-dir: %w", err)
	}
	for _, file := range []struct {
		name    string
		mode    fs.FileMode
		content []byte
	}{
		{fileCA, 0o644, pair.CA},
		{fileFlags, 0o644, []byte(strings.Join(args, "\n") + "\n")},
		{fileUnit, 0o644, fmt.Appendf(nil, unit, name, strings.Join(args, " \\\n  "))},
		{fileKey, 0o600, pair.Key},
		{fileCert, 0o644, pair.Certificate},
	} {
		path := filepath.Join(dir, file.name)
		if current, err := os.ReadFile(path); err == nil && bytes.Equal(current, file.content) {
			continue
		}
		if err := putFile(path, file.content, file.mode); err != nil {
			return written, fmt.Errorf("--out-dir: %w", err)
		}
		written++
	}
	return written, nil
}
