// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package clusterapi

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/klog/v2/ktesting"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/registry"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

const system = "cluster-gateway-system"

// hub is a bare API server.
var hub *lab.Cluster

func TestMain(m *testing.M) {
	labtest.MainAPIServers(m, map[string]**lab.Cluster{"hub": &hub}, func(ctx context.Context) error {
		for _, namespace := range []string{system, "prod", "test", "default"} {
			if err := hub.EnsureNamespace(ctx, namespace); err != nil {
				return err
			}
		}
		return nil
	})
}

// fixture is a hub whose kubeconfigs a Registrar follows.
type fixture struct {
	*testing.T
	ctx  context.Context
	stop func()
}

// start starts a Registrar, which follows the namespaces prod and test.
func start(ctx context.Context, t *testing.T) *fixture {
	t.Helper()
	runCtx, cancel := context.WithCancel(ctx)
	store := registry.NewStore(hub.Client(), system, cluster.ParseOptions{})
	r := NewRegistrar(Config{
		Client: hub.Client(), SecretNamespace: system, Namespaces: []string{"prod", "test"}, Selector: labels.SelectorFromSet(labels.Set{"gateway": "register"}),
		Clusters: store, Grace: 3 * time.Second, Logger: ktesting.NewLogger(t, ktesting.NewConfig()),
	})
	store.Subscribe(r.ClusterChanged)
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{store.Run, r.Run} {
		running.Go(func() {
			if err := run(runCtx); err != nil {
				t.Error(err)
			}
		})
	}
	f := &fixture{T: t, ctx: ctx, stop: sync.OnceFunc(func() { cancel(); running.Wait() })}
	t.Cleanup(f.stop)
	return f
}

// put creates or replaces a kubeconfig of Cluster API. Nil is one with a token.
func (f *fixture) put(namespace, name string, kubeconfig []byte) {
	f.Helper()
	if kubeconfig == nil {
		kubeconfig = withToken(f.T, "token-of-"+name)
	}
	secret := kubeconfigSecret(namespace, name, kubeconfig)
	secret.Labels["gateway"] = "register"
	secrets := hub.Client().CoreV1().Secrets(namespace)
	_, err := secrets.Create(f.ctx, secret, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		_, err = secrets.Update(f.ctx, secret, metav1.UpdateOptions{})
	}
	if err != nil {
		f.Fatal(err)
	}
}

func withToken(t *testing.T, token string) []byte {
	return kubeconfigOf(t, func(s *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) {
		s.CertificateAuthorityData = hub.CAPEM()
		*u = clientcmdapi.AuthInfo{Token: token}
	})
}

func (f *fixture) remove(namespace, name string) {
	f.Helper()
	if err := hub.Client().CoreV1().Secrets(namespace).Delete(f.ctx, name, metav1.DeleteOptions{}); err != nil {
		f.Fatal(err)
	}
}

// registered waits until a cluster is registered with a token, and returns its Secret.
func (f *fixture) registered(name, token string) (secret *corev1.Secret) {
	f.Helper()
	labtest.Within(f, labtest.Timeout, "cluster "+name+" to be registered", func() (err error) {
		secret, err = hub.Client().CoreV1().Secrets(system).Get(f.ctx, name, metav1.GetOptions{})
		if err == nil && string(secret.Data["token"]) != token {
			err = fmt.Errorf("its token is %q", secret.Data["token"])
		}
		return err
	})
	return secret
}

