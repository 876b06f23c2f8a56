// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/identity"
)

// TestIdentityOptions checks the faults of the flags, and that a file of rules makes rules the
// default of clusters.
func TestIdentityOptions(t *testing.T) {
	dir := t.TempDir()
	rules, broken, missing := filepath.Join(dir, "rules"), filepath.Join(dir, "broken"), filepath.Join(dir, "missing")
	for path, text := range map[string]string{rules: "spec: {}", broken: "spec: {clientIdentityExchanger: {rules: [{name: a}]}}"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range map[string]struct {
		args []string
		want []string
		mode identity.Mode
	}{
		"defaults": {},
		"all":      {args: []string{"--hub-name=prod.eu", "--identity-extra=example.com/team", "--cluster-gateway-proxy-config=" + rules, "--identity-webhook-url=https://a/b", "--identity-webhook-cache-ttl=0s"}, mode: identity.ModeRules},
		"faults": {args: []string{"--hub-name=a:b", "--identity-extra=Team", "--identity-extra=authentication.kubernetes.io/credential-id", "--identity-extra=", "--identity-webhook-url=http://a",
			"--identity-webhook-timeout=0s", "--identity-webhook-cache-ttl=2h", "--identity-webhook-ca-file=" + rules, "--identity-webhook-key-file=" + rules}, want: []string{
			`invalid --hub-name "a:b": must be a DNS name`, `invalid --identity-extra "Team": must be a key in lower case`,
			`invalid --identity-extra "authentication.kubernetes.io/credential-id": must not be a key of kubernetes.io or k8s.io`, `invalid --identity-extra "": must be a key`,
			`invalid --identity-webhook-url "http://a": must be an https URL`, `invalid --identity-webhook-timeout "0s": must be greater than 0`,
			`invalid --identity-webhook-cache-ttl "2h0m0s": must be between 0 and 1h0m0s`, `invalid --identity-webhook-ca-file "` + rules + `": must contain a CA certificate`,
			`invalid --identity-webhook-cert-file "": must be set with --identity-webhook-key-file`,
		}},
		"a broken file":  {args: []string{"--cluster-gateway-proxy-config=" + broken}, want: []string{`invalid --cluster-gateway-proxy-config "` + broken + `": [rule 1 ("a"): source is required`}},
		"a missing file": {args: []string{"--cluster-gateway-proxy-config=" + missing}, want: []string{`invalid --cluster-gateway-proxy-config "` + missing + `": open ` + missing}},
	} {
		t.Run(name, func(t *testing.T) {
			o := parsed(t, test.args...).Identity
			got := messages(o.Validate())
			if len(got) != len(test.want) {
				t.Fatalf("got %q", got)
			}
			for i, want := range test.want {
				if !strings.HasPrefix(got[i], want) {
					t.Errorf("got %q, want %q", got[i], want)
				}
			}
			if len(got) > 0 {
				return
			}
			var parse cluster.ParseOptions
			c, err := o.config(&parse)
			if err != nil || parse.DefaultIdentity != test.mode || len(parse.IdentityWebhooks) != len(o.WebhookURLs) {
				t.Errorf("%+v, %v", parse, err)
			}
			i, err := newIdentities(c)
			if err != nil {
				t.Fatal(err)
			}
			i.close()
		})
	}
	if _, err := newIdentities(IdentityConfig{RulesFile: broken}); err == nil || !strings.Contains(err.Error(), "--cluster-gateway-proxy-config") {
		t.Errorf("started with a broken file: %v", err)
	}
}
