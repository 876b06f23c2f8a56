// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package dialertest holds what the tests of every form of dialer.Dialer share: the conformance suite ([TestDialer]), a
// certificate authority ([CA]), and the real, unmodified Konnectivity agent and server ([StartAgent], [StartServer]).
//
// It is imported by tests only.
package dialertest
