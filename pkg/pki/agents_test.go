// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package pki_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/oam-dev/cluster-gateway/pkg/pki"
)

const tunnelHost = "tunnel.example.com"

// withAgentsCA is the configuration of this version. Without it, a Keeper does what earlier
// versions do: one CA signs everything.
func withAgentsCA(c *pki.KeeperConfig) { c.AgentsCASecret = pki.AgentsCASecret }

func short(c *pki.KeeperConfig) { c.CALifetime, c.ServingLifetime = 15*time.Second, 5*time.Second }

func secretOf(t *testing.T, hub *fake.Clientset, name string) *corev1.Secret {
	t.Helper()
	s, err := hub.CoreV1().Secrets(namespace).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// agentsAuthority is the CA of agents, with its key, as somebody has it who reads its Secret.
func agentsAuthority(t *testing.T, hub *fake.Clientset) *pki.Authority {
	t.Helper()
	a, err := pki.FromSecret(secretOf(t, hub, pki.AgentsCASecret))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func annotate(t *testing.T, hub *fake.Clientset, value any) {
	t.Helper()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{pki.AnnotationTunnelCA: value}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hub.CoreV1().Secrets(namespace).Patch(t.Context(), pki.AgentsCASecret, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// A replica of this version and one of an earlier version, which knows one CA, accept the agents of
// each other. So does a command that has only the published bundle.
func TestEarlierVersionsVerifyAgents(t *testing.T) { inFakeTime(t, testEarlierVersionsVerifyAgents) }

func testEarlierVersionsVerifyAgents(t *testing.T) {
	hub := fake.NewClientset()
	earlier := runKeeper(t, hub, nil)
	before := agent(t, earlier.Authority(), 0)
	current := runKeeper(t, hub, withAgentsCA)
	if current.Authority().Agents() == nil {
		t.Fatal("there is no CA of agents")
	}
	now := agent(t, current.Authority(), 0)
	if now.Leaf.CheckSignatureFrom(current.Authority().Agents()) != nil {
		t.Error("the CA of agents did not issue the certificate")
	}
	loaded, err := pki.Load(t.Context(), hub.CoreV1().Secrets(namespace))
	if err != nil {
		t.Fatal(err)
	}
	byCommand := agent(t, loaded, 0)
	if byCommand.Leaf.CheckSignatureFrom(current.Authority().Agents()) != nil {
		t.Error("what reads the CA from the hub issues from another one")
	}
	if !current.Authority().IssuedByTunnelCA(before.Leaf) || current.Authority().IssuedByTunnelCA(now.Leaf) {
		t.Error("the certificates are not told apart")
	}
	for replica, k := range map[string]*pki.Keeper{"earlier": earlier, "current": current} {
		for name, pair := range map[string]tls.Certificate{"before": before, "now": now, "from the hub": byCommand} {
			// All trust what is published, which is the same as ever.
			if err := connect(k, earlier.Authority().Pool(), pair, tunnelHost); err != nil {
				t.Errorf("%s replica, agent with a certificate %s: %v", replica, name, err)
			}
		}
	}
	if !bytes.Equal(current.Authority().Bundle(), earlier.Authority().Bundle()) {
		t.Error("agents get another bundle")
	}
	if invitation, key, err := current.Authority().IssueInvitation("edge-1", time.Hour); err != nil {
		t.Error(err)
	} else if _, pair := leaf(t, invitation, key); connect(earlier, earlier.Authority().Pool(), pair, tunnelHost) != nil ||
		pair.Leaf.CheckSignatureFrom(current.Authority().Agents()) != nil {
		t.Error("the certificate of an invitation is not from the CA of agents, or an earlier version refuses it")
	}
}

// handshake connects to a TLS server with the pair, as an agent does that trusts the CAs.
func handshake(t *testing.T, pair tls.Certificate, trusted *x509.CertPool) error {
	t.Helper()
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = tls.Server(server, &tls.Config{Certificates: []tls.Certificate{pair}}).Handshake() //nolint:gosec // any version
		_ = server.Close()
	}()
	err := tls.Client(client, &tls.Config{RootCAs: trusted, ServerName: tunnelHost}).Handshake() //nolint:gosec // any version
	_ = client.Close()
	<-served
	return err
}

// No certificate serves as one of the other kind, not even one that somebody issues who has the key
// of the CA of agents.
func TestServingAndAgentsAreApart(t *testing.T) { inFakeTime(t, testServingAndAgentsAreApart) }

func testServingAndAgentsAreApart(t *testing.T) {
	hub := fake.NewClientset()
	k := runKeeper(t, hub, withAgentsCA)
	trusted := k.Authority().Pool()
	cert, key := k.Pair()
	_, serving := leaf(t, cert, key)
	if err := handshake(t, serving, trusted); err != nil {
		t.Fatalf("the serving certificate: %v", err)
	}
	if err := connect(k, trusted, agent(t, k.Authority(), 0), tunnelHost); err != nil {
		t.Fatalf("an agent: %v", err)
	}
	if err := connect(k, trusted, serving, tunnelHost); err == nil {
		t.Error("the serving certificate was accepted as that of an agent")
	}
	var unknown x509.CertificateInvalidError
	stolen, err := agentsFromKey(t, hub)
	if err != nil {
		t.Fatal(err)
	}
	if err := handshake(t, stolen, trusted); !errors.As(err, &unknown) || unknown.Reason != x509.IncompatibleUsage {
		t.Errorf("a serving certificate from the CA of agents: %v", err)
	}
	if err := connect(k, trusted, stolen, tunnelHost); err == nil {
		t.Error("it was accepted as that of an agent")
	}
	// The name is that of the server: only the usage of the certificate is wrong.
	cert, key, err = k.Authority().IssueAgent(tunnelHost, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, pair := leaf(t, cert, key)
	if err := handshake(t, pair, trusted); err == nil {
		t.Error("the certificate of an agent was accepted as a serving certificate")
	}
	if err := verify(parsed(t, cert), trusted, x509.ExtKeyUsageServerAuth, ""); err == nil {
		t.Error("the certificate of an agent verifies for a server")
	}
	if err := verify(parsed(t, cert), k.Authority().AgentPool(), x509.ExtKeyUsageServerAuth, ""); err == nil {
		t.Error("the certificate of an agent verifies for a server by its own CA")
	}
}

// agentsFromKey issues a serving certificate from the CA of agents.
func agentsFromKey(t *testing.T, hub *fake.Clientset) (tls.Certificate, error) {
	t.Helper()
	cert, key, err := agentsAuthority(t, hub).IssueServing([]string{tunnelHost}, 0)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(cert, key)
}

func parsed(t *testing.T, text []byte) []*x509.Certificate {
	t.Helper()
	certs, err := pki.ParseCertificates(text)
	if err != nil {
		t.Fatal(err)
	}
	return certs
}

// The operator ends the time in which certificates from the tunnel's CA are accepted, and can begin
// it again. Each replica follows at once.
func TestRefuseTunnelCA(t *testing.T) { inFakeTime(t, testRefuseTunnelCA) }

func testRefuseTunnelCA(t *testing.T) {
	hub := fake.NewClientset()
	before := agent(t, runKeeper(t, hub, nil).Authority(), 0)
	var trusted atomic.Pointer[x509.CertPool]
	k := runKeeper(t, hub, withAgentsCA, func(k *pki.Keeper) { k.OnTrustChange(trusted.Store) })
	now, roots := agent(t, k.Authority(), 0), k.Authority().Pool()
	for _, step := range []struct {
		value    any
		accepted bool
	}{{pki.RefuseTunnelCA, false}, {"other", true}, {pki.RefuseTunnelCA, false}, {nil, true}} {
		annotate(t, hub, step.value)
		eventually(t, fmt.Sprintf("annotation %v", step.value), func() error {
			if err := connect(k, roots, before, tunnelHost); (err == nil) != step.accepted {
				return fmt.Errorf("an agent with a certificate from the tunnel's CA: %w", err)
			}
			if err := verify([]*x509.Certificate{before.Leaf}, trusted.Load(), x509.ExtKeyUsageClientAuth, ""); (err == nil) != step.accepted {
				return fmt.Errorf("its open stream: %w", err)
			}
			return nil
		})
		if err := connect(k, roots, now, tunnelHost); err != nil {
			t.Errorf("annotation %v, an agent with a certificate from the CA of agents: %v", step.value, err)
		}
	}
	// The CA that is restored and the one that follows keep the decision.
	annotate(t, hub, pki.RefuseTunnelCA)
	eventually(t, "the annotation", func() error {
		if connect(k, roots, before, tunnelHost) == nil {
			return errors.New("still accepted")
		}
		return nil
	})
	was := k.Authority().Agents()
	if err := hub.CoreV1().Secrets(namespace).Delete(t.Context(), pki.AgentsCASecret, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the restored CA of agents", func() error {
		s, err := hub.CoreV1().Secrets(namespace).Get(t.Context(), pki.AgentsCASecret, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if s.Annotations[pki.AnnotationTunnelCA] != pki.RefuseTunnelCA || !parsed(t, s.Data["tls.crt"])[0].Equal(was) {
			return errors.New("it is another one, or accepts the tunnel's CA")
		}
		return nil
	})
	next, err := agentsAuthority(t, hub).Rotated(0)
	if err != nil {
		t.Fatal(err)
	}
	if err := verify([]*x509.Certificate{before.Leaf}, next.AgentPool(), x509.ExtKeyUsageClientAuth, ""); err == nil {
		t.Error("the next CA of agents accepts the certificate")
	}
}

// While both CAs and the serving certificate are replaced again and again, an agent that is renewed
// in time can connect at any moment to replicas of this version and of an earlier one. An agent is
// renewed before the CA of its certificate ends.
func TestKeeperRenewsAgentsCA(t *testing.T) { inFakeTime(t, testKeeperRenewsAgentsCA) }

func testKeeperRenewsAgentsCA(t *testing.T) {
	hub := fake.NewClientset()
	k := runKeeper(t, hub, func(c *pki.KeeperConfig) { short(c); withAgentsCA(c) })
	earlier := follow(t, hub)
	cas := map[string]bool{}
	var pair tls.Certificate
	var trust *x509.CertPool
	var bundle []byte
	for began := time.Now(); len(cas) < 4; time.Sleep(150 * time.Millisecond) {
		if time.Since(began) > 10*time.Minute {
			t.Fatalf("%d CAs of agents", len(cas))
		}
		a := k.Authority()
		cas[a.Agents().SerialNumber.String()] = true
		// As pkg/rotation does: also when the bundle changes.
		if pair.Leaf == nil || time.Now().After(pki.RenewAt(pair.Leaf)) || !bytes.Equal(bundle, a.Bundle()) {
			pair, trust, bundle = agent(t, a, 6*time.Second), a.Pool(), a.Bundle()
			if err := verify(chainOf(t, pair), trust, x509.ExtKeyUsageClientAuth, ""); err != nil {
				t.Fatalf("a command would not accept the new certificate: %v", err)
			}
			if n := len(pair.Certificate); n > 6 {
				t.Fatalf("a chain of %d certificates", n)
			}
		}
		for name, k := range map[string]*pki.Keeper{"current": k, "earlier": earlier} {
			if err := connect(k, trust, pair, tunnelHost); err != nil {
				t.Fatalf("after %s, %d CAs of agents, %s replica: %v", time.Since(began), len(cas), name, err)
			}
		}
	}
	// Whoever trusts only the CA of agents accepts the successor's certificates, and the other way
	// around: a replica that is late refuses nobody, even if the tunnel's CA is refused.
	old := agentsAuthority(t, hub)
	next, err := old.Rotated(0)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string][2]*pki.Authority{"late replica": {next, old}, "early replica": {old, next}} {
		if err := verify(chainOf(t, agent(t, c[0], 0)), c[1].Pool(), x509.ExtKeyUsageClientAuth, ""); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if cert, _, err := next.IssueServing([]string{tunnelHost}, 0); err != nil || verify(parsed(t, cert), next.Pool(), x509.ExtKeyUsageServerAuth, tunnelHost) == nil {
		t.Errorf("the successor issues serving certificates that are valid: %v", err)
	}
}

func chainOf(t *testing.T, pair tls.Certificate) []*x509.Certificate {
	t.Helper()
	var chain []*x509.Certificate
	for _, der := range pair.Certificate {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, cert)
	}
	return chain
}

// follow runs a Keeper as a replica of an earlier version does that is not the leader.
func follow(t *testing.T, hub *fake.Clientset) *pki.Keeper {
	t.Helper()
	k := pki.NewKeeper(pki.KeeperConfig{Client: hub, Namespace: namespace, Hosts: []string{tunnelHost}})
	done := make(chan error, 1)
	go func() { done <- k.Follow(t.Context()) }()
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	eventually(t, "certificates", k.Ready)
	return k
}

// If the CA of agents cannot be used, the tunnel's CA issues the certificates of agents, and no
// agent is refused.
func TestWithoutAgentsCA(t *testing.T) {
	foreign, err := authority(t).Secret()
	if err != nil {
		t.Fatal(err)
	}
	foreign.Namespace, foreign.Name = namespace, pki.AgentsCASecret
	unmanaged := foreign.DeepCopy()
	unmanaged.Labels = nil
	broken := foreign.DeepCopy()
	broken.Data["tls.key"] = []byte("x")
	for name, c := range map[string]struct {
		secret    *corev1.Secret
		forbidden bool
	}{
		"not for clients only":             {secret: foreign},
		"not the gateway's own":            {secret: unmanaged},
		"invalid":                          {secret: broken},
		"no right to read it":              {forbidden: true},
		"no right to read an existing one": {secret: foreign, forbidden: true},
	} {
		t.Run(name, func(t *testing.T) {
			inFakeTime(t, func(t *testing.T) {
				hub := fake.NewClientset()
				if c.secret != nil {
					hub = fake.NewClientset(c.secret.DeepCopy())
				}
				if c.forbidden {
					hub.PrependReactor("*", "secrets", func(action clienttesting.Action) (bool, runtime.Object, error) {
						if get, ok := action.(clienttesting.GetAction); ok && get.GetName() == pki.AgentsCASecret {
							return true, nil, apierrors.NewForbidden(corev1.Resource("secrets"), pki.AgentsCASecret, nil)
						}
						return false, nil, nil
					})
				}
				k := runKeeper(t, hub, withAgentsCA)
				loaded, err := pki.Load(t.Context(), hub.CoreV1().Secrets(namespace))
				if err != nil {
					t.Fatal(err)
				}
				for _, a := range []*pki.Authority{k.Authority(), loaded} {
					pair := agent(t, a, 0)
					if pair.Leaf.CheckSignatureFrom(a.Certificate()) != nil {
						t.Error("another CA than the tunnel's has issued the certificate")
					}
					if err := connect(k, a.Pool(), pair, tunnelHost); err != nil {
						t.Error(err)
					}
				}
			})
		})
	}
}

// A hub that does not answer is not a reason to go on without the CA of agents: its decision on the
// tunnel's CA is not known.
func TestAgentsCANotReadYet(t *testing.T) { inFakeTime(t, testAgentsCANotReadYet) }

func testAgentsCANotReadYet(t *testing.T) {
	hub := fake.NewClientset()
	var fails atomic.Bool
	fails.Store(true)
	hub.PrependReactor("get", "secrets", func(action clienttesting.Action) (bool, runtime.Object, error) {
		if get, ok := action.(clienttesting.GetAction); ok && get.GetName() == pki.AgentsCASecret && fails.Load() {
			return true, nil, apierrors.NewTimeoutError("the hub is busy", 1)
		}
		return false, nil, nil
	})
	k := pki.NewKeeper(pki.KeeperConfig{Client: hub, Namespace: namespace, Hosts: []string{tunnelHost}, AgentsCASecret: pki.AgentsCASecret})
	if err := k.LoadOrCreate(t.Context()); err == nil || k.Ready() == nil {
		t.Errorf("it is ready: %v", err)
	}
	if _, err := pki.Load(t.Context(), hub.CoreV1().Secrets(namespace)); err == nil {
		t.Error("the CA was loaded without that of agents")
	}
	fails.Store(false)
	if err := k.LoadOrCreate(t.Context()); err != nil || k.Ready() != nil || k.Authority().Agents() == nil {
		t.Errorf("it is not ready: %v, %v", err, k.Ready())
	}
}

// A tunnel's CA that the user provides issues the certificates of agents itself, also if there is a
// CA of agents from before, and even if that refuses the tunnel's CA.
func TestUserProvidedCAIssuesAgents(t *testing.T) { inFakeTime(t, testUserProvidedCAIssuesAgents) }

func testUserProvidedCAIssuesAgents(t *testing.T) {
	hub := fake.NewClientset()
	k := runKeeper(t, hub, withAgentsCA)
	managed := k.Authority()
	now := agent(t, managed, 0)
	annotate(t, hub, pki.RefuseTunnelCA)
	own, err := authority(t).Secret()
	if err != nil {
		t.Fatal(err)
	}
	// As docs/operating.md says: both CAs are trusted for a while.
	for _, bundle := range [][]byte{append(bytes.Clone(own.Data["ca.crt"]), managed.Bundle()...), own.Data["ca.crt"]} {
		s := secretOf(t, hub, pki.CASecret)
		s.Labels, s.Data = nil, map[string][]byte{"tls.crt": own.Data["tls.crt"], "tls.key": own.Data["tls.key"], "ca.crt": bundle}
		if _, err := hub.CoreV1().Secrets(namespace).Update(t.Context(), s, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the user's CA", func() error {
			if a := k.Authority(); !bytes.Equal(a.Bundle(), bundle) {
				return fmt.Errorf("the CA is %s", a)
			}
			return nil
		})
		pair := agent(t, k.Authority(), 0)
		if k.Authority().Agents() != nil || pair.Leaf.CheckSignatureFrom(k.Authority().Certificate()) != nil {
			t.Error("another CA has issued the certificate")
		}
		both := managed.Pool()
		both.AddCert(k.Authority().Certificate())
		if err := connect(k, both, pair, tunnelHost); err != nil {
			t.Error(err)
		}
		keeps := len(parsed(t, bundle)) > 1
		if err := connect(k, both, now, tunnelHost); (err == nil) != keeps {
			t.Errorf("the tunnel's earlier CA is trusted: %v. An agent of it: %v", keeps, err)
		}
	}
}
