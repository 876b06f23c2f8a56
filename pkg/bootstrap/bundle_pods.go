// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// Bounds of the log of one container.
const (
	maxLogLines = 5000
	maxLogBytes = 4 << 20
)

// readLogs reads the end of the logs of the gateway's Pods.
func (c *collection) readLogs(ctx context.Context) string {
	read := 0
	for _, pod := range c.pods {
		for _, status := range pod.Status.ContainerStatuses {
			read += c.readLog(ctx, &pod, status.Name, false)
			if status.RestartCount > 0 {
				read += c.readLog(ctx, &pod, status.Name, true)
			}
		}
	}
	return fmt.Sprintf("%d logs of %d Pods", read, len(c.pods))
}

// readLog returns how many logs it has added, 1 or 0.
func (c *collection) readLog(ctx context.Context, pod *corev1.Pod, container string, previous bool) int {
	ctx, cancel := c.within(ctx)
	defer cancel()
	file := fmt.Sprintf("logs/%s/%s.log", pod.Name, container)
	if previous {
		file = fmt.Sprintf("logs/%s/%s.previous.log", pod.Name, container)
	}
	// Not DoRaw, whose errors lack what the API server says.
	stream, err := c.hub.kube.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{
		Container: container, Previous: previous, Timestamps: true, TailLines: ptr.To[int64](maxLogLines), LimitBytes: ptr.To[int64](maxLogBytes),
	}).Stream(ctx)
	if err != nil {
		c.miss(file, err)
		return 0
	}
	text, err := io.ReadAll(io.LimitReader(stream, maxLogBytes))
	_ = stream.Close() // it was read
	if err != nil {
		c.miss(file, err)
		return 0
	}
	c.put(file, string(text))
	return 1
}

// readAgents reads the agents of the clusters that answer. Why the others do not answer is in what
// doctor found out.
func (c *collection) readAgents(ctx context.Context) string {
	var group errgroup.Group
	group.SetLimit(c.o.parallel)
	var found atomic.Int32
	for _, d := range c.diagnoses {
		if !slices.ContainsFunc(d.Findings, func(f Finding) bool { return f.Stage == StageCredential && f.State == OK }) {
			continue
		}
		group.Go(func() error {
			agents, err := c.readAgent(ctx, d.Cluster)
			c.miss("the agent of cluster "+d.Cluster, err)
			if len(agents) > 0 {
				c.putObjects("clusters/"+d.Cluster+"/agent.yaml", agents...)
				found.Add(1)
			}
			return nil
		})
	}
	_ = group.Wait() // no errors
	return fmt.Sprintf("those in %d clusters", found.Load())
}

// readAgent returns the Deployments, the Pods and the Events in the namespace of a cluster's agent.
func (c *collection) readAgent(ctx context.Context, name string) ([]any, error) {
	ctx, cancel := c.within(ctx)
	defer cancel()
	cluster, err := throughGateway(c.hub, name)
	if err != nil {
		return nil, err
	}
	var all []any
	deployments, err := cluster.kube.AppsV1().Deployments(registration.AgentNamespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for _, d := range deployments.Items {
		d.APIVersion, d.Kind = "apps/v1", "Deployment"
		all = append(all, &d)
	}
	pods, err := cluster.kube.CoreV1().Pods(registration.AgentNamespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return all, err
	}
	for _, p := range pods.Items {
		p.APIVersion, p.Kind = "v1", "Pod"
		all = append(all, &p)
	}
	events, err := cluster.kube.CoreV1().Events(registration.AgentNamespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return all, err
	}
	for _, e := range events.Items {
		e.APIVersion, e.Kind = "v1", "Event"
		all = append(all, &e)
	}
	return all, nil
}
