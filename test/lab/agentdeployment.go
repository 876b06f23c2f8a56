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

// AgentDeployment runs the agent of a Deployment the way a cluster would, with
// processes for Pods, of which there is one whatever the Deployment says: when
// the annotations of its template change, another agent is started, and when
// that is ready the old one is told to end, and killed when its grace period is
// over (maxSurge 1, maxUnavailable 0). It is safe for concurrent use.
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

// deploymentInterval is how often a Deployment is looked at.
const deploymentInterval = 200 * time.Millisecond

// RunAgentDeployment runs the agents of a Deployment, which need not exist yet,
// until Stop.
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

// Rolls is how often the agent has been replaced.
func (d *AgentDeployment) Rolls() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rolls
}

// Agent is the one that was started last; nil while there is none.
func (d *AgentDeployment) Agent() *Agent {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.current
}

// Stop ends all agents, and returns what went wrong meanwhile.
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

// replace makes an agent the current one, and returns the one before.
func (d *AgentDeployment) replace(next *Agent) (old *Agent) {
	d.mu.Lock()
	defer d.mu.Unlock()
	old, d.current = d.current, next
	if old != nil {
		d.rolls++
	}
	return old
}

// end does what a kubelet does with a Pod that is deleted.
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
