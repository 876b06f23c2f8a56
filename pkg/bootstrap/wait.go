// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// pollInterval is how often a cluster is asked that does not answer yet.
const pollInterval = 250 * time.Millisecond

// waiter waits until a cluster answers through the gateway.
type waiter struct {
	*app
	hub  *clusterClient
	name string
	// token is the token that the gateway must use: the one in the Secret that was written. An answer
	// to another token is about an earlier version of the Secret, and does not count.
	token string
	// timeout bounds the wait.
	timeout time.Duration
	// done and missing begin the error of a timeout: what has been done, and what has not.
	done, missing string
	// clusterKubeconfig is the value of --cluster-kubeconfig, for the advice.
	clusterKubeconfig string
}

// run waits, and reports the step.
func (w *waiter) run(ctx context.Context) error {
	target, err := throughGateway(w.hub, w.name)
	if err != nil {
		return err
	}
	began := time.Now()
	waitCtx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	var last error
	reported := false
	for {
		version, err := w.ask(waitCtx, target)
		if err == nil {
			return w.step(ctx, string(registration.StepWait), "the cluster (%s) answered through the gateway after %s", version, time.Since(began).Round(100*time.Millisecond))
		}
		if last == nil || waitCtx.Err() == nil { // an answer says more than that the time is over
			last = err
		}
		if causeOf(err) == v1alpha1.CauseIdentity {
			// The registration is complete. Who runs it is often an administrator of the hub, whom no
			// cluster may see as one.
			return w.step(ctx, string(registration.StepWait), "not tried: you cannot use this cluster with your account: %v. To see whether the cluster answers: agent-bootstrap status %s", err, w.name)
		}
		if causeOf(err) == v1alpha1.CauseInvalidSecret {
			if err := w.invalidSecret(waitCtx); err != nil {
				return err
			}
		}
		if apierrors.IsForbidden(err) && causeOf(err) == "" {
			return fmt.Errorf("%s, but your account may not use it: %w\nOn the hub, it needs the verb get on clustergateways/proxy; to write, also create, update, patch and delete", w.done, err)
		}
		if !reported && time.Since(began) > 2*time.Second {
			w.say("  %-12s waiting for the cluster: %v", registration.StepWait, err)
			reported = true
		}
		if pause(waitCtx, pollInterval) != nil {
			break
		}
	}
	if ctx.Err() != nil {
		return w.hub.explain(ctx.Err())
	}
	flags := ""
	if w.clusterKubeconfig != "" {
		flags = " --cluster-kubeconfig " + w.clusterKubeconfig
	}
	return fmt.Errorf("%s, but %s within %s: %w\nTo find out why: agent-bootstrap doctor %s%s", w.done, w.missing, w.timeout, last, w.name, flags)
}

// ask asks the cluster for its version. The answer counts only if the gateway got it with the
// token.
func (w *waiter) ask(ctx context.Context, target *clusterClient) (string, error) {
	version, err := w.hub.reach(ctx, w.name)
	if err != nil {
		return "", err
	}
	id := registration.ParseToken(w.token).ID
	switch used := target.credentialID(ctx); {
	case id == "" || used == "":
		// The cluster does not say which token it was: Kubernetes before 1.29 has no such field.
		if w.lags(ctx) {
			return "", errors.New("the gateway has not read the cluster's Secret yet")
		}
	case used != "JTI="+id:
		w.followToken(ctx)
		return "", errors.New("the gateway still uses the previous token")
	}
	return version, nil
}

// lags is whether the gateway that answers still has an earlier version of the Secret. If the
// caller may not find out, it is false.
func (w *waiter) lags(ctx context.Context) bool {
	secret, gateway := w.versions(ctx)
	return secret != nil && gateway != nil && (gateway.UID != secret.UID || gateway.ResourceVersion != secret.ResourceVersion)
}

// versions returns the Secret and the ClusterGateway, which shows the version of the Secret that it
// was made from. What cannot be read is nil.
func (w *waiter) versions(ctx context.Context) (*corev1.Secret, *v1alpha1.ClusterGateway) {
	secret, err := w.hub.kube.CoreV1().Secrets(w.app.hub.namespace).Get(ctx, w.name, metav1.GetOptions{})
	if err != nil {
		return nil, nil
	}
	gateway, err := w.hub.clusterGateway(ctx, w.name)
	if err != nil {
		return secret, nil
	}
	return secret, gateway
}

// followToken takes over the token in the Secret if it is a later one: the gateway may have renewed
// the one that was written. An earlier one, which is there if the write was lost, still does not
// count.
func (w *waiter) followToken(ctx context.Context) {
	secret, err := w.hub.kube.CoreV1().Secrets(w.app.hub.namespace).Get(ctx, w.name, metav1.GetOptions{})
	if err != nil {
		return // it is read again
	}
	token := string(secret.Data[v1alpha1.SecretKeyToken])
	if registration.ParseToken(token).IssuedAt.After(registration.ParseToken(w.token).IssuedAt) {
		w.token = token
	}
}

// invalidSecret returns an error if the gateway cannot use the Secret as it is now. The answer of
// the proxy may be about an earlier version; the ClusterGateway is judged from the Secret with the
// resource version that it shows.
func (w *waiter) invalidSecret(ctx context.Context) error {
	secret, gateway := w.versions(ctx)
	if secret == nil || gateway == nil || gateway.UID != secret.UID || gateway.ResourceVersion != secret.ResourceVersion {
		return nil // it is asked again
	}
	ready := meta.FindStatusCondition(gateway.Status.Conditions, v1alpha1.ConditionReady)
	if ready == nil || !cluster.RefusesSecret(ready.Reason) {
		return nil
	}
	return fmt.Errorf("the cluster is registered, but the gateway cannot use its Secret %s/%s: %s", secret.Namespace, w.name, ready.Message)
}

func (r *registerRun) waitRegistered(ctx context.Context) error {
	if r.o.dryRun || r.o.wait == 0 {
		return nil
	}
	w := &waiter{
		app: r.app, hub: r.hub, name: r.name, token: r.plan.Secret.Token, timeout: r.o.wait,
		done: "the cluster is registered", missing: "was not reached", clusterKubeconfig: r.o.cluster.kubeconfig,
	}
	return w.run(ctx)
}
