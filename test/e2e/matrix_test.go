// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"testing"
)

// oneCase is something that users do with a cluster.
type oneCase struct {
	name string
	run  func(ctx context.Context, t *testing.T, s *site)
}

// matrix returns what must work by every route and every endpoint.
func matrix() []oneCase {
	return []oneCase{
		// Objects (objects_test.go).
		{"get", testGet},
		{"get -w", testGetWatch},
		{"wait", testWait},
		{"create", testCreate},
		{"apply", testApply},
		{"apply --server-side", testApplyServerSide},
		{"apply --dry-run=server", testApplyDryRun},
		{"create --dry-run=server", testCreateDryRun},
		{"patch", testPatch},
		{"delete", testDelete},

		// Streams (streams_test.go).
		{"logs", testLogs},
		{"logs -f", testLogsFollow},
		{"exec over WebSocket", testExecWebSocket},
		{"exec over SPDY", testExecSPDY},
		{"attach", testAttach},
		{"cp both ways", testCopy},
		{"port-forward over WebSocket", testPortForwardWebSocket},
		{"port-forward over SPDY", testPortForwardSPDY},

		// Information about the API server (discovery_test.go).
		{"version", testVersion},
		{"api-resources", testAPIResources},
		{"explain", testExplain},
		{"auth", testAuth},
		{"top-level paths", testTopLevelPaths},

		// Large and unusual requests (requests_test.go).
		{"chunked list", testChunkedList},
		{"informer", testInformer},
		{"large object", testLargeObject},
		{"large list", testLargeList},
		{"odd queries", testOddQueries},
		{"escaped paths", testEscapedPaths},
	}
}

func TestMatrix(t *testing.T) {
	forEachRoute(t, func(t *testing.T, r route) {
		s := newSite(t, r)
		for _, c := range matrix() {
			t.Run(c.name, func(t *testing.T) { c.run(bounded(t, caseTimeout), t, s) })
		}
	})
}
