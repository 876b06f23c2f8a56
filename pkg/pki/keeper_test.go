// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package pki_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/oam-dev/cluster-gateway/pkg/pki"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

// inFakeTime runs a test in a bubble of package synctest, where the clock advances when all
// goroutines wait: hours pass at once.
func inFakeTime(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, test)
}

// timeout is how long eventually waits.
const timeout = 30 * time.Second

func eventually(t *testing.T, what string, condition func() error) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		err := condition()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// runKeeper runs a Keeper as the leader does.
func runKeeper(t *testing.T, hub *fake.Clientset, configure func(*pki.KeeperConfig), subscribe ...func(*pki.Keeper)) *pki.Keeper {
	t.Helper()
	config := pki.KeeperConfig{Client: hub, Namespace: namespace, Hosts: []string{"tunnel.example.com", "192.0.2.7"}}
	if configure != nil {
		configure(&config)
	}
	k := pki.NewKeeper(config)
	k.OnPublish(pki.PublishTunnel(hub, namespace, "tunnel.example.com:8132"))
	for _, s := range subscribe {
		s(k)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- k.Follow(ctx) }()
	go func() { done <- k.Renew(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
	eventually(t, "certificates", k.Ready)
	return k
}

// connect connects to a server of the Keeper, as an agent with the pair that trusts the CAs.
func connect(k *pki.Keeper, trusted *x509.CertPool, pair tls.Certificate, host string) error {
	return connectWith(k, trusted, pair, host, 0)
}

// connectWith is connect with a newest version of TLS. 0 means any.
func connectWith(k *pki.Keeper, trusted *x509.CertPool, pair tls.Certificate, host string, version uint16) error {
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	served := make(chan error, 1)
	go func() {
		conn := tls.Server(server, k.TLS())
		err := conn.Handshake()
		if err == nil {
			_, err = conn.Write([]byte("x"))
		} else {
			_ = server.Close() // or the client would wait
		}
		served <- err
	}()
	conn := tls.Client(client, &tls.Config{RootCAs: trusted, Certificates: []tls.Certificate{pair}, ServerName: host, NextProtos: []string{"h2"}, MaxVersion: version})
	_, err := conn.Read(make([]byte, 1))
	if err != nil {
		_ = client.Close()
	}
	if serverErr := <-served; serverErr != nil {
		return fmt.Errorf("%w; server: %w", err, serverErr)
	}
	return err
}

func agent(t *testing.T, a *pki.Authority, lifetime time.Duration) tls.Certificate {
	t.Helper()
	cert, key, err := a.IssueAgent("edge-1", lifetime)
	if err != nil {
		t.Fatal(err)
	}
	_, pair := leaf(t, cert, key)
	return pair
}

// On a hub without certificates, they are created, served and published.
func TestKeeperCreatesCertificates(t *testing.T) { inFakeTime(t, testKeeperCreatesCertificates) }

func testKeeperCreatesCertificates(t *testing.T) {
	hub := fake.NewClientset()
	k := runKeeper(t, hub, nil)
	a, err := pki.Load(t.Context(), hub.CoreV1().Secrets(namespace))
	if err != nil {
		t.Fatal(err)
	}
	pair := agent(t, a, 0)
	for _, host := range []string{"tunnel.example.com", "192.0.2.7"} {
		if err := connect(k, a.Pool(), pair, host); err != nil {
			t.Errorf("as %s: %v", host, err)
		}
	}
	if err := connectWith(k, a.Pool(), pair, "tunnel.example.com", tls.VersionTLS12); err == nil {
		t.Error("an agent with TLS 1.2 was accepted")
	}
	older := runKeeper(t, hub, func(c *pki.KeeperConfig) { c.MinVersion = tls.VersionTLS12 })
	if err := connectWith(older, a.Pool(), pair, "tunnel.example.com", tls.VersionTLS12); err != nil {
		t.Errorf("TLS 1.2 was configured: %v", err)
	}
	if err := connect(k, a.Pool(), agent(t, authority(t), 0), "tunnel.example.com"); err == nil {
		t.Error("the certificate of an agent from another CA was accepted")
	}
	eventually(t, "the ConfigMap", func() error {
		m, err := hub.CoreV1().ConfigMaps(namespace).Get(t.Context(), pki.ConfigMap, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if m.Data["address"] != "tunnel.example.com:8132" || m.Data["ca.crt"] != string(a.Bundle()) {
			return fmt.Errorf("its data is %v", m.Data)
		}
		return nil
	})
	if second := runKeeper(t, hub, nil); second.Serving() == nil || !second.Serving().Equal(k.Serving()) || !second.Authority().Certificate().Equal(a.Certificate()) {
		t.Error("another replica serves another certificate")
	}
}

// New certificates in the Secrets are served at once. Invalid Secrets are ignored.
func TestKeeperFollowsSecrets(t *testing.T) { inFakeTime(t, testKeeperFollowsSecrets) }

func testKeeperFollowsSecrets(t *testing.T) {
	hub := fake.NewClientset()
	var trusted atomic.Pointer[x509.CertPool]
	k := runKeeper(t, hub, nil, func(k *pki.Keeper) { k.OnTrustChange(trusted.Store) })
	secrets := hub.CoreV1().Secrets(namespace)
	first := k.Authority()
	next, err := pki.Rotate(t.Context(), secrets, first, pki.Options{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new CA", func() error {
		if !k.Authority().Certificate().Equal(next.Certificate()) || !trusted.Load().Equal(next.Pool()) {
			return fmt.Errorf("the CA is %s", k.Authority())
		}
		if k.Serving().CheckSignatureFrom(next.Certificate()) != nil {
			return fmt.Errorf("the serving certificate was issued by %s", k.Serving().Issuer)
		}
		return nil
	})
	// Agents can connect with the certificates of either CA.
	for name, c := range map[string]struct {
		agent tls.Certificate
		trust *x509.CertPool
	}{"old": {agent(t, first, 0), first.Pool()}, "new": {agent(t, next, 0), next.Pool()}} {
		if err := connect(k, c.trust, c.agent, "tunnel.example.com"); err != nil {
			t.Errorf("the %s agent: %v", name, err)
		}
	}
	broken, err := secrets.Get(t.Context(), pki.CASecret, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	broken.Data = map[string][]byte{"tls.crt": []byte("x")}
	if _, err := secrets.Update(t.Context(), broken, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := connect(k, next.Pool(), agent(t, next, 0), "tunnel.example.com"); err != nil {
		t.Errorf("after the Secret was broken: %v", err)
	}
	// A deleted CA is restored: a new one would disconnect all agents.
	if err := secrets.Delete(t.Context(), pki.CASecret, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the restored CA", func() error {
		a, err := pki.Load(t.Context(), secrets)
		if err != nil {
			return err
		}
		if !bytes.Equal(a.Bundle(), next.Bundle()) {
			return fmt.Errorf("the CA is %s", a)
		}
		return nil
	})
}

// An agent that is renewed in time can connect at any moment while the serving certificate and the
// CA are replaced.
func TestKeeperRenews(t *testing.T) { inFakeTime(t, testKeeperRenews) }

func testKeeperRenews(t *testing.T) {
	hub := fake.NewClientset()
	k := runKeeper(t, hub, func(c *pki.KeeperConfig) { c.CALifetime, c.ServingLifetime = 15*time.Second, 5*time.Second })
	servings, authorities := map[string]bool{}, map[string]bool{}
	var pair tls.Certificate
	var trust *x509.CertPool
	for began := time.Now(); len(authorities) < 3 || len(servings) < 6; {
		if time.Since(began) > 10*time.Minute {
			t.Fatalf("%d CAs, %d serving certificates", len(authorities), len(servings))
		}
		authorities[k.Authority().Certificate().SerialNumber.String()] = true
		servings[k.Serving().SerialNumber.String()] = true
		if pair.Leaf == nil || time.Now().After(pki.RenewAt(pair.Leaf)) {
			pair, trust = agent(t, k.Authority(), 6*time.Second), k.Authority().Pool()
		}
		if err := connect(k, trust, pair, "tunnel.example.com"); err != nil {
			t.Fatalf("after %s, %d CAs: %v", time.Since(began), len(authorities), err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// A CA and a serving certificate that the user provides are used and never changed.
func TestKeeperNeverChangesCertificatesOfTheUser(t *testing.T) {
	inFakeTime(t, testKeeperNeverChangesCertificatesOfTheUser)
}

func testKeeperNeverChangesCertificatesOfTheUser(t *testing.T) {
	a, err := pki.NewAuthority(3 * time.Second) // would be renewed during the test if it were managed
	if err != nil {
		t.Fatal(err)
	}
	own, err := a.Secret()
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := a.IssueServing([]string{"own.example.com"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	own.Namespace, own.Labels = namespace, nil
	serving := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: pki.ServingSecret}, Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{"tls.crt": cert, "tls.key": key},
	}
	hub := fake.NewClientset(own, serving)
	k := runKeeper(t, hub, nil)
	if err := connect(k, a.Pool(), agent(t, a, 0), "own.example.com"); err != nil {
		t.Error(err)
	}
	time.Sleep(time.Until(a.Certificate().NotAfter))
	for _, action := range hub.Actions() {
		if verb := action.GetVerb(); action.GetResource().Resource == "secrets" && verb != "get" && verb != "list" && verb != "watch" {
			t.Errorf("%s of a Secret", verb)
		}
	}
	// If its owner deletes it, it is not restored or replaced: that would be in the way of the
	// owner's next CA.
	secrets := hub.CoreV1().Secrets(namespace)
	if err := secrets.Delete(t.Context(), pki.CASecret, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	deleted := len(hub.Actions())
	eventually(t, "a check of the CA", func() error {
		for _, action := range hub.Actions()[deleted:] {
			if get, ok := action.(clienttesting.GetAction); ok && action.GetVerb() == "get" && get.GetName() == pki.CASecret {
				return nil
			}
		}
		return fmt.Errorf("none yet")
	})
	next := authority(t)
	if own, err = next.Secret(); err != nil {
		t.Fatal(err)
	}
	own.Namespace, own.Labels = namespace, nil
	if _, err := secrets.Create(t.Context(), own, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the next CA", func() error {
		if now := k.Authority(); !now.Certificate().Equal(next.Certificate()) {
			return fmt.Errorf("the CA is %s", now)
		}
		return nil
	})
}
