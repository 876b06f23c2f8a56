// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package dialertest is shared by the tests of every kind of dialer.Dialer. It contains the
// conformance suite ([TestDialer]), a certificate authority ([CA]), and the real, unmodified
// Konnectivity agent and server ([StartAgent], [StartServer]).
//
// Only tests may import it.
package dialertest
