// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
)

// ContainerName is the only container of the Pods that [Cluster.RunPod] creates.
const ContainerName = "main"

// RunPod creates a Pod and waits until it runs. It creates the namespace if needed. An existing Pod
// is used as it is.
func (c *Cluster) RunPod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	pod, err := c.runPod(ctx, namespace, name)
	if err != nil {
		return nil, fmt.Errorf("run Pod %s/%s in cluster %s: %w", namespace, name, c.opts.Name, err)
	}
	return pod, nil
}

func (c *Cluster) runPod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	if err := c.EnsureNamespace(ctx, namespace); err != nil {
		return nil, err
	}
	if err := poll(ctx, func(ctx context.Context) error { return c.accountExists(ctx, namespace) }); err != nil {
		return nil, err
	}
	pods := c.client.CoreV1().Pods(namespace)
	if _, err := pods.Create(ctx, newPod(name), metav1.CreateOptions{}); ignoreExists(err) != nil {
		return nil, err
	}
	var pod *corev1.Pod
	err := poll(ctx, func(ctx context.Context) (err error) {
		if pod, err = pods.Get(ctx, name, metav1.GetOptions{}); err != nil {
			return err
		}
		if pod.Status.Phase != corev1.PodRunning {
			return fmt.Errorf("its phase is %q", pod.Status.Phase)
		}
		return nil
	})
	return pod, err
}

func newPod(name string) *corev1.Pod {
	mount := false
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			NodeName:                     NodeName,
			AutomountServiceAccountToken: &mount,
			Containers: []corev1.Container{{
				Name:  ContainerName,
				Image: "lab",
				Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}},
			}},
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		},
	}
}

// poll calls f until it returns nil. If ctx ends first, the returned error contains f's last error.
func poll(ctx context.Context, f func(context.Context) error) error {
	var last error
	err := wait.PollUntilContextTimeout(ctx, readyInterval, defaultReadyTimeout, true, func(ctx context.Context) (bool, error) {
		last = f(ctx)
		return last == nil, nil
	})
	if err == nil {
		return nil
	}
	return errors.Join(err, last)
}
