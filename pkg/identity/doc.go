// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package identity decides who a managed cluster sees when the gateway passes on the request of a
// caller.
//
// Each cluster has a [Policy]. With [ModeCredential], the cluster sees the account of the gateway.
// With [ModeImpersonate], the gateway impersonates the caller: the cluster sees the caller's user,
// groups, UID and extra values, and its own RBAC decides. With [ModeRules], rules in the format of
// oam-dev/cluster-gateway exchange the caller for somebody else ([ParseRules]).
//
// The [Resolver] applies the policy to a caller. The result is a [Seen], which sets the headers of
// the request to the cluster, or a [*Refusal]. There is nothing in between: an identity that cannot
// be carried is refused. It is never cut, and never replaced by the account of the gateway.
//
// The identities of Kubernetes itself, whose names begin with "system:", mean something else in
// each cluster. So they are never carried, unless a rule names the identity that the cluster sees.
// The ServiceAccounts of the hub are carried under names of their own (see [Config.HubName]).
package identity
