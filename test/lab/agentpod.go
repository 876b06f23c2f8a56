// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// StartAgentPod runs the agent of a Deployment in a cluster like a kubelet would, but without a
// container: the stock agent as a process, with exactly the arguments, environment and Secrets of
// the Pod template.
func (l *Lab) StartAgentPod(ctx context.Context, c *Cluster, namespace, name, as string) (*Agent, error) {
	deployment, err := c.client.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return l.startAgentPod(ctx, c, namespace, deployment.Spec.Template.Spec, "Deployment "+name, as)
}

// StartAgentJob is [Lab.StartAgentPod] for a Job.
func (l *Lab) StartAgentJob(ctx context.Context, c *Cluster, namespace, name, as string) (*Agent, error) {
	job, err := c.client.BatchV1().Jobs(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return l.startAgentPod(ctx, c, namespace, job.Spec.Template.Spec, "Job "+name, as)
}

func (l *Lab) startAgentPod(ctx context.Context, c *Cluster, namespace string, pod corev1.PodSpec, owner, as string) (*Agent, error) {
	args, env, err := c.containerArgs(ctx, namespace, pod, filepath.Join(c.dir, "pods", as))
	if err != nil {
		return nil, fmt.Errorf("start %s in namespace %s of cluster %s as a process: %w", owner, namespace, c.opts.Name, err)
	}
	return l.StartAgent(ctx, AgentOptions{Name: as, Cluster: c, Args: args, Env: env})
}

// containerArgs returns the arguments of the only container of a Pod, and its environment. It
// substitutes environment variables and writes volumes as files to dir.
func (c *Cluster) containerArgs(ctx context.Context, namespace string, pod corev1.PodSpec, dir string) (args, env []string, err error) {
	if len(pod.Containers) != 1 {
		return nil, nil, fmt.Errorf("it has %d containers instead of one", len(pod.Containers))
	}
	container := pod.Containers[0]
	var replacements []string
	for _, variable := range container.Env {
		value, err := c.environmentValue(ctx, namespace, variable)
		if err != nil {
			return nil, nil, err
		}
		env = append(env, variable.Name+"="+value)
		replacements = append(replacements, "$("+variable.Name+")", value)
	}
	for _, mount := range container.VolumeMounts {
		path := filepath.Join(dir, mount.Name)
		if err := c.writeVolume(ctx, namespace, pod, mount.Name, path); err != nil {
			return nil, nil, err
		}
		replacements = append(replacements, mount.MountPath, path)
	}
	args = make([]string, len(container.Args))
	for i, arg := range container.Args {
		args[i] = strings.NewReplacer(replacements...).Replace(arg)
	}
	return args, env, nil
}

func (c *Cluster) environmentValue(ctx context.Context, namespace string, variable corev1.EnvVar) (string, error) {
	if variable.ValueFrom == nil {
		return variable.Value, nil
	}
	var from, key, value string
	var ok bool
	switch source := variable.ValueFrom; {
	case source.ConfigMapKeyRef != nil:
		from, key = "ConfigMap "+source.ConfigMapKeyRef.Name, source.ConfigMapKeyRef.Key
		config, err := c.client.CoreV1().ConfigMaps(namespace).Get(ctx, source.ConfigMapKeyRef.Name, metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		value, ok = config.Data[key]
	case source.SecretKeyRef != nil:
		from, key = "Secret "+source.SecretKeyRef.Name, source.SecretKeyRef.Key
		secret, err := c.client.CoreV1().Secrets(namespace).Get(ctx, source.SecretKeyRef.Name, metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		var data []byte
		data, ok = secret.Data[key]
		value = string(data)
	default:
		return "", fmt.Errorf("environment variable %s is from neither a ConfigMap nor a Secret", variable.Name)
	}
	if !ok {
		return "", fmt.Errorf("%s has no key %s", from, key)
	}
	return value, nil
}

func (c *Cluster) writeVolume(ctx context.Context, namespace string, pod corev1.PodSpec, name, path string) error {
	files := map[string][]byte{}
	for _, volume := range pod.Volumes {
		switch {
		case volume.Name != name:
		case volume.Secret != nil:
			secret, err := c.client.CoreV1().Secrets(namespace).Get(ctx, volume.Secret.SecretName, metav1.GetOptions{})
			if err != nil {
				return err
			}
			files = secret.Data
		case volume.Projected != nil:
			for _, source := range volume.Projected.Sources {
				if source.ServiceAccountToken == nil {
					return fmt.Errorf("volume %s projects something other than a token", name)
				}
				token, err := c.projectedToken(ctx, namespace, pod.ServiceAccountName, source.ServiceAccountToken)
				if err != nil {
					return err
				}
				files[source.ServiceAccountToken.Path] = []byte(token)
			}
		}
	}
	if len(files) == 0 {
		return fmt.Errorf("volume %s is neither a Secret with data nor a token", name)
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	for key, value := range files {
		if err := os.WriteFile(filepath.Join(path, key), value, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// projectedToken returns the token that a kubelet would mount, but not bound to a Pod, because
// there is none.
func (c *Cluster) projectedToken(ctx context.Context, namespace, account string, projection *corev1.ServiceAccountTokenProjection) (string, error) {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: projection.ExpirationSeconds}}
	if projection.Audience != "" {
		request.Spec.Audiences = []string{projection.Audience}
	}
	answer, err := c.client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, account, request, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return answer.Status.Token, nil
}
