// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"fmt"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// WithWriteRefusal answers writes of clustergateways with a 405 that says where clusters are registered. Implementing the writing
// interfaces to say so would list their verbs in discovery, and clients that act on discovery (garbage collection, quota,
// namespace deletion, kubectl edit) would rely on them. It belongs behind authorisation and needs the RequestInfo. The
// subresources are not affected.
func WithWriteRefusal(next http.Handler, serializer runtime.NegotiatedSerializer, secretNamespace string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		info, ok := request.RequestInfoFrom(req.Context())
		if !ok || !isWrite(info) {
			next.ServeHTTP(w, req)
			return
		}
		err := writeRefusal(info, secretNamespace)
		responsewriters.ErrorNegotiated(err, serializer, v1alpha1.SchemeGroupVersion, w, req)
	})
}

func isWrite(info *request.RequestInfo) bool {
	if !info.IsResourceRequest || info.APIGroup != v1alpha1.GroupName || info.Resource != v1alpha1.ResourceName || info.Subresource != "" {
		return false
	}
	switch info.Verb {
	case "create", "update", "patch", "delete", "deletecollection":
		return true
	}
	return false
}

// writeRefusal is a MethodNotAllowed with a message of its own.
func writeRefusal(info *request.RequestInfo, secretNamespace string) error {
	err := apierrors.NewMethodNotSupported(resource, info.Verb)
	err.ErrStatus.Message = fmt.Sprintf(
		"%s is read-only: a cluster is registered, changed and removed by its Secret in the namespace %s of the hub, which has the cluster's name and the label %s",
		resource, secretNamespace, v1alpha1.LabelCredentialType)
	err.ErrStatus.Details.Name = info.Name
	err.ErrStatus.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
	return err
}
