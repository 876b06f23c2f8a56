// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// createMany creates ConfigMaps directly, with a label to find them by.
func (s *site) createMany(ctx context.Context, t *testing.T, label string, n int, data map[string]string) {
	t.Helper()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(16)
	for i := range n {
		group.Go(func() error {
			_, err := s.target.Client().CoreV1().ConfigMaps(s.namespace).Create(ctx, &corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%04d", label, i), Labels: map[string]string{"set": label}}, Data: data,
			}, metav1.CreateOptions{})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), caseTimeout)
		defer cancel()
		err := s.target.Client().CoreV1().ConfigMaps(s.namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "set=" + label})
		if err != nil {
			t.Error(err)
		}
	})
}

func testChunkedList(ctx context.Context, t *testing.T, s *site) {
	const n = 25
	s.createMany(ctx, t, "chunk", n, nil)
	r := s.kubectl.try(ctx, t, "", "get", "configmaps", "-l", "set=chunk", "--chunk-size=10", "-o", "name", "-v=6")
	if r.code != 0 || strings.Count(r.stdout, "configmap/chunk-") != n {
		t.Errorf("want %d names: %s", n, r)
	}
	if requests := len(regexp.MustCompile(`/configmaps\?[^ ]*limit=10`).FindAllString(r.stderr, -1)); requests != 3 {
		t.Errorf("want 3 requests, there were %d: %s", requests, r)
	}
}

// testInformer checks that an informer receives every object once, in the order in which the
// cluster stored them.
func testInformer(ctx context.Context, t *testing.T, s *site) {
	const before, n = 10, 1000
	s.createMany(ctx, t, "before", before, nil)
	config := rest.CopyConfig(s.config)
	var streamed atomic.Bool
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripperFunc(func(req *http.Request) (*http.Response, error) {
			if req.URL.Query().Get("sendInitialEvents") == "true" {
				streamed.Store(true)
			}
			return next.RoundTrip(req)
		})
	})
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	var added, other atomic.Int64
	seen := make(chan *corev1.ConfigMap, 2*n)
	ctx, cancel := context.WithCancel(ctx)
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(s.namespace))
	informer := factory.Core().V1().ConfigMaps().Informer()
	handler, err := informer.AddEventHandler(cache.ResourceEventHandlerDetailedFuncs{
		AddFunc: func(obj any, _ bool) {
			added.Add(1)
			if o := obj.(*corev1.ConfigMap); o.Labels["set"] == "informed" {
				seen <- o
			}
		},
		UpdateFunc: func(any, any) { other.Add(1) },
		DeleteFunc: func(any) { other.Add(1) },
	})
	if err != nil {
		t.Fatal(err)
	}
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	defer cancel()
	if !cache.WaitForCacheSync(ctx.Done(), handler.HasSynced) {
		t.Fatal("the informer does not sync")
	}
	if !streamed.Load() {
		t.Error("the informer did not begin with a streaming list")
	}
	if added := added.Load(); added < before {
		t.Errorf("the informer synced with %d objects", added)
	}
	s.createMany(ctx, t, "informed", n, nil)
	names, last := map[string]bool{}, int64(0)
	for len(names) < n {
		select {
		case o := <-seen:
			version, err := strconv.ParseInt(o.ResourceVersion, 10, 64)
			if err != nil || version <= last {
				t.Fatalf("ConfigMap %s has resource version %s, the one before it %d", o.Name, o.ResourceVersion, last)
			}
			last = version
			if names[o.Name] {
				t.Fatalf("ConfigMap %s was received twice", o.Name)
			}
			names[o.Name] = true
		case <-ctx.Done():
			t.Fatalf("only %d of %d events were received", len(names), n)
		}
	}
	if len(seen) > 0 || other.Load() > 0 {
		t.Errorf("%d more additions and %d other events were received", len(seen), other.Load())
	}
}

type roundTripperFunc func(*http.Request) (*http.Response, error)

func (f roundTripperFunc) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// noise returns text that compresses badly.
func noise(size int) string {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	text := make([]byte, size)
	for i := range text {
		text[i] = letters[rand.IntN(len(letters))]
	}
	return string(text)
}

func testLargeObject(ctx context.Context, t *testing.T, s *site) {
	// A ConfigMap may have 1 MiB.
	text := noise(1<<20 - 2048)
	file := writeFile(t, "large", []byte(text))
	s.kubectl.run(ctx, t, "create", "configmap", "large", "--from-file=text="+file)
	s.wantData(ctx, t, "large", map[string]string{"text": text})
	if out := s.kubectl.run(ctx, t, "get", "configmap", "large", "-o", "jsonpath={.data.text}"); out != text {
		t.Errorf("%d bytes were received that are not the %d that were sent", len(out), len(text))
	}
	// Above the limit of the API server, the client gets the API server's own error.
	tooLarge := writeFile(t, "too-large", []byte(noise(4<<20)))
	r := s.kubectl.try(ctx, t, "", "create", "configmap", "too-large", "--from-file=text="+tooLarge)
	if r.code == 0 || !strings.Contains(r.stderr, "limit is 3145728") && !strings.Contains(r.stderr, "Too long") {
		t.Error(r)
	}
}

