// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// namespaceOfSecrets is the namespace of the hub with the clusters' Secrets.
const namespaceOfSecrets = "cluster-gateway-system"

// token returns a token of a ServiceAccount with this name that is cluster-admin.
func token(t *testing.T, c *lab.Cluster, account string) []byte {
	t.Helper()
	token, err := c.ServiceAccountToken(bounded(t, caseTimeout), namespaceOfSecrets, account, "cluster-admin")
	if err != nil {
		t.Fatal(err)
	}
	return []byte(token)
}

// register registers a cluster with a hub until the test ends.
func register(ctx context.Context, t *testing.T, hub *lab.Cluster, o lab.SecretOptions) {
	t.Helper()
	if err := hub.ApplySecret(ctx, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), caseTimeout)
		defer cancel()
		if err := hub.Client().CoreV1().Secrets(namespaceOfSecrets).Delete(ctx, o.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	})
}

// waitKnown waits until a gateway knows a cluster.
func waitKnown(t *testing.T, g *lab.Gateway, name string) {
	t.Helper()
	ctx := bounded(t, caseTimeout)
	labtest.Within(t, labtest.Timeout, "the gateway to know "+name, func() error {
		if r := ask(ctx, t, g.ClusterRESTConfig(name, lab.ViaOwnEndpoint), http.MethodGet, "/version"); r.code == http.StatusNotFound {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
}

// status decodes a response that must be a Status.
func (r reply) status(t *testing.T) metav1.Status {
	t.Helper()
	var status metav1.Status
	if err := json.Unmarshal([]byte(r.body), &status); err != nil || status.Kind != "Status" {
		t.Fatalf("not a Status: %+v", r)
	}
	if int(status.Code) != r.code {
		t.Errorf("the response's code is not the Status's: %+v", r)
	}
	return status
}

// doors returns both endpoints of a gateway.
func doors() []lab.Via { return []lab.Via{lab.ViaHub, lab.ViaOwnEndpoint} }

// anonymous returns a config without its credential.
func anonymous(config *rest.Config) *rest.Config { return rest.AnonymousClientConfig(config) }

// wantCode returns an error unless a response has one of these codes.
func wantCode(r reply, codes ...int) error {
	if slices.Contains(codes, r.code) {
		return nil
	}
	return fmt.Errorf("the response has the code %d, want %v: %s", r.code, codes, shorten(r.body))
}
