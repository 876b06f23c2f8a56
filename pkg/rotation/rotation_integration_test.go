// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package rotation

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/bootstraptest"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// site is what the integration tests of this package share.
var site bootstraptest.Site

func TestMain(m *testing.M) { bootstraptest.Main(m, &site) }

// registered is a cluster whose Secret is read from the hub each time.
type registered struct {
	t    *testing.T
	name string
}

// List implements Clusters.
func (r registered) List() []*cluster.Cluster { return []*cluster.Cluster{r.parse()} }

func (r registered) parse() *cluster.Cluster {
	r.t.Helper()
	c := cluster.Parse(site.HubSecret(context.Background(), r.t, r.name), cluster.ParseOptions{})
	if c.Err() != nil {
		r.t.Fatal(c.Err())
	}
	return c
}

// routeTo reaches a cluster of the lab, whatever its registered endpoint is.
func routeTo(t *testing.T, target *lab.Cluster, r registered) Route {
	address := strings.TrimPrefix(target.Endpoint(), "https://")
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return target.DialContext(ctx, "tcp", address)
	}
	return Route{
		Dialer: func(c *cluster.Cluster) (dialer.Dialer, error) { return dialer.New(c.Name, dial), nil },
		Shared: func(string) http.RoundTripper {
			config := rest.AnonymousClientConfig(target.RESTConfig())
			config.BearerToken = r.parse().Credential.BearerToken()
			transport, err := rest.TransportFor(config)
			if err != nil {
				t.Fatal(err)
			}
			return toHost{transport, address}
		},
	}
}

// toHost sends requests to another host.
type toHost struct {
	next http.RoundTripper
	host string
}

func (h toHost) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.URL.Host, req.Host = h.host, ""
	return h.next.RoundTrip(req)
}

// callersClient is a client with the credential for callers.
func callersClient(t *testing.T, target *lab.Cluster, c *cluster.Cluster) kubernetes.Interface {
	t.Helper()
	config := rest.AnonymousClientConfig(target.RESTConfig())
	config.BearerToken = c.Credential.BearerToken()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func requestToken(ctx context.Context, client kubernetes.Interface, account string) error {
	_, err := client.CoreV1().ServiceAccounts(bootstraptest.AgentNamespace).CreateToken(ctx, account, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	return err
}

// TestCallersHaveNoMaintenanceRights registers a cluster for users who may only read, and shows
// what the credential that their requests are sent with may not do.
func TestCallersHaveNoMaintenanceRights(t *testing.T) {
	ctx := site.Begin(t)
	site.Must(ctx, t, site.RegisterNear("--access", "view")...)
	near := registered{t, bootstraptest.Near}
	c := near.parse()
	if c.SharesCredential() || c.Maintenance().BearerToken() == "" || c.Maintenance().BearerToken() == c.Credential.BearerToken() {
		t.Fatal("the cluster was not registered with two credentials")
	}
	client := callersClient(t, site.Near, c)
	const ns = bootstraptest.AgentNamespace
	if _, err := client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{}); err != nil {
		t.Fatalf("the credential for callers does not work: %v", err)
	}
	for what, err := range map[string]error{
		"a token of its own account":          requestToken(ctx, client, registration.GatewayAccount),
		"a token of the account for renewals": requestToken(ctx, client, registration.MaintenanceAccount),
		"the agent's Secret": func() error {
			_, err := client.CoreV1().Secrets(ns).Get(ctx, "konnectivity-agent", metav1.GetOptions{})
			return err
		}(),
		"a change of the agent's Deployment": func() error {
			_, err := client.AppsV1().Deployments(ns).Patch(ctx, "konnectivity-agent", "application/merge-patch+json", []byte("{}"), metav1.PatchOptions{})
			return err
		}(),
		"the removal of the rights for renewal": client.RbacV1().RoleBindings(ns).Delete(ctx, registration.MaintenanceAccount, metav1.DeleteOptions{}),
	} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("%s: got %v", what, err)
		}
	}
	// Both tokens are renewed with the other credential.
	tokens := NewTokens(TokensConfig{Clusters: near, Route: routeTo(t, site.Near, near), Secrets: site.Hub.Client().CoreV1().Secrets(bootstraptest.HubNamespace), RenewAfter: time.Nanosecond})
	if err := tokens.renew(ctx, c); err != nil {
		t.Fatal(err)
	}
	renewed := near.parse()
	if renewed.Credential.BearerToken() == c.Credential.BearerToken() || renewed.Maintenance().BearerToken() == c.Maintenance().BearerToken() {
		t.Error("a token was not renewed")
	}
	if _, err := callersClient(t, site.Near, renewed).CoreV1().Pods("default").List(ctx, metav1.ListOptions{}); err != nil {
		t.Error(err)
	}
}

