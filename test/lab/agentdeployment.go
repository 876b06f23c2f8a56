// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// AgentDeployment runs the agent of a Deployment like a cluster would, but as a process, and always
// with one replica. If the annotations of the Pod template change, it starts a new agent. When that
// is ready, it stops the old one, and kills it after its grace period (maxSurge 1, maxUnavailable
// 0). It is safe for concurrent use.
type AgentDeployment struct {
	lab             *Lab
	cluster         *Cluster
	namespace, name string
	stop            context.CancelFunc
	done            chan struct{}

	mu      sync.Mutex
	rolls   int
	current *Agent
	err     error
}

// deploymentInterval is how often the Deployment is read.
const deploymentInterval = 200 * time.Millisecond

// RunAgentDeployment runs the agents of a Deployment until Stop. The Deployment may be created
// later.
func (l *Lab) RunAgentDeployment(c *Cluster, namespace, name string) *AgentDeployment {
	ctx, stop := context.WithCancel(context.Background())
	d := &AgentDeployment{lab: l, cluster: c, namespace: namespace, name: name, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(d.done)
		err := d.run(ctx)
		d.mu.Lock()
		d.err = errors.Join(d.err, err)
		d.mu.Unlock()
	}()
	return d
}

// Rolls returns how often the agent has been replaced.
func (d *AgentDeployment) Rolls() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rolls
}

// Agent returns the current agent, or nil if there is none.
func (d *AgentDeployment) Agent() *Agent {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.current
}

// Stop stops all agents, and returns the errors that occurred.
func (d *AgentDeployment) Stop() error {
	d.stop()
	<-d.done
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

func (d *AgentDeployment) run(ctx context.Context) error {
	var leaving sync.WaitGroup
	defer leaving.Wait()
	defer func() {
		if a := d.Agent(); a != nil {
			d.fail(a.Kill())
		}
	}()
	var running map[string]string
	for count := 0; ; {
		deployment, err := d.cluster.client.AppsV1().Deployments(d.namespace).Get(ctx, d.name, metav1.GetOptions{})
		switch {
		case ctx.Err() != nil:
			return nil
		case apierrors.IsNotFound(err):
		case err != nil:
			return err
		case d.Agent() == nil || !maps.Equal(running, deployment.Spec.Template.Annotations):
			count++
			agent, err := d.lab.StartAgentPod(ctx, d.cluster, d.namespace, d.name, fmt.Sprintf("%s-%s-%d", d.cluster.Name(), d.name, count))
			if err == nil {
				err = agent.WaitReady(ctx)
			}
			switch {
			case ctx.Err() != nil:
				if agent != nil {
					return agent.Kill()
				}
				return nil
			case err != nil:
				return err
			}
			running = deployment.Spec.Template.Annotations
			if old := d.replace(agent); old != nil {
				leaving.Go(func() { d.end(ctx, old, deployment) })
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(deploymentInterval):
		}
	}
}

// replace sets the current agent, and returns the previous one.
func (d *AgentDeployment) replace(next *Agent) (old *Agent) {
	d.mu.Lock()
	defer d.mu.Unlock()
	old, d.current = d.current, next
	if old != nil {
		d.rolls++
	}
	return old
}

// end stops an agent as a kubelet stops the Pod when it is deleted.
func (d *AgentDeployment) end(ctx context.Context, old *Agent, deployment *appsv1.Deployment) {
	d.fail(old.Drain())
	grace := time.Duration(ptr.Deref(deployment.Spec.Template.Spec.TerminationGracePeriodSeconds, 30)) * time.Second
	select {
	case <-ctx.Done():
	case <-old.Done():
	case <-time.After(grace):
	}
	d.fail(old.Kill())
}

func (d *AgentDeployment) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = errors.Join(d.err, err)
}
