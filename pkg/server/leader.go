// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	// It exports leader_election_master_status, which says which replica is the leader.
	_ "k8s.io/component-base/metrics/prometheus/clientgo/leaderelection"
	"k8s.io/klog/v2"
)

// leaseName is the Lease that the replicas elect their leader with.
const leaseName = "cluster-gateway"

// If a leader disappears, another replica leads after leaseDuration at the latest. A leader that
// stops releases the Lease.
const (
	leaseDuration = 10 * time.Second
	renewDeadline = 7 * time.Second
	retryPeriod   = 2 * time.Second
)

// leader runs the tasks that only one replica must run.
type leader struct {
	client    kubernetes.Interface
	namespace string
	// elect is whether there is an election. Without one, this replica always leads.
	elect bool
	// wait returns false if ctx ends before the tasks can start.
	wait func(ctx context.Context) bool
	// tasks run until their context ends.
	tasks []task
}

// task is a part of the gateway that runs until its context ends.
type task struct {
	name string
	run  func(ctx context.Context) error
}

// run leads whenever this replica is elected, until ctx ends.
func (l *leader) run(ctx context.Context) error {
	if !l.elect {
		return l.runTasks(ctx)
	}
	for ctx.Err() == nil {
		if err := l.runElection(ctx); err != nil {
			return err
		}
	}
	return nil
}

// runElection waits until this replica is elected, leads, and returns when it no longer leads.
func (l *leader) runElection(ctx context.Context) error {
	lock, err := newLock(l.client, l.namespace)
	if err != nil {
		return err
	}
	electionCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	done, elected := make(chan struct{}), make(chan context.Context)
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: lock, Name: leaseName, LeaseDuration: leaseDuration, RenewDeadline: renewDeadline, RetryPeriod: retryPeriod,
		// The elector is stopped after the tasks have ended, so no other replica leads before that.
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			// The elector calls it in a goroutine that nothing waits for. So the tasks do not run in it.
			OnStartedLeading: func(leadCtx context.Context) {
				select {
				case elected <- leadCtx:
				case <-done:
				}
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return err
	}
	go func() { defer close(done); elector.Run(electionCtx) }()
	defer func() { stop(); <-done }()
	select {
	case <-ctx.Done():
		return nil
	case <-done:
		return nil
	case leadCtx := <-elected:
		klog.InfoS("This replica is the leader", "lease", leaseName)
		leadCtx, cancel := context.WithCancel(leadCtx)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		return l.runTasks(leadCtx)
	}
}

// newLock returns a lock with an identity of this process.
func newLock(client kubernetes.Interface, namespace string) (resourcelock.Interface, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("leader election requires the host name: %w", err)
	}
	return resourcelock.New(resourcelock.LeasesResourceLock, namespace, leaseName, client.CoreV1(), client.CoordinationV1(),
		resourcelock.ResourceLockConfig{Identity: host + "_" + uuid.NewString()})
}

// runTasks runs the tasks until ctx ends.
func (l *leader) runTasks(ctx context.Context) error {
	if !l.wait(ctx) {
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, t := range l.tasks {
		group.Go(func() error { return t.runNamed(ctx) })
	}
	return group.Wait()
}
