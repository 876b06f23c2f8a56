// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package bootstrap_test

import (
	"testing"

	"github.com/oam-dev/cluster-gateway/test/lab/bootstraptest"
)

// site is what the integration tests of this package share.
var site bootstraptest.Site

func TestMain(m *testing.M) { bootstraptest.Main(m, &site) }