// TestSeparateCredentials shows what the gateway does with clusters that an earlier version
// registered.
func TestSeparateCredentials(t *testing.T) {
	secrets := site.Hub.Client().CoreV1().Secrets(bootstraptest.HubNamespace)
	for _, test := range []struct {
		access   string
		separate bool
	}{{"admin", true}, {"view", false}} {
		t.Run(test.access, func(t *testing.T) {
			ctx := site.Begin(t)
			site.Must(ctx, t, site.RegisterNear("--access", test.access)...)
			labtest.ShareCredential(ctx, t, site.Hub, site.Near, bootstraptest.HubNamespace, bootstraptest.Near)
			near := registered{t, bootstraptest.Near}
			before := near.parse()
			if !before.SharesCredential() {
				t.Fatal("the fixture is wrong")
			}
			route := routeTo(t, site.Near, near)
			tokens := NewTokens(TokensConfig{Clusters: near, Route: route, Secrets: secrets, RenewAfter: time.Nanosecond})
			if err := tokens.renew(ctx, before); err != nil {
				t.Fatal(err)
			}
			after := near.parse()
			if after.Credential.BearerToken() == before.Credential.BearerToken() {
				t.Error("the token was not renewed")
			}
			if after.SharesCredential() == test.separate {
				t.Errorf("the cluster shares its credential: %v", after.SharesCredential())
			}
			if !test.separate {
				return
			}
			upkeep := NewUpkeep(UpkeepConfig{Clusters: near, Route: route, Secrets: secrets})
			if !upkeep.due(after) {
				t.Fatal("the rights that callers have are not looked at")
			}
			if err := upkeep.renew(ctx, after); err != nil {
				t.Fatal(err)
			}
			for _, err := range []error{
				func() error {
					_, err := site.Near.Client().RbacV1().RoleBindings(bootstraptest.AgentNamespace).Get(ctx, "cluster-gateway", metav1.GetOptions{})
					return err
				}(),
				func() error {
					_, err := site.Near.Client().RbacV1().Roles(bootstraptest.AgentNamespace).Get(ctx, "cluster-gateway", metav1.GetOptions{})
					return err
				}(),
			} {
				if !apierrors.IsNotFound(err) {
					t.Errorf("rights of the account for callers are left: %v", err)
				}
			}
			// The account for maintenance renews by itself from now on.
			if err := tokens.renew(ctx, after); err != nil {
				t.Fatal(err)
			}
			// If its token expires, the credential for callers, which may do everything, makes
			// another one.
			tokens.cfg.Now = func() time.Time { return time.Now().Add(1000 * time.Hour) }
			if usable(near.parse().Maintenance(), tokens.cfg.Now()) {
				t.Error("the fixture is wrong: the token has not expired")
			}
			if tokens.due(near.parse()) {
				t.Error("a renewal is due that cannot succeed: both tokens have expired")
			}
		})
	}
}

// TestRegisterSeparates shows that register gives a cluster of an earlier version two credentials,
// and takes from the first one the rights of the second.
func TestRegisterSeparates(t *testing.T) {
	ctx := site.Begin(t)
	site.Must(ctx, t, site.RegisterNear("--access", "view")...)
	labtest.ShareCredential(ctx, t, site.Hub, site.Near, bootstraptest.HubNamespace, bootstraptest.Near)
	near := registered{t, bootstraptest.Near}
	client := callersClient(t, site.Near, near.parse())
	if err := requestToken(ctx, client, registration.GatewayAccount); err != nil {
		t.Fatalf("the fixture is wrong: %v", err)
	}
	_, stderr := site.Must(ctx, t, site.RegisterNear("--access", "view")...)
	if !strings.Contains(stderr, "rights that users must not have, removed: RoleBinding cluster-gateway, Role cluster-gateway") {
		t.Error(stderr)
	}
	if near.parse().SharesCredential() {
		t.Error("the cluster still has one credential")
	}
	if err := requestToken(ctx, client, registration.GatewayAccount); !apierrors.IsForbidden(err) {
		t.Errorf("the account for callers still has the rights: %v", err)
	}
}

// expiringTokens is a cluster that issues tokens which expire at once.
type expiringTokens struct{ asked *atomic.Int64 }

