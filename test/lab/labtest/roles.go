// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package labtest

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/test/lab"
)

// aggregateRoles fills the ClusterRoles view, edit and admin, whose rules
// kube-controller-manager would aggregate from others.
func aggregateRoles(ctx context.Context, c *lab.Cluster) error {
	roles := c.Client().RbacV1().ClusterRoles()
	// Each is a part of the next one.
	for _, name := range []string{"view", "edit", "admin"} {
		role, err := roles.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		role.Rules = nil
		for _, selector := range role.AggregationRule.ClusterRoleSelectors {
			parts, err := roles.List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(&selector)})
			if err != nil {
				return err
			}
			for _, part := range parts.Items {
				role.Rules = append(role.Rules, part.Rules...)
			}
		}
		if _, err := roles.Update(ctx, role, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	return nil
}
