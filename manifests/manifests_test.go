// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package manifests_test

import (
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/oam-dev/cluster-gateway/manifests"
)

// TestNothingInsecure checks that no manifest disables the verification of certificates or grants
// permissions by a wildcard.
func TestNothingInsecure(t *testing.T) {
	t.Parallel()
	for _, base := range []string{manifests.Gateway, manifests.KonnectivityAgent, manifests.KonnectivityInvitation, manifests.KonnectivityServer} {
		objects, err := manifests.Objects(base)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects {
			data, err := yaml.Marshal(o.Object)
			if err != nil {
				t.Fatal(err)
			}
			for _, bad := range []string{"insecure", "'*'", "cluster-admin"} {
				if strings.Contains(strings.ToLower(string(data)), bad) {
					t.Errorf("%s: %s %s contains %s", base, o.GetKind(), o.GetName(), bad)
				}
			}
		}
	}
}
