// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/apiserver/pkg/server/healthz"
	"k8s.io/client-go/kubernetes"
)

// A hub publishes the CA of its clients' certificates here (k8s.io/apiserver,
// pkg/server/options/authentication.go).
const (
	authenticationConfigMap = "extension-apiserver-authentication"
	clientCAKey             = "client-ca-file"
)

// hubTimeout bounds the first request to the hub, so that a hub that does not answer is an error.
const hubTimeout = 30 * time.Second

// useHubClientCA verifies client certificates with the hub's client CA, unless the options name a
// CA. It returns a check that the CA has been read. Otherwise the generic API server reads it some
// time after it is ready, and until then treats clients with a certificate as anonymous.
func (o *GenericOptions) useHubClientCA(ctx context.Context, hub kubernetes.Interface) (healthz.HealthChecker, error) {
	loaded := func(*http.Request) error { return nil }
	if clientCert := &o.Authentication.ClientCert; clientCert.ClientCA == "" && !o.Authentication.SkipInClusterLookup {
		getCtx, cancel := context.WithTimeout(ctx, hubTimeout)
		defer cancel()
		published, err := hub.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(getCtx, authenticationConfigMap, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("reading the hub's client CA: %w", err)
		}
		ca, err := dynamiccertificates.NewDynamicCAFromConfigMapController("client-ca", metav1.NamespaceSystem, authenticationConfigMap, clientCAKey, hub)
		if err != nil {
			return nil, err
		}
		clientCert.CAContentProvider = ca
		if published.Data[clientCAKey] != "" { // a hub can have none
			loaded = func(*http.Request) error {
				if len(ca.CurrentCABundleContent()) == 0 {
					return errors.New("the hub's client CA has not been read yet")
				}
				return nil
			}
		}
	}
	return healthz.NamedCheck("client-ca-loaded", loaded), nil
}