func (e expiringTokens) RoundTrip(req *http.Request) (*http.Response, error) {
	answer := func(code int, body string) *http.Response {
		return &http.Response{StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body)), Request: req}
	}
	if !strings.HasSuffix(req.URL.Path, "/token") {
		return answer(http.StatusForbidden, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403}`), nil
	}
	e.asked.Add(1)
	now := time.Now()
	claims := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"iat":%d,"exp":%d}`, now.Unix()-1, now.Unix()+2))
	return answer(http.StatusCreated, `{"kind":"TokenRequest","apiVersion":"authentication.k8s.io/v1","status":{"token":"e30.`+claims+`.e30"}}`), nil
}

// TestTokenThatExpiresAtOnce shows that such a cluster does not have the hub written.
func TestTokenThatExpiresAtOnce(t *testing.T) {
	ctx := site.Begin(t)
	site.Must(ctx, t, site.RegisterNear()...)
	labtest.ShareCredential(ctx, t, site.Hub, site.Near, bootstraptest.HubNamespace, bootstraptest.Near)
	near := registered{t, bootstraptest.Near}
	var asked atomic.Int64
	tokens := NewTokens(TokensConfig{
		Clusters: near, Route: Route{Shared: func(string) http.RoundTripper { return expiringTokens{&asked} }},
		Secrets: site.Hub.Client().CoreV1().Secrets(bootstraptest.HubNamespace), RenewAfter: time.Nanosecond,
	})
	before := near.parse()
	for range 5 {
		tokens.renewals.renewDue(ctx)
	}
	if asked.Load() != 1 {
		t.Errorf("the cluster was asked %d times in a row", asked.Load())
	}
	if after := near.parse(); after.ResourceVersion != before.ResourceVersion {
		t.Error("the Secret on the hub was written")
	}
	if err := tokens.Failure(bootstraptest.Near); err == nil || !strings.Contains(err.Error(), "renewed within 1m0s") {
		t.Errorf("the failure does not show: %v", err)
	}
}

