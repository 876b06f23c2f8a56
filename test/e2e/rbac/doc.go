// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package rbac checks that the rules of manifests/gateway, manifests/konnectivity/agent and
// manifests/konnectivity/invitation are what the gateway needs, and nothing more. The API servers
// of a lab record each request of its accounts while the gateway does everything it does. The test
// compares the record with the rules.
//
// A denied request shows a missing rule. A rule that no request needed is superfluous. If you add
// or remove a rule, change exercise (exercise_test.go) as well, so that a step needs it.
package rbac
