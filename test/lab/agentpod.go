// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// StartAgentPod runs the agent of a Deployment in a cluster the way a kubelet
// would, without a container: the stock agent as a process, with exactly the
// arguments, environment and Secrets of the Pod template.
func (l *Lab) StartAgentPod(ctx context.Context, c *Cluster, namespace, name, as string) (*Agent, error) {
	deployment, err := c.client.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	args, err := c.containerArgs(ctx, deployment, filepath.Join(c.dir, "pods", as))
	if err != nil {
		return nil, fmt.Errorf("starting Deployment %s/%s of cluster %s as a process: %w", namespace, name, c.opts.Name, err)
	}
	return l.StartAgent(ctx, AgentOptions{Name: as, Cluster: c, Args: args})
}

// containerArgs are those of the only container of a Deployment, with its
// environment filled in, and its Secrets as files in dir.
func (c *Cluster) containerArgs(ctx context.Context, d *appsv1.Deployment, dir string) ([]string, error) {
	pod := d.Spec.Template.Spec
	if len(pod.Containers) != 1 {
		return nil, fmt.Errorf("it has %d containers, and not one", len(pod.Containers))
	}
	container := pod.Containers[0]
	var replacements []string
	for _, variable := range container.Env {
		value, err := c.environmentValue(ctx, d.Namespace, variable)
		if err != nil {
			return nil, err
		}
		replacements = append(replacements, "$("+variable.Name+")", value)
	}
	for _, mount := range container.VolumeMounts {
		path := filepath.Join(dir, mount.Name)
		if err := c.writeVolume(ctx, d.Namespace, pod.Volumes, mount.Name, path); err != nil {
			return nil, err
		}
		replacements = append(replacements, mount.MountPath, path)
	}
	args := make([]string, len(container.Args))
	for i, arg := range container.Args {
		args[i] = strings.NewReplacer(replacements...).Replace(arg)
	}
	return args, nil
}

func (c *Cluster) environmentValue(ctx context.Context, namespace string, variable corev1.EnvVar) (string, error) {
	if variable.ValueFrom == nil {
		return variable.Value, nil
	}
	ref := variable.ValueFrom.ConfigMapKeyRef
	if ref == nil {
		return "", fmt.Errorf("environment variable %s is not from a ConfigMap", variable.Name)
	}
	config, err := c.client.CoreV1().ConfigMaps(namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	value, ok := config.Data[ref.Key]
	if !ok {
		return "", fmt.Errorf("ConfigMap %s has no key %s", ref.Name, ref.Key)
	}
	return value, nil
}

func (c *Cluster) writeVolume(ctx context.Context, namespace string, volumes []corev1.Volume, name, path string) error {
	for _, volume := range volumes {
		if volume.Name != name || volume.Secret == nil {
			continue
		}
		secret, err := c.client.CoreV1().Secrets(namespace).Get(ctx, volume.Secret.SecretName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if err := os.MkdirAll(path, 0o700); err != nil {
			return err
		}
		for key, value := range secret.Data {
			if err := os.WriteFile(filepath.Join(path, key), value, 0o600); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("volume %s is not from a Secret", name)
}
