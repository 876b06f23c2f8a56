// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"fmt"

	"github.com/spf13/pflag"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// identityOptions are the flags about who the cluster sees, and what callers may do there.
type identityOptions struct {
	access, identity        string
	users, groups, extras   []string
	adminGroups, viewGroups []string
	// forInvitation offers --unconstrained-impersonation: nothing can be tried in the cluster.
	forInvitation, unconstrained bool
	given                        *pflag.FlagSet
}

func (o *identityOptions) addFlags(fs *pflag.FlagSet) {
	o.given = fs
	fs.StringVar(&o.access, "access", registration.AccessAdmin, accessHelp)
	fs.StringVar(&o.identity, "identity", o.identity,
		"Who the cluster sees. credential: the gateway's account, for every caller. impersonate: the callers themselves, whose rights the cluster's own RBAC decides. "+
			"Default: what the cluster has; for a new cluster, impersonate with --admin-group or --view-group, and credential otherwise. See docs/identity.md.")
	const lists = " Repeat the flag for more; '' removes all."
	fs.StringArrayVar(&o.groups, "impersonate-group", nil, "With --identity=impersonate: a group that the gateway may act as. Default: any. A caller with another group is refused by the cluster."+lists)
	fs.StringArrayVar(&o.users, "impersonate-user", nil, "With --identity=impersonate: a user that the gateway may act as. Default: any."+lists)
	fs.StringArrayVar(&o.extras, "impersonate-extra", nil, "With --identity=impersonate: a key of extra values that the gateway may pass on. The gateway's flag --identity-extra must have it, too."+lists)
	fs.StringArrayVar(&o.adminGroups, "admin-group", nil, "A group of callers that gets the ClusterRole cluster-admin in the cluster. A new cluster then sees its callers; a registered one must do so already, or be given --identity=impersonate."+lists)
	fs.StringArrayVar(&o.viewGroups, "view-group", nil, "A group of callers that gets the ClusterRole view in the cluster. A new cluster then sees its callers; a registered one must do so already, or be given --identity=impersonate."+lists)
	if o.forInvitation {
		fs.BoolVar(&o.unconstrained, "unconstrained-impersonation", false,
			"With --identity=impersonate: give the gateway the right to impersonate without a limit on what it does then. Set it only if the cluster is older than Kubernetes 1.36, or has the feature ConstrainedImpersonation off: it refuses every caller otherwise. (register finds this out by itself.)")
	}
}

func (o *identityOptions) validate() error {
	switch o.identity {
	case "", v1alpha1.IdentityCredential, v1alpha1.IdentityImpersonate:
		return nil
	case v1alpha1.IdentityRules:
		return fmt.Errorf("invalid --identity %q: rules are set in the cluster's Secret, see docs/identity.md. Must be credential or impersonate", o.identity)
	default:
		return fmt.Errorf("invalid --identity %q: must be credential or impersonate", o.identity)
	}
}

// into completes a spec. An access that was not set is empty.
func (o *identityOptions) into(spec registration.Spec) registration.Spec {
	spec.Identity = o.identity
	if o.given.Changed("access") {
		spec.Access = o.access
	}
	impersonation := registration.Impersonation{
		Users: o.list("impersonate-user", o.users), Groups: o.list("impersonate-group", o.groups), ExtraKeys: o.list("impersonate-extra", o.extras),
		AdminGroups: o.list("admin-group", o.adminGroups), ViewGroups: o.list("view-group", o.viewGroups), Unconstrained: o.unconstrained,
	}
	if impersonation.Given() {
		spec.Impersonation = &impersonation
	}
	return spec
}

// list returns the values of a flag, without empty ones, or nil if it was not set.
func (o *identityOptions) list(name string, values []string) []string {
	if !o.given.Changed(name) {
		return nil
	}
	list := []string{}
	for _, value := range values {
		if value != "" {
			list = append(list, value)
		}
	}
	return list
}

// reportIdentity reports who the cluster will see, and what of it needs attention.
func (a *app) reportIdentity(o *identityOptions, spec registration.Spec) {
	if o.given.Changed("access") && o.access == registration.AccessImpersonate {
		a.say("  %-12s --access=impersonate is deprecated. It allows the gateway to impersonate everybody, but does not switch impersonation on. Use --identity=impersonate", "note")
	}
	if spec.Impersonation == nil {
		return
	}
	if o.identity == "" && (o.given.Changed("admin-group") || o.given.Changed("view-group")) {
		a.say("  %-12s the cluster sees its callers (--identity=impersonate), and not only the gateway's account", "note")
	}
	if len(spec.Impersonation.AdminGroups)+len(spec.Impersonation.ViewGroups) == 0 {
		a.say("  %-12s the cluster decides what callers may do, and no group gets rights with --admin-group or --view-group. Give rights with roles of the cluster, "+
			"for example: kubectl create clusterrolebinding NAME --clusterrole=view --group=GROUP", "note")
	}
}
