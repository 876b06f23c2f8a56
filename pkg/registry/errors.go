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

// resource is the resource that errors refer to.
var resource = v1alpha1.Resource(v1alpha1.ResourceName)

func notFound(name string) error { return apierrors.NewNotFound(resource, name) }

// hubError converts an error of a request to the hub for the caller. Errors that the caller can act
// on keep their code and reason: an expired resource version, a conflict, too many requests, a
// timeout. They refer to the ClusterGateway instead of the Secret. If the hub denies access to the
// gateway's own ServiceAccount, a 401 or 403 would look as if the caller was denied, so the code
// changes to 503.
func hubError(err error, verb, name string) error {
	var status apierrors.APIStatus
	switch {
	case apierrors.IsNotFound(err):
		return notFound(name)
	case apierrors.IsForbidden(err):
		return unavailable(fmt.Sprintf("the gateway's own ServiceAccount may not %s Secrets in the namespace of the clusters; grant it this permission on the hub: %v", verb, err))
	case apierrors.IsUnauthorized(err):
		return unavailable(fmt.Sprintf("the hub rejected the gateway's own credential, so the gateway cannot %s Secrets: %v", verb, err))
	case errors.As(err, &status):
		served := &apierrors.StatusError{ErrStatus: status.Status()}
		served.ErrStatus.Details = served.ErrStatus.Details.DeepCopy()
		if d := served.ErrStatus.Details; d != nil && d.Kind == "secrets" {
			d.Group, d.Kind = resource.Group, resource.Resource
		}
		return served
	case errors.Is(err, context.DeadlineExceeded):
		return apierrors.NewTimeoutError(fmt.Sprintf("the hub did not respond in time, so the gateway cannot %s Secrets", verb), 1)
	case errors.Is(err, context.Canceled):
		return err
	default:
		return unavailable(fmt.Sprintf("the gateway cannot %s Secrets on the hub: %v", verb, err))
	}
}

// unavailable returns a 503 that refers to the resource, which NewServiceUnavailable cannot do.
func unavailable(message string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status:  metav1.StatusFailure,
		Code:    http.StatusServiceUnavailable,
		Reason:  metav1.StatusReasonServiceUnavailable,
		Message: message,
		Details: &metav1.StatusDetails{Group: resource.Group, Kind: resource.Resource},
	}}
}
