// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"fmt"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/benchmark/measure"
	"github.com/oam-dev/cluster-gateway/benchmark/report"
	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/test/lab"
)

// The routes by which the cost of identity and permission is measured. All of them dial the cluster
// directly, through the gateways' own endpoints.
const (
	trustPlain    = "own-plain"
	trustIdentity = "own-identity"
	trustRules    = "own-rules"
	trustBoth     = "own-identity-rules"
)

// caller is the user of these routes. An administrator in the group system:masters would not do:
// nobody may be impersonated into it.
const caller = "benchmark"

// TrustRoutes returns the direct route and four ways through a gateway: as it is by default, to a
// cluster that sees its callers, with the hub's rules for what is asked of the cluster, and with
// both. It starts a second gateway on the first one's hub. stop stops it.
func (b *Bed) TrustRoutes(ctx context.Context) (routes []*measure.Route, stop func() error, err error) {
	const impersonated = near + "-identity"
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	token, err := b.token(ctx)
	if err != nil {
		return nil, nil, err
	}
	secret := b.secret(impersonated, token, b.Managed.Address())
	secret.Annotations = map[string]string{v1alpha1.AnnotationIdentity: v1alpha1.IdentityImpersonate}
	if err := b.embeddedHub.ApplySecret(ctx, secret); err != nil {
		return nil, nil, err
	}
	for _, c := range []*lab.Cluster{b.embeddedHub, b.Managed} {
		if err := makeAdmin(ctx, c, caller); err != nil {
			return nil, nil, err
		}
	}
	rules, err := b.Lab.StartGateway(ctx, lab.GatewayOptions{
		Name: "gateway-rules", Hub: b.embeddedHub, Binary: b.options.GatewayBinary, ExtraArgs: append([]string{"--authorize-proxied-requests"}, b.options.GatewayArgs...),
	})
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			_ = rules.Stop() // the earlier error is returned
		}
	}()
	for _, r := range []struct {
		name, title string
		config      *rest.Config
		issuer      *lab.Cluster
	}{
		{report.Direct, "Direct", b.Managed.RESTConfig(), b.Managed},
		{trustPlain, "Gateway, own endpoint", b.Embedded.ClusterRESTConfig(near, lab.ViaOwnEndpoint), b.embeddedHub},
		{trustIdentity, "Gateway, own endpoint, the cluster sees the caller", b.Embedded.ClusterRESTConfig(impersonated, lab.ViaOwnEndpoint), b.embeddedHub},
		{trustRules, "Gateway, own endpoint, with rules for requests", rules.ClusterRESTConfig(near, lab.ViaOwnEndpoint), b.embeddedHub},
		{trustBoth, "Gateway, own endpoint, both", rules.ClusterRESTConfig(impersonated, lab.ViaOwnEndpoint), b.embeddedHub},
	} {
		config := rest.AnonymousClientConfig(r.config)
		if config.CertData, config.KeyData, err = r.issuer.ClientCertificate(caller); err != nil {
			return nil, nil, err
		}
		route, err := measure.NewRoute(r.name, r.title, config)
		if err != nil {
			return nil, nil, err
		}
		if err := route.Await(ctx); err != nil {
			return nil, nil, err
		}
		routes = append(routes, route)
	}
	return routes, rules.Stop, nil
}

// makeAdmin lets a user do everything in a cluster.
func makeAdmin(ctx context.Context, c *lab.Cluster, user string) error {
	_, err := c.Client().RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: user},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("make %s an administrator: %w", user, err)
	}
	return nil
}
