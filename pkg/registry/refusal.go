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

// WithWriteRefusal responds to write requests for clustergateways with a 405 that explains how to
// register a cluster. REST does not implement the interfaces for writing to do so, because
// discovery would then list their verbs, and clients that use discovery (garbage collection, quota,
// namespace deletion, kubectl edit) would rely on them. It must run after authorization and needs
// the RequestInfo. It does not affect the subresources.
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

// writeRefusal returns a MethodNotAllowed error with a helpful message.
func writeRefusal(info *request.RequestInfo, secretNamespace string) error {
	err := apierrors.NewMethodNotSupported(resource, info.Verb)
	err.ErrStatus.Message = fmt.Sprintf(
		"%s is read-only: to register, change or remove a cluster, create, change or delete the Secret with its name in the namespace %s of the hub; the Secret must have the label %s",
		resource, secretNamespace, v1alpha1.LabelCredentialType)
	err.ErrStatus.Details.Name = info.Name
	err.ErrStatus.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
	return err
}
