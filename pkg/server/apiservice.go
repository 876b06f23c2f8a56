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
	"github.com/oam-dev/cluster-gateway/pkg/pki"
)

// apiServiceName is what the hub knows the gateway's API by.
const apiServiceName = "v1alpha1." + v1alpha1.GroupName

// apiServiceInterval is how often the APIService is looked at: it is applied last, and perhaps anew.
const apiServiceInterval = 5 * time.Second

// annotationsCertManager begin the annotations by which cert-manager is asked to write a caBundle.
const annotationsCertManager = "cert-manager.io/inject-"

// apiServiceKeeper keeps the caBundle of the gateway's APIService to what the gateway's certificate is verified with, unless that is somebody
// else's to say. It is safe for concurrent use.
type apiServiceKeeper struct {
	services  apiregistrationclient.APIServiceInterface
	namespace string
	logger    klog.Logger
	// pair is the Keeper of the serving pair.
	pair *pki.Keeper

	mu sync.Mutex
	// said is what was last said of an APIService that is left alone, or cannot be kept.
	said string
}

// run keeps it until ctx ends. One replica is to do this.
func (k *apiServiceKeeper) run(ctx context.Context) error {
	ticker := time.NewTicker(apiServiceInterval)
	defer ticker.Stop()
	for {
		if err := k.publish(ctx, k.pair.Bundle()); err != nil && ctx.Err() == nil {
			k.say("it could not be kept: " + err.Error())
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// publish has the hub verify the gateway with the bundle. It does nothing while the pair that is served is the user's own, or there is no
// APIService.
func (k *apiServiceKeeper) publish(ctx context.Context, bundle []byte) error {
	if k.pair.Bundle() == nil {
		return nil
	}
	service, err := k.services.Get(ctx, apiServiceName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if why := k.foreign(service); why != "" {
		k.say("its caBundle is left alone: " + why)
		return nil
	}
	if bytes.Equal(service.Spec.CABundle, bundle) && !service.Spec.InsecureSkipTLSVerify {
		k.say("")
		return nil
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": service.UID, "resourceVersion": service.ResourceVersion},
		// Both cannot be: whoever has switched verification off had no bundle to verify with.
		"spec": map[string]any{"caBundle": bundle, "insecureSkipTLSVerify": nil},
	})
	if err != nil {
		return err
	}
	_, err = k.services.Patch(ctx, apiServiceName, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "cluster-gateway"})
	if apierrors.IsConflict(err) {
		return nil // looked at again soon
	}
	if err == nil {
		k.logger.Info("The APIService has the CA of the gateway's certificate", "name", apiServiceName)
	}
	return err
}

// foreign is why an APIService is not the gateway's to change; empty: it is.
func (k *apiServiceKeeper) foreign(service *apiregistrationv1.APIService) string {
	for name := range service.Annotations {
		if strings.HasPrefix(name, annotationsCertManager) {
			return "the annotation " + name + " says that cert-manager writes it"
		}
	}
	if s := service.Spec.Service; s == nil || s.Namespace != k.namespace {
		return "it does not lead to a Service in the namespace " + k.namespace
	}
	return ""
}

// say logs what is new.
func (k *apiServiceKeeper) say(what string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if what != k.said && what != "" {
		k.logger.Info("The APIService "+apiServiceName, "what", what)
	}
	k.said = what
}
