// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// creators is how many objects are created in parallel.
	creators = 16
	// namespaceTimeout bounds the creation of a namespace. An interruption does not cancel it.
	namespaceTimeout = 10 * time.Second
)

// Site is a managed cluster with the objects that the workloads need. They are in namespaces that
// [Site.Clean] deletes.
type Site struct {
	// admin is the route that creates the objects.
	admin  *Route
	prefix string

	mu sync.Mutex
	// namespaces contains those that may exist. The value is false until this is certain.
	namespaces map[string]bool
	filled     map[string]bool
}

// NewSite creates nothing: a namespace is created when it is first needed. The names begin with a
// prefix that no other run has.
func NewSite(admin *Route) *Site {
	return &Site{
		admin:      admin,
		prefix:     "cluster-gateway-benchmark-" + strings.ToLower(rand.Text()[:6]),
		namespaces: map[string]bool{},
		filled:     map[string]bool{},
	}
}

// UID identifies a cluster whatever the route to it. It is the UID of the namespace kube-system.
func UID(ctx context.Context, r *Route) (string, error) {
	body, _, err := r.Do(ctx, http.MethodGet, "/api/v1/namespaces/kube-system", nil)
	if err != nil {
		return "", err
	}
	var namespace struct {
		Metadata struct {
			UID string `json:"uid"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(body, &namespace); err != nil {
		return "", err
	}
	return namespace.Metadata.UID, nil
}

// Namespace returns the name of a namespace of this run. It creates the namespace if it does not
// exist.
func (s *Site) Namespace(ctx context.Context, name string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.namespace(ctx, name)
}

func (s *Site) namespace(ctx context.Context, name string) (string, error) {
	full := s.prefix + "-" + name
	if s.namespaces[full] {
		return full, nil
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	// A canceled request may still be executed, even after Clean.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), namespaceTimeout)
	defer cancel()
	s.namespaces[full] = false
	body := fmt.Sprintf(`{"apiVersion":"v1","kind":"Namespace","metadata":{"name":%q}}`, full)
	if _, _, err := s.admin.Do(ctx, http.MethodPost, "/api/v1/namespaces", []byte(body)); err != nil {
		return "", fmt.Errorf("create the namespace %s by route %s: %w", full, s.admin.Name, err)
	}
	s.namespaces[full] = true
	return full, nil
}

// Fill creates a namespace with count ConfigMaps of about size bytes each, once. Their data cannot
// be compressed.
func (s *Site) Fill(ctx context.Context, name string, count, size int) (namespace string, err error) {
	return s.fill(ctx, name, count, func(object string) []byte { return configMap(object, size, "created") })
}

// FillText is like Fill, but the ConfigMaps contain text: manifests, which compress to about a
// tenth of their size.
func (s *Site) FillText(ctx context.Context, name string, count, size int) (namespace string, err error) {
	return s.fill(ctx, name, count, func(object string) []byte { return textConfigMap(object, size) })
}

func (s *Site) fill(ctx context.Context, name string, count int, object func(name string) []byte) (namespace string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if namespace, err = s.namespace(ctx, name); err != nil || s.filled[namespace] {
		return namespace, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(creators)
	for i := range count {
		group.Go(func() error {
			_, _, err := s.admin.Do(ctx, http.MethodPost, configMaps(namespace), object(fmt.Sprintf("object-%05d", i)))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return "", fmt.Errorf("create %d ConfigMaps in %s by route %s: %w", count, namespace, s.admin.Name, err)
	}
	s.filled[namespace] = true
	return namespace, nil
}

// Clean deletes the namespaces. It does not wait until the cluster has removed their contents.
func (s *Site) Clean(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for namespace := range s.namespaces {
		_, _, err := s.admin.Do(ctx, http.MethodDelete, "/api/v1/namespaces/"+namespace, nil)
		var status *StatusError
		if err != nil && (!errors.As(err, &status) || status.Code != http.StatusNotFound) {
			errs = append(errs, fmt.Errorf("delete the namespace %s, which still exists: %w", namespace, err))
		}
	}
	s.namespaces, s.filled = map[string]bool{}, map[string]bool{}
	return errors.Join(errs...)
}

func configMaps(namespace string) string { return "/api/v1/namespaces/" + namespace + "/configmaps" }

// configMap returns a ConfigMap of about size bytes that cannot be compressed.
func configMap(name string, size int, state string) []byte {
	random := make([]byte, size*3/4)
	_, _ = rand.Read(random) // never fails
	return fmt.Appendf(nil, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":%q},"data":{"state":%q,"filler":%q}}`,
		name, state, base64.StdEncoding.EncodeToString(random))
}

// textConfigMap returns a ConfigMap that contains about size bytes of manifests.
func textConfigMap(name string, size int) []byte {
	var text strings.Builder
	for text.Len() < size {
		app := strings.ToLower(rand.Text()[:8])
		fmt.Fprintf(&text, `\napiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: %[1]s\n  namespace: %[2]s\n  labels:\n    app.kubernetes.io/name: %[1]s\n`+
			`spec:\n  replicas: 2\n  template:\n    spec:\n      containers:\n      - name: main\n        image: registry.example/%[1]s:v1\n`+
			`        env:\n        - name: TOKEN_OF_%[1]s\n          value: %[3]s\n---`, app, name, rand.Text())
	}
	return fmt.Appendf(nil, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":%q},"data":{"manifests":"%s"}}`, name, text.String())
}
