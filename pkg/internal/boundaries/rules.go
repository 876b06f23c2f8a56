// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package boundaries

// Module is the prefix of the import paths of this module.
const Module = "github.com/oam-dev/cluster-gateway/"

// Names of packages that several rules mention.
const (
	buildversion = "pkg/internal/buildversion"
	cabundle     = "pkg/internal/cabundle"
	apis         = "pkg/apis/cluster/v1alpha1"
	client       = "pkg/client"
	cluster      = "pkg/cluster"
	clusterapi   = "pkg/clusterapi"
	dialer       = "pkg/dialer"
	events       = "pkg/internal/events"
	execplugin   = "pkg/execplugin"
	identity     = "pkg/identity"
	inventory    = "pkg/inventory"
	memory       = "pkg/internal/memory"
	peers        = "pkg/peers"
	policy       = "pkg/policy"
	pki          = "pkg/pki"
	proxy        = "pkg/proxy"
	registration = "pkg/registration"
	registry     = "pkg/registry"
	server       = "pkg/server"
	tunnel       = "pkg/tunnel"
	untrusted    = "pkg/internal/untrusted"
)

// MayImport returns, for each package below cmd and pkg, the packages of this module that it may
// import. All imports have the same direction: cmd → server → registry, proxy, tunnel → cluster,
// dialer → apis. The packages bootstrap, enrollment and rotation all use registration, and none
// imports another. A package without an entry fails the test, so that the place of a new package is
// decided on purpose.
func MayImport() map[string][]string {
	return map[string][]string{
		"cmd/gateway":             {server},
		"cmd/agent-bootstrap":     {"pkg/bootstrap"},
		apis:                      {},
		"pkg/apis/openapi":        {apis},
		client:                    {apis},
		pki:                       {apis, cabundle},
		cluster:                   {apis, cabundle, execplugin, identity, untrusted},
		cabundle:                  {untrusted},
		execplugin:                {untrusted},
		identity:                  {apis, untrusted},
		dialer:                    {},
		"pkg/dialer/dialertest":   {dialer},
		registry:                  {apis, cluster},
		proxy:                     {apis, cluster, dialer, execplugin, identity, memory, policy, untrusted},
		peers:                     {apis, dialer, pki},
		policy:                    {},
		"pkg/health":              {apis, cluster, dialer, events, pki, proxy, untrusted},
		inventory:                 {apis, cluster, untrusted},
		clusterapi:                {apis, cluster, events},
		tunnel:                    {apis, dialer},
		registration:              {apis, cluster, pki, "manifests"},
		"pkg/rotation":            {apis, cabundle, cluster, dialer, pki, registration, untrusted},
		"pkg/enrollment":          {apis, cluster, events, pki, registration, tunnel, untrusted},
		"pkg/bootstrap":           {apis, buildversion, client, cluster, inventory, pki, policy, registration, untrusted},
		server:                    {apis, "pkg/apis/openapi", buildversion, cluster, clusterapi, dialer, "pkg/enrollment", events, execplugin, cabundle, "pkg/health", identity, inventory, memory, peers, pki, policy, proxy, registration, registry, "pkg/rotation", tunnel, untrusted},
		"pkg/internal/boundaries": {},
		events:                    {apis, untrusted},
		memory:                    {},
		untrusted:                 {},
		buildversion:              {},
	}
}

// Ban is a set of imports that packages must not have, not even through other packages.
type Ban struct {
	Packages []string
	Imports  []string
	Reason   string
}

// Bans returns all bans.
func Bans() []Ban {
	return []Ban{
		{
			[]string{dialer}, []string{"k8s.io/apiserver", Module + proxy, Module + server},
			"a dialer opens connections and knows nothing about HTTP or the caller, so that anybody can use and test it without a server",
		},
		{
			[]string{apis, client},
			[]string{"k8s.io/apiserver", "k8s.io/component-base", "sigs.k8s.io/apiserver-network-proxy", "sigs.k8s.io/apiserver-runtime", "google.golang.org/grpc"},
			"clients import the API types and pkg/client, and must not get a server along with them",
		},
		{
			[]string{apis}, []string{"k8s.io/client-go"},
			"API types are data; the importer chooses the client to use them with",
		},
		{
			[]string{cluster, identity, registration}, []string{"k8s.io/apiserver", "sigs.k8s.io/apiserver-network-proxy"},
			"agent-bootstrap uses these too, and it serves nothing",
		},
		{
			[]string{tunnel}, []string{"k8s.io/apiserver"},
			"the tunnel carries bytes for any consumer; it authenticates agents by certificate alone, not through the hub",
		},
		{
			[]string{proxy, registry}, []string{"sigs.k8s.io/apiserver-network-proxy/pkg", Module + tunnel, Module + peers},
			"pkg/server alone chooses the tunnel and the replicas to forward to: nothing else may depend on one",
		},
		{
			[]string{proxy, registry, server, tunnel, dialer, cluster, registration, "cmd/gateway", "cmd/agent-bootstrap"},
			[]string{Module + "test", Module + "pkg/dialer/dialertest", "testing", "net/http/httptest", "sigs.k8s.io/controller-runtime"},
			"test code does not belong in the programs",
		},
	}
}

// Public is a package that other modules may import.
type Public struct {
	// Imports are the packages outside the standard library that it may import, by prefix.
	Imports []string
	// Most is the maximum number of packages outside the standard library that an importer gets
	// with it. Raise it only for a reason: for each of them, the importers need more build time and
	// a version that fits.
	Most int
}

// PublicPackages returns the packages that other modules may import. All others may change at any
// time.
func PublicPackages() map[string]Public {
	return map[string]Public{
		apis:   {Imports: []string{"k8s.io/apimachinery/pkg"}, Most: 70},
		client: {Imports: []string{Module + apis, "k8s.io/client-go/rest"}, Most: 115},
	}
}
