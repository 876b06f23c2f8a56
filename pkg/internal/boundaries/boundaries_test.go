// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package boundaries

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/oam-dev/cluster-gateway/"

// mayImport says which packages of ours each package may import: arrows point one way,
// cmd → server → registry, proxy, tunnel → cluster, dialer → apis. A package that is not listed fails the test, so that a new one
// gets its place on purpose.
var mayImport = map[string][]string{
	"cmd/gateway":               {"pkg/server"},
	"cmd/agent-bootstrap":       {"pkg/bootstrap"},
	"pkg/apis/cluster/v1alpha1": {},
	"pkg/apis/openapi":          {"pkg/apis/cluster/v1alpha1"},
	"pkg/client":                {"pkg/apis/cluster/v1alpha1"},
	"pkg/pki":                   {"pkg/apis/cluster/v1alpha1", "pkg/internal/cabundle"},
	"pkg/cluster":               {"pkg/apis/cluster/v1alpha1", "pkg/internal/cabundle"},
	"pkg/dialer":                {},
	"pkg/dialer/dialertest":     {"pkg/dialer"},
	"pkg/registry":              {"pkg/apis/cluster/v1alpha1", "pkg/cluster"},
	"pkg/proxy":                 {"pkg/apis/cluster/v1alpha1", "pkg/cluster", "pkg/dialer", "pkg/internal/untrusted"},
	"pkg/health":                {"pkg/apis/cluster/v1alpha1", "pkg/cluster", "pkg/dialer", "pkg/internal/events", "pkg/internal/untrusted", "pkg/pki", "pkg/proxy"},
	"pkg/rotation":              {"pkg/apis/cluster/v1alpha1", "pkg/cluster", "pkg/pki", "pkg/registration"},
	"pkg/tunnel":                {"pkg/apis/cluster/v1alpha1", "pkg/dialer"},
	"pkg/server":                {"pkg/apis/cluster/v1alpha1", "pkg/apis/openapi", "pkg/cluster", "pkg/dialer", "pkg/enrollment", "pkg/health", "pkg/internal/events", "pkg/internal/untrusted", "pkg/pki", "pkg/proxy", "pkg/registry", "pkg/rotation", "pkg/tunnel"},
	"pkg/registration":          {"manifests", "pkg/apis/cluster/v1alpha1", "pkg/cluster", "pkg/pki"},
	"pkg/enrollment":            {"pkg/apis/cluster/v1alpha1", "pkg/cluster", "pkg/internal/events", "pkg/internal/untrusted", "pkg/pki", "pkg/registration", "pkg/tunnel"},
	"pkg/bootstrap":             {"pkg/apis/cluster/v1alpha1", "pkg/client", "pkg/cluster", "pkg/internal/untrusted", "pkg/pki", "pkg/registration"},
	"pkg/internal/boundaries":   {},
	"pkg/internal/cabundle":     {"pkg/internal/untrusted"},
	"pkg/internal/events":       {"pkg/apis/cluster/v1alpha1", "pkg/internal/untrusted"},
	"pkg/internal/untrusted":    {},
}

// never are modules that a package must not even reach through others, with the reason.
var never = []struct {
	packages []string
	imports  []string
	reason   string
}{
	{
		[]string{"pkg/dialer"}, []string{"k8s.io/apiserver", module + "pkg/proxy", module + "pkg/server"},
		"a dialer opens connections, and knows nothing of HTTP or of who is asking; anybody can then use and test it without a server",
	},
	{
		[]string{"pkg/apis/cluster/v1alpha1", "pkg/client"},
		[]string{"k8s.io/apiserver", "k8s.io/component-base", "sigs.k8s.io/apiserver-network-proxy", "sigs.k8s.io/apiserver-runtime", "google.golang.org/grpc"},
		"clients import the API types and pkg/client, and must not get a server along with them",
	},
	{
		[]string{"pkg/apis/cluster/v1alpha1"}, []string{"k8s.io/client-go"},
		"API types are data; which client is used with them is the importer's choice",
	},
	{
		[]string{"pkg/cluster"}, []string{"k8s.io/apiserver", "sigs.k8s.io/apiserver-network-proxy"},
		"what is known of a cluster is used by agent-bootstrap, too, which serves nothing",
	},
	{
		[]string{"pkg/tunnel"}, []string{"k8s.io/apiserver"},
		"the tunnel carries bytes for any consumer; the authentication of agents is by certificate alone, not the hub's",
	},
	{
		[]string{"pkg/proxy", "pkg/registry"}, []string{"sigs.k8s.io/apiserver-network-proxy/pkg", module + "pkg/tunnel"},
		"which tunnel there is, is pkg/server's choice: nothing else may depend on one",
	},
	{
		[]string{"pkg/proxy", "pkg/registry", "pkg/server", "pkg/tunnel", "pkg/dialer", "pkg/cluster", "cmd/gateway"},
		[]string{module + "test", module + "pkg/dialer/dialertest", "testing", "net/http/httptest", "sigs.k8s.io/controller-runtime"},
		"test code does not belong into the binary",
	},
}

type listed struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func list(t *testing.T) map[string]listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-deps=false", "-json=ImportPath,Imports,Deps", module+"pkg/...", module+"cmd/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, &stderr)
	}
	found := map[string]listed{}
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		found[strings.TrimPrefix(p.ImportPath, module)] = p
	}
	if len(found) < 5 {
		t.Fatalf("go list found %d packages only", len(found))
	}
	return found
}

func TestImports(t *testing.T) {
	packages := list(t)
	for name, p := range packages {
		allowed, ok := mayImport[name]
		if !ok {
			t.Errorf("%s has no place in mayImport: which packages of ours may it import?", name)
			continue
		}
		for _, path := range p.Imports {
			if ours, is := strings.CutPrefix(path, module); is && !slices.Contains(allowed, ours) {
				t.Errorf("%s imports %s: the arrows do not point that way", name, ours)
			}
		}
	}
	for _, rule := range never {
		for _, name := range rule.packages {
			for _, dependency := range packages[name].Deps {
				for _, forbidden := range rule.imports {
					if dependency == forbidden || strings.HasPrefix(dependency, forbidden+"/") {
						t.Errorf("%s reaches %s: %s", name, dependency, rule.reason)
					}
				}
			}
		}
	}
}
