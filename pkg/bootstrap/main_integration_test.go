// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package bootstrap

// hasStandIns is false, since the integration tests have a TestMain of their own.
const hasStandIns = false
