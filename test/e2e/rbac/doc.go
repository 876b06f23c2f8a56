// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package rbac shows that the rules of manifests/gateway, manifests/konnectivity/agent and manifests/konnectivity/invitation are what the
// gateway needs, and nothing more: the API servers of a lab record each request of its accounts while it does everything that it does, and
// the record is compared with the rules.
//
// A request that was denied is a rule that is missing. A rule that no request needed is one too many. So whoever takes a rule out, or adds
// one, has to say in exercise (exercise_test.go) what it is for.
package rbac
