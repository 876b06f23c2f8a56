// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// present returns the certificate that the gateway presents at its own endpoint to a client that
// trusts the CAs of the APIService.
func (s *site) present(ctx context.Context) (*x509.Certificate, error) {
	bundle, err := s.caBundle(ctx)
	if err != nil {
		return nil, err
	}
	return s.presentTo(ctx, bundle)
}

// presentTo returns the certificate that the gateway presents to a client that trusts the bundle.
func (s *site) presentTo(ctx context.Context, bundle []byte) (*x509.Certificate, error) {
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(bundle)
	dialer := &tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: trusted, ServerName: "cluster-gateway." + hubNamespace + ".svc"}}
	conn, err := dialer.DialContext(ctx, "tcp", strings.TrimPrefix(s.Endpoint(), "https://"))
	if err != nil {
		return nil, err
	}
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0], conn.Close()
}

func (s *site) caBundle(ctx context.Context) ([]byte, error) {
	services, err := s.apiServices()
	if err != nil {
		return nil, err
	}
	service, err := services.Get(ctx, apiServiceName, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	if service.Spec.InsecureSkipTLSVerify {
		return nil, errors.New("verification is switched off")
	}
	return service.Spec.CABundle, nil
}

func (s *site) patchAPIService(ctx context.Context, t *testing.T, change map[string]any) {
	t.Helper()
	services, err := s.apiServices()
	if err != nil {
		t.Fatal(err)
	}
	patch, err := json.Marshal(change)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := services.Patch(ctx, apiServiceName, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// throughHub lists the clusters through the aggregation layer.
func (s *site) throughHub(ctx context.Context) error {
	config := s.RESTConfig(lab.ViaHub)
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return err
	}
	_, err = send(ctx, client, http.MethodGet, config.Host+gateways, nil)
	return err
}

// TestServingCertificate checks that the certificate of the gateway's own endpoint and its CA are
// created and replaced repeatedly, without a restart and without a failed request. The hub verifies
// the gateway at all times, whichever replica is the leader.
func TestServingCertificate(t *testing.T) {
	exclusively(t, &shared.servingLock)
	ctx := bounded(t)
	// A pair expires five seconds after its renewal is due: a replica that takes over needs up to 4.4
	// seconds.
	args := []string{"--serving-ca-lifetime=45s", "--serving-cert-lifetime=25s", tunnelOff}
	s := begin(ctx, t, args...)
	pairs, authorities := map[string]bool{}, map[string]bool{}
	requests := 0
	load := func(s *site, pairsWanted, authoritiesWanted int) {
		t.Helper()
		clear(pairs)
		clear(authorities)
		for began := time.Now(); len(pairs) < pairsWanted || len(authorities) < authoritiesWanted; requests++ {
			if time.Since(began) > 2*noticed {
				t.Fatalf("%d pairs, %d CAs", len(pairs), len(authorities))
			}
			cert, err := s.present(ctx)
			if err != nil {
				t.Fatalf("request %d, to the gateway: %v", requests, err)
			}
			if err := s.throughHub(ctx); err != nil {
				t.Fatalf("request %d, through the hub: %v", requests, err)
			}
			pairs[cert.SerialNumber.String()], authorities[string(cert.RawIssuer)] = true, true
		}
	}
	load(s, 3, 2)
	for _, certificate := range []string{"serving", "ca"} {
		end, err := s.Metric(ctx, "cluster_gateway_serving_certificate_expiration_timestamp_seconds", `certificate="`+certificate+`"`)
		if err != nil || end < float64(time.Now().Unix()) {
			t.Errorf("the metric of the certificate %s is %v, %v", certificate, end, err)
		}
	}
	// Another replica serves the same certificate, and continues when this one stops.
	g, err := shared.lab.StartGateway(ctx, lab.GatewayOptions{
		Name: "gateway-second", Hub: s.hub, Binary: shared.binary, ExtraArgs: args, TunnelOff: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Stop() }) // a second call if the test succeeded
	second := &site{g, s.hub}
	labtest.Within(t, noticed, "both replicas to serve the same certificate", func() error {
		one, err := s.present(ctx)
		if err != nil {
			return err
		}
		two, err := second.present(ctx)
		if err == nil && !one.Equal(two) {
			err = errors.New("they do not")
		}
		return err
	})
	s.patchAPIService(ctx, t, map[string]any{"spec": map[string]any{"service": map[string]any{"port": port(t, second)}}})
	labtest.Within(t, noticed, "the hub to use the second replica", func() error { return second.throughHub(ctx) })
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	load(second, 2, 1)
	t.Logf("%d requests", requests)
	if err := second.Stop(); err != nil {
		t.Fatal(err)
	}
}

func port(t *testing.T, s *site) json.Number {
	t.Helper()
	_, text, err := net.SplitHostPort(strings.TrimPrefix(s.Endpoint(), "https://"))
	if err != nil {
		t.Fatal(err)
	}
	return json.Number(text)
}

// TestAPIServiceOfOthers checks that the gateway corrects a wrong caBundle, and does not change one
// that cert-manager writes. If the user provides the serving certificate, the gateway serves it and
// changes nothing.
func TestAPIServiceOfOthers(t *testing.T) {
	exclusively(t, &shared.servingLock)
	ctx := bounded(t)
	s := begin(ctx, t, "--serving-ca-lifetime=20s", tunnelOff)
	right := func() error {
		if _, err := s.present(ctx); err != nil {
			return err
		}
		return s.throughHub(ctx)
	}
	labtest.Within(t, noticed, "the hub to trust the gateway", right)
	s.patchAPIService(ctx, t, map[string]any{"spec": map[string]any{"caBundle": nil, "insecureSkipTLSVerify": true}})
	labtest.Within(t, noticed, "verification to be enabled", right)

	foreign, err := lab.NewCA("another")
	if err != nil {
		t.Fatal(err)
	}
	const annotation = "cert-manager.io/inject-ca-from"
	s.patchAPIService(ctx, t, map[string]any{
		"metadata": map[string]any{"annotations": map[string]any{annotation: hubNamespace + "/certificate"}},
		"spec":     map[string]any{"caBundle": foreign.CertPEM()},
	})
	changes(t, 1, "the CA", s.hubData(ctx, pki.GatewayCASecret, "tls.crt"))
	if bundle, err := s.caBundle(ctx); err != nil || !bytes.Equal(bundle, foreign.CertPEM()) {
		t.Errorf("the caBundle of cert-manager was changed (%v)", err)
	}
	s.patchAPIService(ctx, t, map[string]any{"metadata": map[string]any{"annotations": map[string]any{annotation: nil}}})
	labtest.Within(t, noticed, "the hub to trust the gateway again", right)

	pair, err := foreign.Issue(lab.CertOptions{CN: "own", DNSNames: []string{"cluster-gateway." + hubNamespace + ".svc", "localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"labels": map[string]any{"app.kubernetes.io/managed-by": nil}},
		"data":     map[string][]byte{"tls.crt": pair.CertPEM, "tls.key": pair.KeyPEM},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.hub.Client().CoreV1().Secrets(hubNamespace).Patch(ctx, pki.GatewayServingSecret, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	labtest.Within(t, noticed, "the user's own pair to be served", func() error {
		_, err := s.presentTo(ctx, foreign.CertPEM())
		return err
	})
	s.patchAPIService(ctx, t, map[string]any{"spec": map[string]any{"caBundle": foreign.CertPEM()}})
	labtest.Within(t, noticed, "the hub to trust the user's own certificate", right)
	changes(t, 1, "the CA", s.hubData(ctx, pki.GatewayCASecret, "tls.crt"))
	if bundle, err := s.caBundle(ctx); err != nil || !bytes.Equal(bundle, foreign.CertPEM()) {
		t.Errorf("the caBundle was changed although the user provides the certificate (%v)", err)
	}
	if current, err := s.hubSecret(ctx, pki.GatewayServingSecret); err != nil || !bytes.Equal(current.Data["tls.crt"], pair.CertPEM) {
		t.Errorf("the certificate that the user provides was replaced (%v)", err)
	}
}
