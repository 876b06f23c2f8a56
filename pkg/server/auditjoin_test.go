// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/itchyny/gojq"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/apiserver/pkg/audit"
	auditlog "k8s.io/apiserver/plugin/pkg/audit/log"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/proxy"
)

// jqVariable makes this test program the command jq.
const jqVariable = "CLUSTER_GATEWAY_TEST_JQ"

func TestMain(m *testing.M) {
	if os.Getenv(jqVariable) != "" {
		if err := jq(os.Args[1:], os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// jq is jq -r PROGRAM FILE.
func jq(args []string, out io.Writer) error {
	if len(args) != 3 || args[0] != "-r" {
		return fmt.Errorf("this jq does not know the arguments %q", args)
	}
	query, err := gojq.Parse(args[1])
	if err != nil {
		return err
	}
	file, err := os.Open(args[2])
	if err != nil {
		return err
	}
	defer file.Close()
	for decoder := json.NewDecoder(file); ; {
		var event any
		if err := decoder.Decode(&event); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		for results := query.Run(event); ; {
			v, ok := results.Next()
			if !ok {
				break
			}
			if err, failed := v.(error); failed {
				return err
			}
			fmt.Fprintln(out, v)
		}
	}
}

// auditLog is an audit log in a file, written as with --audit-log-path.
type auditLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *auditLog) backend() audit.Backend {
	return auditlog.NewBackend(l, auditlog.FormatJson, auditv1.SchemeGroupVersion)
}

// Write implements io.Writer.
func (l *auditLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// await waits until the log contains text, and writes it to a file.
func (l *auditLog) await(t *testing.T, text, file string) {
	t.Helper()
	eventually(t, "the audit event of "+text, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		for line := range bytes.Lines(l.text.Bytes()) {
			if bytes.Contains(line, []byte(text)) && bytes.Contains(line, []byte("ResponseComplete")) {
				return true
			}
		}
		return false
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := os.WriteFile(file, l.text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

type oneCluster struct{ *cluster.Cluster }

// Get implements proxy.ClusterGetter.
func (c oneCluster) Get(name string) (*cluster.Cluster, bool) { return c.Cluster, name == c.Name }

// TestAuditLogsJoin runs the commands of docs/identity.md on the audit logs of a gateway and of an
// API server behind it.
func TestAuditLogsJoin(t *testing.T) {
	var own, clusters auditLog
	behind := startAPIServer(t, http.NotFound, clusters.backend(), func(*GenericOptions) {})
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{
		Name: "east", Labels: map[string]string{v1alpha1.LabelCredentialType: string(v1alpha1.CredentialTypeServiceAccountToken)},
		Annotations: map[string]string{v1alpha1.AnnotationIdentity: "impersonate"},
	}, Data: map[string][]byte{"endpoint": []byte(behind.url), "ca.crt": behind.ca(t), "token": []byte("t")}}
	metrics := proxy.NewMetrics()
	if _, err := metricsHandler(nil, metrics.All()); err != nil { // it registers them
		t.Fatal(err)
	}
	handler := proxy.NewHandler(proxy.Config{
		Clusters: oneCluster{cluster.Parse(secret, cluster.ParseOptions{})}, Dialers: dialers{noTunnel{}}.dialer, Metrics: metrics,
	})
	t.Cleanup(handler.Close)
	gateway := startAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		r.Header.Set(userHeader, "account-of-the-gateway") // the credential in the cluster
		handler.ServeHTTP(w, r)
	}, own.backend(), func(*GenericOptions) {})

	for _, user := range []string{"jane", "joe"} {
		req := httptest.NewRequest(http.MethodGet, gateway.url+v1alpha1.BasePath+"east/proxy/api/v1/namespaces/x/pods/of-"+user, http.NoBody)
		req.RequestURI = ""
		req.Header.Set(userHeader, user)
		resp, err := newClient(t).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Fatalf("got %s", resp.Status)
		}
	}
	dir := t.TempDir()
	own.await(t, "of-joe", filepath.Join(dir, "gateway-audit.log"))
	clusters.await(t, "of-joe", filepath.Join(dir, "cluster-audit.log"))

	got := strings.Split(strings.TrimSpace(runFromPage(t, dir, "../../docs/identity.md", "gateway-audit.log")), "\n")
	for i, line := range got {
		_, got[i], _ = strings.Cut(line, "\t") // the audit ID
	}
	slices.Sort(got)
	want := []string{
		"jane\teast\tjane\tget\t/api/v1/namespaces/x/pods/of-jane",
		"joe\teast\tjoe\tget\t/api/v1/namespaces/x/pods/of-joe",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
}

// runFromPage runs the block of shell commands that contains a text, in a folder, and returns its
// output.
func runFromPage(t *testing.T, dir, page, containing string) string {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	commands := ""
	for _, block := range strings.Split(string(text), "```sh\n")[1:] {
		if block, _, _ = strings.Cut(block, "```"); strings.Contains(block, containing) {
			commands += block
		}
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "jq"), []byte(fmt.Sprintf("#!/bin/sh\n%s=1 exec '%s' \"$@\"\n", jqVariable, program)), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-e", "-c", commands)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	return string(out)
}

// ca returns the certificate that the server presents, which is its own CA.
func (s *apiServer) ca(t *testing.T) []byte {
	t.Helper()
	resp, err := newClient(t).Get(s.url + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	chain := resp.TLS.PeerCertificates
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: chain[len(chain)-1].Raw})
}
