// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"testing"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// storedClusters are the clusters of a Store.
type storedClusters struct {
	all    map[string]*cluster.Cluster
	synced bool
}

func (c *storedClusters) Get(name string) (*cluster.Cluster, bool) {
	found, ok := c.all[name]
	return found, ok
}
func (c *storedClusters) HasSynced() bool { return c.synced }

func TestAgentAcceptance(t *testing.T) {
	t.Parallel()
	authority, err := pki.NewAuthority(0)
	if err != nil {
		t.Fatal(err)
	}
	_, cert, err := registration.IssueAgentPair(authority, "edge", 24*time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	issued := pki.IssuedAt(cert)
	later := func(d time.Duration) func() time.Time { return func() time.Time { return issued.Add(d) } }
	for _, test := range []struct {
		name string
		// since is that of the registered cluster, or nil.
		since *time.Time
		// removed is when a cluster of the name was removed, after the certificate was issued.
		removed *time.Duration
		now     time.Duration
		loading bool
		want    error
	}{
		{"registered", &time.Time{}, nil, 100 * time.Hour, false, nil},
		{"registered before", new(issued.Add(-time.Hour)), nil, 0, false, nil},
		{"revoked", new(issued.Add(time.Hour)), nil, 0, false, registration.ErrRevoked},
		{"a registration is under way", nil, nil, time.Minute, false, nil},
		{"never registered", nil, nil, 61 * time.Minute, false, errNotRegistered},
		{"removed", nil, new(time.Minute), 2 * time.Minute, false, errNotRegistered},
		{"removed before", nil, new(-time.Minute), 2 * time.Minute, false, nil},
		{"the clusters are not known yet", nil, nil, 100 * time.Hour, true, nil},
	} {
		clusters := &storedClusters{all: map[string]*cluster.Cluster{}, synced: !test.loading}
		a := &agentAcceptance{clusters: clusters, removed: map[string]time.Time{}}
		if test.removed != nil {
			a.now = later(*test.removed)
			a.changed("edge", nil)
		}
		a.now = later(test.now)
		if test.since != nil {
			clusters.all["edge"] = &cluster.Cluster{Name: "edge", AgentCertificatesSince: *test.since}
		}
		if err := a.accept("edge", cert); !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
	}
	t.Run("memory", func(t *testing.T) {
		a := &agentAcceptance{clusters: &storedClusters{}, removed: map[string]time.Time{}}
		for i, name := range []string{"a", "b", "c"} {
			a.now = later(time.Duration(i) * 2 * registrationTime)
			a.changed(name, nil)
		}
		if len(a.removed) != 1 {
			t.Errorf("it remembers %v", a.removed)
		}
	})
}