func testLargeList(ctx context.Context, t *testing.T, s *site) {
	s.createMany(ctx, t, "heavy", 12, map[string]string{"text": noise(900 << 10)})
	// Both lists are at the same resource version.
	now, err := s.target.Client().CoreV1().ConfigMaps(s.namespace).List(ctx, metav1.ListOptions{LabelSelector: "set=none"})
	if err != nil {
		t.Fatal(err)
	}
	list := func(client kubernetes.Interface) string {
		out, err := client.CoreV1().RESTClient().Get().Namespace(s.namespace).Resource("configmaps").SetHeader("Accept", "application/json").
			VersionedParams(&metav1.ListOptions{LabelSelector: "set=heavy", ResourceVersion: now.ResourceVersion, ResourceVersionMatch: metav1.ResourceVersionMatchExact}, metav1.ParameterCodec).
			DoRaw(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	direct, byRoute := list(s.target.Client()), list(s.client)
	if direct != byRoute || len(direct) < 10<<20 {
		t.Errorf("the cluster sends a list of %d bytes, and %d bytes by the route (the same: %t)", len(direct), len(byRoute), direct == byRoute)
	}
}

// reply is the part of a response that is compared.
type reply struct {
	code                          int
	contentType, body, retryAfter string
}

// ask sends a request with exactly this URL.
func ask(ctx context.Context, t *testing.T, config *rest.Config, method, requestURI string) reply {
	t.Helper()
	r, err := tryAsk(ctx, config, method, requestURI)
	if err != nil {
		t.Fatalf("%s %s: %v", method, requestURI, err)
	}
	return r
}

// tryAsk is like ask, for requests that may get no response or an incomplete one.
func tryAsk(ctx context.Context, config *rest.Config, method, requestURI string) (reply, error) {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return reply{}, err
	}
	req, err := http.NewRequestWithContext(ctx, method, config.Host+requestURI, nil)
	if err != nil {
		return reply{}, err
	}
	client.Timeout = 20 * time.Second
	resp, err := client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return reply{}, err
	}
	return reply{resp.StatusCode, resp.Header.Get("Content-Type"), string(body), resp.Header.Get("Retry-After")}, nil
}

// testOddQueries sends queries that are not well-formed: the gateway cannot parse them, but the
// cluster may.
func testOddQueries(ctx context.Context, t *testing.T, s *site) {
	s.createDirectly(ctx, t, "odd", nil)
	for _, query := range []string{
		"fieldSelector=metadata.name%3Dodd",
		"fieldSelector=metadata.name=odd&%zz",
		"%zz=1&fieldSelector=metadata.name=odd",
		"fieldSelector=metadata.name=odd;limit=1",
		"a;b&fieldSelector=metadata.name%3Dodd",
		"fieldSelector=%",
		"labelSelector=a+b&labelSelector=%2B",
		"limit=1&limit=x",
		"&&=&fieldSelector=metadata.name=odd&",
		"fieldSelector=metadata.name=odd&unknown=%00%ff",
	} {
		s.sameAnswer(ctx, t, "/api/v1/namespaces/"+s.namespace+"/configmaps?"+query)
	}
}

// testEscapedPaths sends paths in which an escaped character would have another meaning unescaped.
func testEscapedPaths(ctx context.Context, t *testing.T, s *site) {
	for _, path := range []string{
		"/api/v1/namespaces/" + s.namespace + "/configmaps/a%2Fb",
		"/api/v1/namespaces/" + s.namespace + "%2Fconfigmaps",
		"/api/v1/namespaces/" + s.namespace + "/configmaps/a%20b%3Fc%23d",
		"/api/v1/namespaces/" + s.namespace + "/configmaps/%252F",
		"/api/v1/namespaces/" + s.namespace + "/configmaps/",
		"/api/v1//namespaces",
	} {
		s.sameAnswer(ctx, t, path)
	}
}

// sameAnswer checks that a GET by the route gets the same response as from the cluster itself.
func (s *site) sameAnswer(ctx context.Context, t *testing.T, requestURI string) {
	t.Helper()
	direct := ask(ctx, t, s.target.RESTConfig(), http.MethodGet, requestURI)
	byRoute := ask(ctx, t, s.config, http.MethodGet, requestURI)
	// The resource version of the list is the current one.
	version := regexp.MustCompile(`"metadata":\{"resourceVersion":"\d+"`)
	direct.body, byRoute.body = version.ReplaceAllString(direct.body, ""), version.ReplaceAllString(byRoute.body, "")
	if direct != byRoute {
		t.Errorf("GET %s:\n direct: %+v\nby route: %+v", requestURI, direct, byRoute)
	}
}
