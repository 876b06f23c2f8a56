// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"
	"sigs.k8s.io/yaml"
)

// Every way in which a Cluster ends up in a log by accident, and the ways in which it is held by
// what is logged.
func TestClusterNeverPrintsSecrets(t *testing.T) {
	ca := newAuthority(t, "ca")
	client := ca.issue(t, newKey(t), "admin")
	dir := t.TempDir()
	plugin := filepath.Join(dir, "plugin")
	if err := os.WriteFile(plugin, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	proxied := data{"proxy-url": "http://proxyuser:proxypassword@proxy:3128"}
	token := tokenSecret(proxied)
	x509Secret := secretOf(x509Type, "", data{"endpoint": "https://h", "tls.crt": string(client.cert), "tls.key": string(client.key), "proxy-url": string(token.Data["proxy-url"])})
	exec := secretOf(dynamicType, "", data{"endpoint": "https://h", "exec": `{"apiVersion":"client.authentication.k8s.io/v1","command":"` + plugin + `","args":["argument-secret"]}`})
	defined := secretOf(dynamicType, "", data{"endpoint": "https://h", "exec": `{"plugin":"aws","parameters":{"cluster":"parameter-secret"}}`})
	keyLine := strings.Split(string(client.key), "\n")[1]
	forbidden := []string{"sekret-token", "proxyuser", "proxypassword", keyLine, "argument-secret", "parameter-secret"}

	for name, c := range map[string]*Cluster{
		"token":  Parse(token, ParseOptions{}),
		"x509":   Parse(x509Secret, ParseOptions{}),
		"exec":   Parse(exec, ParseOptions{ExecCredentialDir: dir}),
		"plugin": Parse(defined, ParseOptions{ExecPlugins: pluginsOf(t, plugin, "--cluster")}),
	} {
		if c.Err() != nil {
			t.Fatal(c.Err())
		}
		holders := map[string]any{
			"pointer": c, "value": *c, "slice": []*Cluster{c}, "map": map[string]Cluster{"a": *c},
			"exported field":        struct{ C *Cluster }{c},
			"unexported field":      struct{ c *Cluster }{c},
			"unexported credential": struct{ credential Credential }{c.Credential}, "unexported cluster": struct{ c Cluster }{*c},
			"credential": c.Credential, "pointer to credential": &c.Credential,
		}
		if command := c.Credential.Plugin(); command != nil {
			holders["command"], holders["pointer to command"] = *command, command
		}
		var text bytes.Buffer
		for holder, v := range holders {
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%T"} {
				fmt.Fprintf(&text, verb, v)
			}
			if out, err := json.Marshal(v); err != nil {
				t.Errorf("%s: %v", holder, err)
			} else {
				text.Write(out)
			}
			if out, err := yaml.Marshal(v); err != nil {
				t.Errorf("%s: %v", holder, err)
			} else {
				text.Write(out)
			}
			logger := textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(&text), textlogger.Verbosity(10)))
			logger.Info("cluster", "value", v)
			slog.New(slog.NewTextHandler(&text, nil)).Info("cluster", "value", v)
			slog.New(slog.NewJSONHandler(&text, nil)).Info("cluster", "value", v)
		}
		for _, secret := range forbidden {
			if strings.Contains(text.String(), secret) {
				i := strings.Index(text.String(), secret)
				t.Errorf("%s: %q is printed: %.200s", name, secret, text.String()[max(0, i-100):])
			}
		}
		if !strings.Contains(fmt.Sprintf("%+v", c), `"name":"east"`) || !strings.Contains(c.GoString(), "direct") {
			t.Errorf("%s: what is public is not printed: %+v", name, c)
		}
	}
}

func TestNilClusterPrints(t *testing.T) {
	var c *Cluster
	if got := fmt.Sprintf("%v %+v", c, c); strings.Contains(got, "PANIC") {
		t.Error(got)
	}
	if out, err := json.Marshal(c); err != nil || string(out) != "null" {
		t.Errorf("%s, %v", out, err)
	}
	klog.Background().V(10).Info("nil", "cluster", c)
	var zero Credential
	if zero.BearerToken() != "" || zero.CertificatePEM() != nil || zero.Plugin() != nil {
		t.Error("the zero credential holds something")
	}
	if _, ok := zero.Expiry(); ok {
		t.Error("the zero credential expires")
	}
}
