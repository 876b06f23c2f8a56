// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/bootstraptest"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

func hubSecret(ctx context.Context, t *testing.T, name string) *corev1.Secret {
	t.Helper()
	secret, err := shared.hub.Client().CoreV1().Secrets(hubNamespace).Get(ctx, name, noOptions)
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

// TestAdopt checks that register --adopt turns a Secret that was written by hand into a
// registration like any other. The previous fields have no effect any more, in particular not the
// annotation that disables verification.
func TestAdopt(t *testing.T) {
	ctx := begin(t)
	byHand := lab.SecretOptions{Name: "near-1", Data: map[string][]byte{"endpoint": []byte(shared.nearby.Endpoint()), "token": []byte("x")}}
	if err := shared.hub.ApplySecret(ctx, byHand); err != nil {
		t.Fatal(err)
	}
	bootstraptest.PatchSecret(ctx, t, shared.hub, "near-1", bootstraptest.UnwantedFields)
	hub := dump(ctx, t, shared.hub)
	const removed = "removed: ca, tls-server-name, proxy-url, tls.crt, tls.key, exec, annotation cluster.core.oam.dev/insecure-skip-tls-verify"
	if _, said := must(ctx, t, nearbyArgs("--adopt", "--dry-run")...); !strings.Contains(said, removed) {
		t.Errorf("a dry run does not report what it would remove:\n%s", said)
	}
	same(t, "the hub, after a dry run", hub, dump(ctx, t, shared.hub))
	if _, said := must(ctx, t, nearbyArgs("--adopt")...); !strings.Contains(said, removed) {
		t.Errorf("it does not report what it removes:\n%s", said)
	}
	bootstraptest.CheckUnwantedFields(t, hubSecret(ctx, t, "near-1"))
	must(ctx, t, "doctor", "near-1")
	if _, said := must(ctx, t, nearbyArgs()...); strings.Contains(said, "removed") {
		t.Errorf("the second time, it printed\n%s", said)
	}
}

// TestRegisterMends checks that register repairs a changed Secret, as doctor advises.
func TestRegisterMends(t *testing.T) {
	ctx := begin(t)
	must(ctx, t, nearbyArgs()...)
	bootstraptest.PatchSecret(ctx, t, shared.hub, "near-1", bootstraptest.UnwantedFields)
	// If these two were left, the test could not tell which one has an effect.
	bootstraptest.PatchSecret(ctx, t, shared.hub, "near-1", `{"metadata":{"annotations":{"cluster.core.oam.dev/insecure-skip-tls-verify":null}},"data":{"proxy-url":null}}`)
	out, _, err := invoke(ctx, bootstrap.Config{}, "doctor", "near-1")
	if err == nil || !strings.Contains(out, "agent-bootstrap register near-1") {
		t.Errorf("doctor: %v\n%s", err, out)
	}
	must(ctx, t, nearbyArgs()...)
	bootstraptest.CheckUnwantedFields(t, hubSecret(ctx, t, "near-1"))
	must(ctx, t, "doctor", "near-1")
}

// TestInvalidSecretEndsWait checks that register stops waiting when the Secret is invalid.
func TestInvalidSecretEndsWait(t *testing.T) {
	ctx := begin(t)
	spoil := bootstrap.Config{AfterStep: func(step string) error {
		if step == "secret" {
			bootstraptest.PatchSecret(ctx, t, shared.hub, "near-1", `{"stringData":{"endpoint":"http://a"}}`)
			// Until the gateway has seen that, it may answer with the Secret that register wrote.
			labtest.Within(t, labtest.Timeout, "the gateway to refuse the Secret", func() error {
				path := "/apis/cluster.core.oam.dev/v1alpha1/clustergateways/near-1/proxy/version"
				if err := shared.hub.Client().Discovery().RESTClient().Get().AbsPath(path).MaxRetries(0).Do(ctx).Error(); !apierrors.IsServiceUnavailable(err) {
					return fmt.Errorf("it answers %v", err)
				}
				return nil
			})
		}
		return nil
	}}
	began := time.Now()
	const wait = 3 * time.Minute
	_, _, err := invoke(ctx, spoil, nearbyArgs("--wait", wait.String())...)
	if err == nil || !strings.Contains(err.Error(), "the gateway cannot use its Secret") || !strings.Contains(err.Error(), "only https is allowed") {
		t.Errorf("it fails with %v", err)
	}
	if took := time.Since(began); took > wait/2 {
		t.Errorf("it waited for %s", took)
	}
}
