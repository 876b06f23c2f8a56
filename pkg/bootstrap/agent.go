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
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// applyAgent gives the cluster its agent, or writes the files of one.
func (r *registerRun) applyAgent(ctx context.Context) error {
	if r.o.outDir != "" {
		return r.writeAgent(ctx)
	}
	current, err := readAgentSecret(ctx, r.cluster)
	if err != nil {
		return err
	}
	pair, text, err := r.pair(current)
	if err != nil {
		return err
	}
	if err := r.step(ctx, "certificate", "%s", text); err != nil {
		return err
	}
	all, err := registration.Agent(r.tunnel.address, pair)
	if err != nil {
		return err
	}
	for _, o := range all {
		if o.GetNamespace() == "" {
			registration.SetOwner(o, r.namespaceUID)
		}
	}
	if text, err = r.applyAll(ctx, r.cluster, all); err != nil {
		return err
	}
	return r.step(ctx, "agent", "Deployment %s/%s and what it needs: %s", registration.AgentNamespace, registration.AgentName, text)
}

// removeAgent removes the agent that an earlier registration has put into the cluster: the one that is wanted now is no Pod, or there is none.
func (r *registerRun) removeAgent(ctx context.Context) error {
	all, err := agentObjects()
	if err != nil {
		return err
	}
	var removed, unseen []string
	for _, o := range all {
		found, err := registration.Remove(ctx, r.cluster.dyn, o, r.o.dryRun)
		name := o.GetKind() + " " + o.GetName()
		switch {
		case err != nil && !found && apierrors.IsForbidden(err): // who registers without an agent needs no right to look at one
			unseen = append(unseen, name)
		case err != nil:
			return fmt.Errorf("the agent of before, in the cluster's namespace %s, is of no use any more, and could not be removed: %s: %w", registration.AgentNamespace, name, err)
		case found:
			removed = append(removed, name)
		}
	}
	verb := "removed"
	if r.o.dryRun {
		verb = "would be removed"
	}
	switch {
	case len(removed) > 0:
		return r.step(ctx, "before", "the agent of before is of no use any more; %s: %s", verb, strings.Join(removed, ", "))
	case len(unseen) > 0:
		r.say("  %-12s whether an agent of before is there could not be looked at", "before")
	}
	return nil
}

// agentObjects are what an agent in Pods consists of, by name.
func agentObjects() ([]*unstructured.Unstructured, error) {
	all, err := registration.AgentBase(registration.IsAgent)
	if err != nil {
		return nil, err
	}
	for _, kind := range []string{"Secret", "ConfigMap"} {
		o := &unstructured.Unstructured{}
		o.SetAPIVersion("v1")
		o.SetKind(kind)
		o.SetNamespace(registration.AgentNamespace)
		o.SetName(registration.AgentName)
		all = append(all, o)
	}
	return all, nil
}

func readAgentSecret(ctx context.Context, s *clusterClient) (*registration.AgentPair, error) {
	secret, err := s.kube.CoreV1().Secrets(registration.AgentNamespace).Get(ctx, registration.AgentName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, s.explain(err)
	}
	pair := registration.AgentPairOf(secret)
	return &pair, nil
}

// pair keeps a certificate that is still good, or issues one.
func (r *registerRun) pair(current *registration.AgentPair) (registration.AgentPair, string, error) {
	if current != nil {
		cert, err := current.Verify(r.tunnel.bundle, r.name, r.Now())
		if err == nil && r.Now().Before(pki.RenewAt(cert)) {
			current.CA = r.tunnel.bundle
			return *current, fmt.Sprintf("unchanged, until %s", day(cert.NotAfter)), nil
		}
	}
	if r.o.dryRun {
		return registration.AgentPair{Certificate: []byte("dry-run"), Key: []byte("dry-run"), CA: r.tunnel.bundle}, "would be issued", nil
	}
	return r.issue()
}

func (r *registerRun) issue() (registration.AgentPair, string, error) {
	pair, issued, err := registration.IssueAgentPair(r.authority, r.name, r.o.agentLifetime, r.Now())
	if err != nil {
		return registration.AgentPair{}, "", err
	}
	return pair, fmt.Sprintf("issued for %q, until %s", r.name, day(issued.NotAfter)), nil
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

// writeAgent writes the files of an agent that runs as a process.
func (r *registerRun) writeAgent(ctx context.Context) error {
	dir, err := filepath.Abs(r.o.outDir)
	if err != nil {
		return err
	}
	current, err := readAgentDir(dir)
	if err != nil {
		return err
	}
	pair, text, err := r.pair(current)
	if err != nil {
		return err
	}
	if err := r.step(ctx, "certificate", "%s", text); err != nil {
		return err
	}
	if r.o.dryRun {
		return r.step(ctx, "agent", "files would be written to %s", dir)
	}
	written, err := writeAgentDir(dir, r.name, r.tunnel.address, pair)
	if err != nil {
		return err
	}
	if written == 0 {
		return r.step(ctx, "agent", "files in %s: unchanged", dir)
	}
	return r.step(ctx, "agent", "%d files written to %s: start the agent, or start it again, if it runs", written, dir)
}

func readAgentDir(dir string) (*registration.AgentPair, error) {
	var pair registration.AgentPair
	for name, into := range map[string]*[]byte{fileCert: &pair.Certificate, fileKey: &pair.Key, fileCA: &pair.CA} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil // not there, or not complete: made anew
		}
		if err != nil {
			return nil, fmt.Errorf("--out-dir: %w", err)
		}
		*into = data
	}
	return &pair, nil
}

// writeAgentDir writes what differs, the certificate last: a folder that is incomplete is written anew.
func writeAgentDir(dir, name, address string, pair registration.AgentPair) (written int, err error) {
	args, err := registration.AgentArgs(address, dir)
	if err != nil {
		return 0, err
	}
	return writeAgentFiles(dir, name, args, pair)
}

func writeAgentFiles(dir, name string, args []string, pair registration.AgentPair) (written int, err error) {
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
