// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
)

// auditArgs make the API server record the requests of [ClusterOptions.AuditUsers], each before its
// response is complete.
func (c *Cluster) auditArgs() ([]string, error) {
	if len(c.opts.AuditUsers) == 0 {
		return nil, nil
	}
	policy := &auditv1.Policy{
		TypeMeta:   metav1.TypeMeta{APIVersion: auditv1.SchemeGroupVersion.String(), Kind: "Policy"},
		OmitStages: []auditv1.Stage{auditv1.StageRequestReceived},
		// Users without a rule are not recorded.
		Rules: []auditv1.PolicyRule{{Level: auditv1.LevelMetadata, Users: c.opts.AuditUsers}},
	}
	content, err := json.Marshal(policy)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(c.dir, "audit-policy.json")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return nil, err
	}
	return []string{"--audit-policy-file=" + path, "--audit-log-path=" + c.auditLog(), "--audit-log-mode=blocking"}, nil
}

func (c *Cluster) auditLog() string { return filepath.Join(c.LogDir(), "audit.log") }

// AuditEvents returns the requests of [ClusterOptions.AuditUsers] that the API server has recorded
// so far, without bodies. A long-running request, such as a watch, is included from its start.
func (c *Cluster) AuditEvents() ([]auditv1.Event, error) {
	content, err := os.ReadFile(c.auditLog())
	if errors.Is(err, os.ErrNotExist) && len(c.opts.AuditUsers) > 0 {
		return nil, nil // nothing yet
	}
	if err != nil {
		return nil, err
	}
	var events []auditv1.Event
	for line := range bytes.Lines(content) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // the line is still being written
		}
		var event auditv1.Event
		if err := json.Unmarshal(line, &event); err != nil {
			return nil, fmt.Errorf("the audit log of cluster %s: %w", c.opts.Name, err)
		}
		events = append(events, event)
	}
	return events, nil
}