func (f *fixture) unregistered(name string) {
	f.Helper()
	labtest.Within(f, labtest.Timeout, "cluster "+name+" to be unregistered", func() error {
		_, err := hub.Client().CoreV1().Secrets(system).Get(f.ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("it is registered: %w", err)
	})
}

// event waits for an Event about a cluster.
func (f *fixture) event(name, reason string) {
	f.Helper()
	labtest.Within(f, labtest.Timeout, "an Event "+reason+" of "+name, func() error {
		list, err := hub.Client().CoreV1().Events("default").List(f.ctx, metav1.ListOptions{FieldSelector: "reason=" + reason + ",involvedObject.name=" + name})
		if err == nil && len(list.Items) == 0 {
			err = fmt.Errorf("there is none")
		}
		return err
	})
}

// TestRegistrar follows the life of kubeconfigs, of good ones and of others.
func TestRegistrar(t *testing.T) {
	f := start(t.Context(), t)
	// One that cannot be used, and Secrets that are no kubeconfigs, harm no other.
	f.put("prod", "broken", []byte("{"))
	unselected := kubeconfigSecret("prod", "unselected", withToken(t, "a"))
	authority := kubeconfigSecret("prod", "edge-1", nil)
	authority.Name, authority.Labels["gateway"] = "edge-1-ca", "register"
	for _, s := range []*corev1.Secret{unselected, authority} {
		if _, err := hub.Client().CoreV1().Secrets("prod").Create(f.ctx, s, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	f.put("prod", "edge-1", nil)
	first := f.registered("edge-1", "token-of-edge-1")
	f.event("broken", "InvalidKubeconfig")

	// A new credential replaces the old one. What others have added to the Secret stays.
	if _, err := hub.Client().CoreV1().Secrets(system).Patch(f.ctx, "edge-1", types.MergePatchType, []byte(`{"metadata":{"labels":{"env":"prod"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	f.put("prod", "edge-1", withToken(t, "renewed"))
	if s := f.registered("edge-1", "renewed"); s.UID != first.UID || s.Labels["env"] != "prod" {
		t.Errorf("the Secret was %s and is %s, its labels are %v", first.UID, s.UID, s.Labels)
	}
	f.put("prod", "edge-1", kubeconfigOf(t, func(s *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) {
		s.CertificateAuthorityData = hub.CAPEM()
		u.ClientCertificateData, u.ClientKeyData = clientPair(t)
	}))
	if s := f.registered("edge-1", ""); s.Labels[v1alpha1.LabelCredentialType] != "X509Certificate" || len(s.Data["tls.key"]) == 0 || cluster.Parse(s, cluster.ParseOptions{}).Err() != nil {
		t.Errorf("the labels are %v, the cluster is %v", s.Labels, cluster.Parse(s, cluster.ParseOptions{}).Err())
	}
	// A kubeconfig that cannot be used does not replace it.
	f.put("prod", "edge-1", []byte("{"))
	f.event("edge-1", "InvalidKubeconfig")
	if s := f.registered("edge-1", ""); len(s.Data["tls.key"]) == 0 {
		t.Error("the credential is gone")
	}
	// Cluster API writes a new kubeconfig when the old one is deleted. That is no new registration.
	f.remove("prod", "edge-1-kubeconfig")
	f.put("prod", "edge-1", withToken(t, "rewritten"))
	if s := f.registered("edge-1", "rewritten"); s.UID != first.UID {
		t.Error("the cluster was registered again")
	}
	// What the gateway has registered comes back if somebody deletes it.
	f.remove(system, "edge-1")
	labtest.Within(t, labtest.Timeout, "the Secret to come back", func() error {
		s, err := hub.Client().CoreV1().Secrets(system).Get(f.ctx, "edge-1", metav1.GetOptions{})
		if err == nil && s.UID == first.UID {
			err = fmt.Errorf("it is the previous one")
		}
		return err
	})
	// A cluster of the same name in another namespace is another cluster.
	f.put("test", "edge-1", withToken(t, "another"))
	f.event("edge-1", "NameTaken")
	f.registered("edge-1", "rewritten")
	f.remove("test", "edge-1-kubeconfig")

	f.remove("prod", "edge-1-kubeconfig")
	f.unregistered("edge-1")
	for _, name := range []string{"broken", "unselected"} {
		if _, err := hub.Client().CoreV1().Secrets(system).Get(f.ctx, name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("cluster %s: %v", name, err)
		}
	}
}

// TestRegistrarTakesNothingOver shows that a cluster that is registered by other means stays as it
// is, and is registered with the kubeconfig when its name is free.
func TestRegistrarTakesNothingOver(t *testing.T) {
	f := start(t.Context(), t)
	secrets := hub.Client().CoreV1().Secrets(system)
	for name, annotation := range map[string]string{"by-hand": "", "adopted": "prod/adopted-kubeconfig", "elsewhere": "other/elsewhere-kubeconfig"} {
		own, err := Convert(kubeconfigSecret("prod", name, withToken(t, "their-own")), system)
		if err != nil {
			t.Fatal(err)
		}
		own.Annotations[v1alpha1.AnnotationClusterAPISecret] = annotation
		if name != "elsewhere" { // a namespace that is not followed any more
			own.Labels[v1alpha1.LabelManagedBy] = "agent-bootstrap"
		}
		before, err := secrets.Create(f.ctx, own, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		f.put("prod", name, nil)
		f.event(name, "NameTaken")
		if s := f.registered(name, "their-own"); s.ResourceVersion != before.ResourceVersion {
			t.Errorf("the Secret of %s was changed", name)
		}
		f.remove("prod", name+"-kubeconfig")
		f.put("prod", name, nil)
		f.remove(system, name)
		f.registered(name, "token-of-"+name)
	}
	for _, name := range []string{"by-hand", "adopted", "elsewhere"} {
		f.remove("prod", name+"-kubeconfig")
		f.unregistered(name)
	}
}

// TestRegistrarContinues shows that what happens while no Registrar runs is made up for.
func TestRegistrarContinues(t *testing.T) {
	f := start(t.Context(), t)
	for _, name := range []string{"renewed", "deleted"} {
		f.put("prod", name, nil)
		f.registered(name, "token-of-"+name)
	}
	f.stop()
	f.put("prod", "renewed", withToken(t, "while-nobody-looked"))
	f.put("test", "new", nil)
	f.remove("prod", "deleted-kubeconfig")
	f = start(t.Context(), t)
	f.registered("renewed", "while-nobody-looked")
	f.registered("new", "token-of-new")
	f.unregistered("deleted")
	f.remove("prod", "renewed-kubeconfig")
	f.remove("test", "new-kubeconfig")
	f.unregistered("renewed")
	f.unregistered("new")
}

// clientPair returns a client certificate and its key.
func clientPair(t *testing.T) (certificate, key []byte) {
	t.Helper()
	ca, err := lab.NewCA("client")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Issue(lab.CertOptions{CN: "admin"})
	if err != nil {
		t.Fatal(err)
	}
	return pair.CertPEM, pair.KeyPEM
}
