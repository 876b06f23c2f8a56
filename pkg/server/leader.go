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
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
)

// leaseName is the Lease that replicas elect their leader by.
const leaseName = "cluster-gateway"

// A leader that is gone without a word is followed by another after leaseDuration at the latest; one that ends in order
// releases the Lease.
const (
	leaseDuration = 10 * time.Second
	renewDeadline = 7 * time.Second
	retryPeriod   = 2 * time.Second
)

// lead does what only one replica must do, whenever this one is elected, until ctx ends.
func (s *Server) lead(ctx context.Context) error {
	if !s.options.Health.LeaderElect {
		return s.duties(ctx)
	}
	for ctx.Err() == nil {
		if err := s.runForLeader(ctx); err != nil {
			return err
		}
	}
	return nil
}

// runForLeader waits to be elected, leads, and returns when it does not any more.
func (s *Server) runForLeader(ctx context.Context) error {
	lock, err := newLock(s.client, s.options.Hub.SecretNamespace)
	if err != nil {
		return err
	}
	electing, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	done, elected := make(chan struct{}), make(chan context.Context)
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: lock, Name: leaseName, LeaseDuration: leaseDuration, RenewDeadline: renewDeadline, RetryPeriod: retryPeriod,
		// The elector stops after the duties have ended.
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			// It is called on a goroutine of its own, which nobody waits for: so nothing is done on it.
			OnStartedLeading: func(leading context.Context) {
				select {
				case elected <- leading:
				case <-done:
				}
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return err
	}
	go func() { defer close(done); elector.Run(electing) }()
	defer func() { stop(); <-done }()
	select {
	case <-ctx.Done():
		return nil
	case <-done:
		return nil
	case leading := <-elected:
		klog.InfoS("This replica leads", "lease", leaseName)
		leading, cancel := context.WithCancel(leading)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		return s.duties(leading)
	}
}

// newLock identifies this process among the replicas.
func newLock(client kubernetes.Interface, namespace string) (resourcelock.Interface, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("leader election needs the host's name: %w", err)
	}
	return resourcelock.New(resourcelock.LeasesResourceLock, namespace, leaseName, client.CoreV1(), client.CoordinationV1(),
		resourcelock.ResourceLockConfig{Identity: host + "_" + uuid.NewString()})
}

// duties are what the leader does, until ctx ends.
func (s *Server) duties(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), s.store.HasSynced) {
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return part("the health of clusters", s.health.Run(ctx)) })
	group.Go(func() error { return part("the renewal of tokens", s.tokens.Run(ctx)) })
	group.Go(func() error { return part("the renewal of agents' certificates", s.agents.Run(ctx)) })
	if k := s.tunnels.keeper(); k != nil {
		group.Go(func() error { return part("the certificates of the tunnel", k.Renew(ctx)) })
	}
	if s.serving != nil {
		group.Go(func() error { return part("the serving certificate", s.serving.keeper.Renew(ctx)) })
	}
	if s.apiService != nil {
		group.Go(func() error { return part("the APIService", s.apiService.run(ctx)) })
	}
	return group.Wait()
}