// TestFollowCA shows that the gateway follows the rotation of a cluster's CA, and takes over no CA
// that does not verify the API server.
func TestFollowCA(t *testing.T) {
	ctx := site.Begin(t)
	stranger, err := lab.NewCA("stranger")
	if err != nil {
		t.Fatal(err)
	}
	publish := func(namespace string, bundle []byte) {
		t.Helper()
		maps := site.Edge.Client().CoreV1().ConfigMaps(namespace)
		config := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kube-root-ca.crt"}, Data: map[string]string{"ca.crt": string(bundle)}}
		if _, err := maps.Update(ctx, config, metav1.UpdateOptions{}); apierrors.IsNotFound(err) {
			_, err = maps.Create(ctx, config, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
		} else if err != nil {
			t.Fatal(err)
		}
	}
	own := site.Edge.CAPEM()
	publish("kube-system", own)
	t.Cleanup(func() {
		_ = site.Edge.Client().CoreV1().ConfigMaps("kube-system").Delete(context.Background(), "kube-root-ca.crt", metav1.DeleteOptions{})
	})
	site.Must(ctx, t, site.RegisterEdge()...)
	edge := registered{t, bootstraptest.Edge}
	upkeep := NewUpkeep(UpkeepConfig{Clusters: edge, Route: routeTo(t, site.Edge, edge), Secrets: site.Hub.Client().CoreV1().Secrets(bootstraptest.HubNamespace)})

	for _, step := range []struct {
		name      string
		published []byte
		want      []byte
		fails     string
	}{
		{"the new CA is published beside the old one", append(bytes.Clone(own), stranger.CertPEM()...), append(bytes.Clone(own), stranger.CertPEM()...), ""},
		{"only a CA that did not sign the certificate", stranger.CertPEM(), append(bytes.Clone(own), stranger.CertPEM()...), "not signed by the new CA"},
		{"nothing", []byte("no certificate"), append(bytes.Clone(own), stranger.CertPEM()...), "holds no certificate"},
		{"the old one is gone", own, own, ""},
	} {
		publish(bootstraptest.AgentNamespace, step.published)
		err := upkeep.renew(ctx, edge.parse())
		if step.fails == "" && err != nil || step.fails != "" && (err == nil || !strings.Contains(err.Error(), step.fails)) {
			t.Fatalf("%s: %v", step.name, err)
		}
		if got := edge.parse().CAData; !bytes.Equal(bytes.TrimSpace(got), bytes.TrimSpace(step.want)) {
			t.Errorf("%s: the hub has\n%s", step.name, got)
		}
	}
	// A bundle that somebody else wrote is left alone.
	bootstraptest.PatchSecret(ctx, t, site.Hub, bootstraptest.Edge, `{"metadata":{"annotations":{"cluster.core.oam.dev/ca-source":null}}}`)
	publish(bootstraptest.AgentNamespace, append(bytes.Clone(own), stranger.CertPEM()...))
	if err := upkeep.renew(ctx, edge.parse()); err != nil {
		t.Fatal(err)
	}
	if got := edge.parse().CAData; !bytes.Equal(bytes.TrimSpace(got), bytes.TrimSpace(own)) {
		t.Errorf("the hub has\n%s", got)
	}
}

// agentChain returns the certificate of the cluster's agent, and those that lead to CAs.
func agentChain(ctx context.Context, t *testing.T) []*x509.Certificate {
	t.Helper()
	s, err := site.Edge.Client().CoreV1().Secrets(bootstraptest.AgentNamespace).Get(ctx, registration.AgentName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	chain, err := pki.ParseCertificates(registration.AgentPairOf(s).Certificate)
	if err != nil {
		t.Fatal(err)
	}
	return chain
}

// TestAgentsMoveToTheirCA shows that the renewal of a certificate from the tunnel's CA, as earlier
// versions issue them, moves the agent to the CA of agents, and from there to the successor of that
// CA before it ends. Earlier versions, which know the tunnel's CA alone, verify each certificate.
func TestAgentsMoveToTheirCA(t *testing.T) {
	ctx := site.Begin(t)
	secrets := site.Hub.Client().CoreV1().Secrets(bootstraptest.HubNamespace)
	t.Cleanup(func() { _ = secrets.Delete(context.Background(), pki.AgentsCASecret, metav1.DeleteOptions{}) })
	site.Must(ctx, t, site.RegisterEdge("--certificate-lifetime", "10m")...)
	edge := registered{t, bootstraptest.Edge}
	load := func() *pki.Authority {
		t.Helper()
		a, err := pki.Load(ctx, secrets)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	now := time.Now()
	agents := NewAgents(AgentsConfig{
		Clusters: edge, Route: routeTo(t, site.Edge, edge), Secrets: secrets, Authority: load, Now: func() time.Time { return now },
	})
	renew := func() *x509.Certificate {
		t.Helper()
		if err := agents.renew(ctx, edge.parse()); err != nil {
			t.Fatal(err)
		}
		chain := agentChain(ctx, t)
		// By the tunnel's CA alone.
		if err := registration.VerifyAgentCertificate(chain, load().Pool(), bootstraptest.Edge, now); err != nil {
			t.Errorf("an earlier version does not verify the certificate: %v", err)
		}
		return chain[0]
	}
	keeper := pki.NewKeeper(pki.KeeperConfig{
		Client: site.Hub.Client(), Namespace: bootstraptest.HubNamespace, Hosts: []string{"tunnel"}, AgentsCASecret: pki.AgentsCASecret, CALifetime: time.Hour,
	})
	t.Cleanup(func() { _ = secrets.Delete(context.Background(), pki.ServingSecret, metav1.DeleteOptions{}) })
	if err := keeper.LoadOrCreate(ctx); err != nil {
		t.Fatal(err)
	}
	tunnelCA, first := load(), load().Agents()
	before := renew()
	if before.CheckSignatureFrom(tunnelCA.Certificate()) != nil || !tunnelCA.IssuedByTunnelCA(before) {
		t.Fatal("a certificate that is not due was replaced, or the fixture is wrong")
	}
	now = pki.RenewAt(before).Add(time.Second)
	moved := renew()
	if moved.CheckSignatureFrom(first) != nil {
		t.Error("the renewal did not move the agent to the CA of agents")
	}
	now = time.Now()
	if again := renew(); !again.Equal(moved) {
		t.Error("the certificate was replaced again")
	}
	// The successor of the CA of agents. Certificates of the first one are replaced when they are due:
	// none outlives its CA.
	s, err := secrets.Get(ctx, pki.AgentsCASecret, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	current, err := pki.FromSecret(s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pki.Rotate(ctx, secrets, current, pki.Options{Secret: pki.AgentsCASecret}); err != nil {
		t.Fatal(err)
	}
	if err := keeper.LoadOrCreate(ctx); err != nil { // signs it with the tunnel's CA
		t.Fatal(err)
	}
	second := load().Agents()
	if second.Equal(first) {
		t.Fatal("the CA of agents is the same")
	}
	if same := renew(); !same.Equal(moved) {
		t.Error("a certificate that is not due was replaced")
	}
	now = pki.RenewAt(moved).Add(time.Second)
	if !now.Before(first.NotAfter) {
		t.Fatal("the renewal is not due before the end of the CA")
	}
	if last := renew(); last.CheckSignatureFrom(second) != nil {
		t.Error("the agent was not moved to the next CA")
	}
}
