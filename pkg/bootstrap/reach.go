// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/client"
)

// reach asks a cluster for its version, through the hub and the gateway. If the hub, the gateway or
// the cluster answered with an error, the error is an *apierrors.StatusError.
func (c *clusterClient) reach(ctx context.Context, name string) (string, error) {
	request := c.kube.Discovery().RESTClient().Get().AbsPath(client.ProxyPath(name), "version").MaxRetries(0)
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
