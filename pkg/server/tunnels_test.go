// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/tunnel"
)

func TestTunnels(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	handler := tunnelsHandler("pod-a", func() []tunnel.ClusterState {
		return []tunnel.ClusterState{{Cluster: "east", Agents: []tunnel.AgentState{{
			Name: "agent-1", Since: at, Streams: tunnel.StreamCounts{Requests: 1, Parked: 1}, Connections: 2, BytesReceived: 3, BytesSent: 4,
			LastError: "connection\x1brefused", LastErrorAt: at,
		}}}}
	})
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, tunnelsPath, http.NoBody))
	const want = `{
  "replica": "pod-a",
  "clusters": [
    {
      "cluster": "east",
      "agents": [
        {
          "name": "agent-1",
          "since": "2026-01-02T03:04:05Z",
          "streams": {
            "requests": 1,
            "upgrades": 0,
            "parked": 1
          },
          "connections": 2,
          "bytesReceived": 3,
          "bytesSent": 4,
          "lastError": "connection refused",
          "lastErrorAt": "2026-01-02T03:04:05Z"
        }
      ]
    }
  ]
}
`
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "application/json" || w.Body.String() != want {
		t.Errorf("got %d, %v:\n%s\nwant\n%s", w.Code, w.Header(), w.Body, want)
	}
	w = httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequest(http.MethodPost, tunnelsPath, http.NoBody))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST: got %d", w.Code)
	}
}
