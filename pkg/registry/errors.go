// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// resource is what errors are about, as far as the caller is concerned.
var resource = v1alpha1.Resource(v1alpha1.ResourceName)

func notFound(name string) error { return apierrors.NewNotFound(resource, name) }

// hubError turns an error of a call to the hub into one that is true for the caller. What the caller can act on keeps its code
// and reason: an expired resource version, a conflict, too many requests, a timeout. The Secret's kind is replaced by the
// ClusterGateway's. But that the gateway's own account is refused is the gateway's fault: as a 401 or 403 it would look like a
// verdict on the caller.
func hubError(err error, verb, name string) error {
	var status apierrors.APIStatus
	switch {
	case apierrors.IsNotFound(err):
		return notFound(name)
	case apierrors.IsForbidden(err):
		return unavailable(fmt.Sprintf("the gateway's own account may not %s Secrets in the namespace of the clusters: grant it to the gateway's ServiceAccount on the hub: %v", verb, err))
	case apierrors.IsUnauthorized(err):
		return unavailable(fmt.Sprintf("the hub rejects the gateway's own credential, cannot %s Secrets: %v", verb, err))
	case errors.As(err, &status):
		served := &apierrors.StatusError{ErrStatus: status.Status()}
		served.ErrStatus.Details = served.ErrStatus.Details.DeepCopy()
		if d := served.ErrStatus.Details; d != nil && d.Kind == "secrets" {
			d.Group, d.Kind = resource.Group, resource.Resource
		}
		return served
	case errors.Is(err, context.DeadlineExceeded):
		return apierrors.NewTimeoutError(fmt.Sprintf("the hub did not answer in time, cannot %s Secrets", verb), 1)
	case errors.Is(err, context.Canceled):
		return err
	default:
		return unavailable(fmt.Sprintf("the gateway cannot %s Secrets on the hub: %v", verb, err))
	}
}

// unavailable is a 503 that names the resource. NewServiceUnavailable has no room for that.
func unavailable(message string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status:  metav1.StatusFailure,
		Code:    http.StatusServiceUnavailable,
		Reason:  metav1.StatusReasonServiceUnavailable,
		Message: message,
		Details: &metav1.StatusDetails{Group: resource.Group, Kind: resource.Resource},
	}}
}
