// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/client"
)

// reach asks a cluster for its version, through the hub and the gateway. If the hub, the gateway or
// the cluster answered with an error, the error is an *apierrors.StatusError.
func (s *clusterClient) reach(ctx context.Context, name string) (string, error) {
	request := s.kube.Discovery().RESTClient().Get().AbsPath(client.ProxyPath(name), "version").MaxRetries(0)
	result := request.Do(ctx) // not DoRaw, which ignores the Status in the body of an error
	if err := result.Error(); err != nil {
		return "", err
	}
	data, err := result.Raw()
	if err != nil {
		return "", err
	}
	var info version.Info
	if err := json.Unmarshal(data, &info); err != nil {
		return "", fmt.Errorf("cluster %q did not answer with a version: %w", name, err)
	}
	return info.GitVersion, nil
}

// causeOf returns the stage at which a request ended according to the gateway, or "".
func causeOf(err error) metav1.CauseType {
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Details == nil {
		return ""
	}
	for _, cause := range status.Status().Details.Causes {
		switch cause.Type {
		case v1alpha1.CauseInvalidSecret, v1alpha1.CauseTunnel, v1alpha1.CauseAgent, v1alpha1.CauseEndpoint,
			v1alpha1.CauseTLS, v1alpha1.CauseCredential, v1alpha1.CauseRequest, v1alpha1.CauseResponse:
			return cause.Type
		}
	}
	return ""
}

// throughGateway returns a client of a managed cluster that goes through the gateway. It has the
// gateway's rights in the cluster.
func throughGateway(hub *clusterClient, name string) (*clusterClient, error) {
	config, err := client.ForCluster(hub.config, name)
	if err != nil {
		return nil, err
	}
	return newClusterClient(fmt.Sprintf("cluster %q (through the gateway)", name), "--kubeconfig", rest.CopyConfig(config), nil)
}

// pollInterval is the time between two requests to a cluster that does not answer yet.
const pollInterval = 250 * time.Millisecond

// waitReachable calls ask until it succeeds or --wait has passed. For the error, done says what the
// command has done so far, and missing what did not happen in time.
func (r *registerRun) waitReachable(ctx context.Context, done, missing string, ask func(context.Context) (version string, err error)) error {
	began := time.Now()
	waitCtx, cancel := context.WithTimeout(ctx, r.o.wait)
	defer cancel()
	var last error
	reported := false
	for {
		got, err := ask(waitCtx)
		if err == nil {
			return r.step(ctx, "reachable", "the cluster (%s) answered through the gateway after %s", got, time.Since(began).Round(100*time.Millisecond))
		}
		if last == nil || waitCtx.Err() == nil { // an answer says more than "deadline exceeded"
			last = err
		}
		if causeOf(err) == v1alpha1.CauseInvalidSecret {
			if err := r.invalid(waitCtx); err != nil {
				return err
			}
		}
		if apierrors.IsForbidden(err) && causeOf(err) == "" {
			return fmt.Errorf("%s, but your account may not use it: %w\nOn the hub, it needs the verb get on clustergateways/proxy; to write, also create, update, patch and delete", done, err)
		}
		if !reported && time.Since(began) > 2*time.Second {
			r.say("  %-12s waiting for the cluster: %v", "reachable", err)
			reported = true
		}
		if pause(waitCtx, pollInterval) != nil {
			break
		}
	}
	if ctx.Err() != nil {
		return r.hub.explain(ctx.Err())
	}
	flags := ""
	if r.o.cluster.kubeconfig != "" {
		flags = " --cluster-kubeconfig " + r.o.cluster.kubeconfig
	}
	return fmt.Errorf("%s, but %s within %s: %w\nTo find out why: agent-bootstrap doctor %s%s", done, missing, r.o.wait, last, r.name, flags)
}

func (r *registerRun) waitRegistered(ctx context.Context) error {
	return r.waitReachable(ctx, "the cluster is registered", "was not reached", func(ctx context.Context) (string, error) { return r.hub.reach(ctx, r.name) })
}
