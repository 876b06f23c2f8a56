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

// reach asks a cluster for its version through the hub and the gateway. An error is an *apierrors.StatusError if somebody answered.
func (s *clusterClient) reach(ctx context.Context, name string) (string, error) {
	request := s.kube.Discovery().RESTClient().Get().AbsPath(client.ProxyPath(name), "version").MaxRetries(0)
	result := request.Do(ctx) // not DoRaw, which does not read the Status of an error
	if err := result.Error(); err != nil {
		return "", err
	}
	data, err := result.Raw()
	if err != nil {
		return "", err
	}
	var info version.Info
	if err := json.Unmarshal(data, &info); err != nil {
		return "", fmt.Errorf("what cluster %q answered is no version: %w", name, err)
	}
	return info.GitVersion, nil
}

// causeOf is the stage at which the gateway says that a request ended, or "".
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

// throughGateway is the managed cluster as the hub's gateway reaches it: with the gateway's rights there.
func throughGateway(hub *clusterClient, name string) (*clusterClient, error) {
	config, err := client.ForCluster(hub.config, name)
	if err != nil {
		return nil, err
	}
	return newClusterClient(fmt.Sprintf("cluster %q (through the gateway)", name), "--kubeconfig", rest.CopyConfig(config), nil)
}

// pollInterval is how often a cluster is asked that does not answer yet.
const pollInterval = 250 * time.Millisecond

// waitReachable waits until the cluster answers as asked. done is what has been done by then, and missing what has not when the time is over.
func (r *registerRun) waitReachable(ctx context.Context, done, missing string, ask func(context.Context) (version string, err error)) error {
	began := time.Now()
	patience, cancel := context.WithTimeout(ctx, r.o.wait)
	defer cancel()
	var last error
	said := false
	for {
		got, err := ask(patience)
		if err == nil {
			return r.step(ctx, "reachable", "%s answered through the gateway after %s", got, time.Since(began).Round(100*time.Millisecond))
		}
		if last == nil || patience.Err() == nil { // an answer says more than that the time is over
			last = err
		}
		if causeOf(err) == v1alpha1.CauseInvalidSecret {
			if err := r.invalid(patience); err != nil {
				return err
			}
		}
		if apierrors.IsForbidden(err) && causeOf(err) == "" {
			return fmt.Errorf("%s, but you may not use the cluster: %w. On the hub, you need get (and for more, create, update, patch, delete) of clustergateways/proxy", done, err)
		}
		if !said && time.Since(began) > 2*time.Second {
			r.say("  %-12s waiting: %v", "reachable", err)
			said = true
		}
		if pause(patience, pollInterval) != nil {
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
