// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"testing"

	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/component-base/metrics/legacyregistry"
)

// TestLeaderMetric: the metric says that this replica leads while its tasks run.
func TestLeaderMetric(t *testing.T) {
	running := make(chan struct{})
	l := &leader{
		client: fake.NewClientset(), namespace: "gateway", elect: true, wait: func(context.Context) bool { return true },
		tasks: []task{{"a task", func(ctx context.Context) error { close(running); <-ctx.Done(); return ctx.Err() }}},
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- l.run(ctx) }()
	<-running
	if got := leads(t); got != 1 {
		t.Errorf("the metric of the leader is %v", got)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// leads returns the value of the metric, or -1.
func leads(t *testing.T) float64 {
	t.Helper()
	families, err := legacyregistry.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "leader_election_master_status" {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, label := range m.GetLabel() {
				if label.GetName() == "name" && label.GetValue() == leaseName {
					return m.GetGauge().GetValue()
				}
			}
		}
	}
	return -1
}
