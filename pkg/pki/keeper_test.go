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

const patience = 30 * time.Second

func eventually(t *testing.T, what string, condition func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
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

// keep runs a Keeper as the replica that leads does.
func keep(t *testing.T, hub *fake.Clientset, configure func(*pki.KeeperConfig), subscribe ...func(*pki.Keeper)) *pki.Keeper {
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
	ended := make(chan error, 2)
	go func() { ended <- k.Follow(ctx) }()
	go func() { ended <- k.Renew(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
	eventually(t, "certificates", k.Ready)
	return k
}

// connect makes a handshake with what the Keeper serves, as an agent with the pair that trusts the bundle.
func connect(k *pki.Keeper, trusted *x509.CertPool, pair tls.Certificate, host string) error {
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
			_ = server.Close() // so that the other side does not wait
		}
		served <- err
	}()
	conn := tls.Client(client, &tls.Config{RootCAs: trusted, Certificates: []tls.Certificate{pair}, ServerName: host, NextProtos: []string{"h2"}})
	_, err := conn.Read(make([]byte, 1))
	if err != nil {
		_ = client.Close()
	}
	if serverErr := <-served; serverErr != nil {
		return fmt.Errorf("%w; the server: %w", err, serverErr)
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

// TestKeeperMakesEverything: on a hub with nothing, the certificates are made, served, and told of.
func TestKeeperMakesEverything(t *testing.T) {
	hub := fake.NewClientset()
	k := keep(t, hub, nil)
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
	if err := connect(k, a.Pool(), agent(t, authority(t), 0), "tunnel.example.com"); err == nil {
		t.Error("an agent of another CA is accepted")
	}
	eventually(t, "the ConfigMap", func() error {
		m, err := hub.CoreV1().ConfigMaps(namespace).Get(t.Context(), pki.ConfigMap, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if m.Data["address"] != "tunnel.example.com:8132" || m.Data["ca.crt"] != string(a.Bundle()) {
			return fmt.Errorf("it says %v", m.Data)
		}
		return nil
	})
	if second := keep(t, hub, nil); second.Serving() == nil || !second.Serving().Equal(k.Serving()) || !second.Authority().Certificate().Equal(a.Certificate()) {
		t.Error("another replica serves something else")
	}
}

// TestKeeperFollows: what is put into the Secrets is served at once, and what cannot be used leaves things as they are.
func TestKeeperFollows(t *testing.T) {
	hub := fake.NewClientset()
	var trusted atomic.Pointer[x509.CertPool]
	k := keep(t, hub, nil, func(k *pki.Keeper) { k.OnTrustChange(trusted.Store) })
	secrets := hub.CoreV1().Secrets(namespace)
	first := k.Authority()
	next, err := pki.Rotate(t.Context(), secrets, first, pki.Options{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new CA", func() error {
		if !k.Authority().Certificate().Equal(next.Certificate()) || !trusted.Load().Equal(next.Pool()) {
			return fmt.Errorf("it is %s", k.Authority())
		}
		if k.Serving().CheckSignatureFrom(next.Certificate()) != nil {
			return fmt.Errorf("the serving certificate is of %s", k.Serving().Issuer)
		}
		return nil
	})
	// Both agents connect, whether or not they have heard of the new CA.
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
	// A CA that is deleted is put back: another would cut all agents off.
	if err := secrets.Delete(t.Context(), pki.CASecret, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the CA to be put back", func() error {
		a, err := pki.Load(t.Context(), secrets)
		if err != nil {
			return err
		}
		if !bytes.Equal(a.Bundle(), next.Bundle()) {
			return fmt.Errorf("it is %s", a)
		}
		return nil
	})
}

// TestKeeperRenews: with lives of seconds, an agent that is renewed in time can connect at any moment, across changes of serving pair and CA.
func TestKeeperRenews(t *testing.T) {
	hub := fake.NewClientset()
	k := keep(t, hub, func(c *pki.KeeperConfig) { c.CALifetime, c.ServingLifetime = 15*time.Second, 5*time.Second })
	servings, authorities := map[string]bool{}, map[string]bool{}
	var pair tls.Certificate
	var trust *x509.CertPool
	for began := time.Now(); len(authorities) < 3 || len(servings) < 6; {
		if time.Since(began) > 2*patience {
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
		time.Sleep(10 * time.Millisecond)
	}
}

// TestKeeperLeavesTheUsersOwn: a CA and a serving pair that the gateway did not make are used, and never changed.
func TestKeeperLeavesTheUsersOwn(t *testing.T) {
	a, err := pki.NewAuthority(3 * time.Second) // due at once, if it were the gateway's
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
	k := keep(t, hub, nil)
	if err := connect(k, a.Pool(), agent(t, a, 0), "own.example.com"); err != nil {
		t.Error(err)
	}
	eventually(t, "the end of the CA", func() error {
		if time.Now().Before(a.Certificate().NotAfter) {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	for _, action := range hub.Actions() {
		if verb := action.GetVerb(); action.GetResource().Resource == "secrets" && verb != "get" && verb != "list" && verb != "watch" {
			t.Errorf("%s of a Secret", verb)
		}
	}
	// It is not put back either, when its owner deletes it: the gateway's own would be in the way of the next.
	secrets := hub.CoreV1().Secrets(namespace)
	if err := secrets.Delete(t.Context(), pki.CASecret, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	deleted := len(hub.Actions())
	eventually(t, "the keeper to look", func() error {
		for _, action := range hub.Actions()[deleted:] {
			if get, ok := action.(clienttesting.GetAction); ok && action.GetVerb() == "get" && get.GetName() == pki.CASecret {
				return nil
			}
		}
		return fmt.Errorf("it has not")
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
			return fmt.Errorf("it is %s", now)
		}
		return nil
	})
}
