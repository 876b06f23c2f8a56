// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	apiregistrationclient "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset/typed/apiregistration/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// apiServiceName is the name of the gateway's APIService on the hub.
const apiServiceName = "v1alpha1." + v1alpha1.GroupName

// apiServiceInterval is how often the APIService is read. It is applied after the gateway has
// started, and can be applied again.
const apiServiceInterval = 5 * time.Second

// certManagerPrefix is the prefix of the annotations that make cert-manager write a caBundle.
const certManagerPrefix = "cert-manager.io/inject-"

// apiServiceController writes the CA of the gateway's certificate into the caBundle of its
// APIService, unless the APIService is managed by somebody else. It is safe for concurrent use.
type apiServiceController struct {
	services  apiregistrationclient.APIServiceInterface
	namespace string
	logger    klog.Logger
	// bundle returns the CA of the certificate that is served. It returns nil if that is not known,
	// because the certificate is the user's.
	bundle func() []byte

	mu sync.Mutex
	// reported is why the APIService was not changed, as logged last.
	reported string
}

// run keeps the APIService up to date until ctx ends. Only one replica must do this.
func (c *apiServiceController) run(ctx context.Context) error {
	ticker := time.NewTicker(apiServiceInterval)
	defer ticker.Stop()
	for {
		if err := c.publish(ctx, c.bundle()); err != nil && ctx.Err() == nil {
			c.report("cannot be updated: " + err.Error())
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// publish writes the bundle into the APIService. It does nothing if the certificate that is served
// is the user's, or if there is no APIService.
func (c *apiServiceController) publish(ctx context.Context, bundle []byte) error {
	if c.bundle() == nil {
		return nil
	}
	service, err := c.services.Get(ctx, apiServiceName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if reason := c.managedElsewhere(service); reason != "" {
		c.report(reason)
		return nil
	}
	if bytes.Equal(service.Spec.CABundle, bundle) && !service.Spec.InsecureSkipTLSVerify {
		c.report("")
		return nil
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": service.UID, "resourceVersion": service.ResourceVersion},
		// The API server allows only one of them. Somebody without a bundle has disabled the
		// verification.
		"spec": map[string]any{"caBundle": bundle, "insecureSkipTLSVerify": nil},
	})
	if err != nil {
		return err
	}
	_, err = c.services.Patch(ctx, apiServiceName, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "cluster-gateway"})
	if apierrors.IsConflict(err) {
		return nil // run tries again
	}
	if err == nil {
		c.logger.Info("Updated the caBundle of the APIService", "name", apiServiceName)
	}
	return err
}

// managedElsewhere returns why the gateway must not change an APIService. It returns an empty
// string if the gateway can.
func (c *apiServiceController) managedElsewhere(service *apiregistrationv1.APIService) string {
	for name := range service.Annotations {
		if strings.HasPrefix(name, certManagerPrefix) {
			return "has the annotation " + name + ", so cert-manager writes it"
		}
	}
	if s := service.Spec.Service; s == nil || s.Namespace != c.namespace {
		return "does not refer to a Service in the namespace " + c.namespace
	}
	return ""
}

// report logs why the APIService was not changed, if that is new.
func (c *apiServiceController) report(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if reason != c.reported && reason != "" {
		c.logger.Info("The caBundle of the APIService was not changed", "name", apiServiceName, "reason", reason)
	}
	c.reported = reason
}
