// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/http"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/internal/memory"
)

// How much memory a request can make the gateway hold while it lasts, if its client does not read
// the answer and its cluster does not read the body. HTTP/2 buffers cannot be accounted for byte by
// byte, so all of it is taken from the budget when the request is admitted.
const (
	// perRequest is for goroutines, headers, and the buffers of both connections.
	perRequest = 32 << 10
	// uploadWindow is what k8s.io/apiserver (pkg/server/secure_serving.go) lets a client send before
	// it is read.
	uploadWindow = 256 << 10

	requestMemory = receiveWindow + copyBufferSize + perRequest
	streamMemory  = streamWindow + copyBufferSize + perRequest
	upgradeMemory = 2*copyBufferSize + wholeFramesBuffer + 4*perRequest
	// tunneledUpgradeMemory includes what the tunnel holds for each connection in any case.
	tunneledUpgradeMemory = upgradeMemory + dialer.MinReceiveBuffer
)

// reservation is memory that a request has taken from the budget. It must be released once.
type reservation struct {
	part  *memory.Part
	owner string
	bytes int64
}

func (r *reservation) release() { r.part.Give(r.owner, r.bytes) }

// reserve takes the memory for a request. It fails with a *limitError.
func (h *Handler) reserve(l *lease, req *http.Request) (reservation, error) {
	use, bytes := memory.Requests, int64(requestMemory)
	switch l.class {
	case classStream:
		use, bytes = memory.Streams, streamMemory
	case classUpgrade:
		use, bytes = memory.Streams, upgradeMemory
		if l.cluster.Route == cluster.RouteTunnel {
			bytes = tunneledUpgradeMemory
		}
	}
	if req.ContentLength != 0 { // not known, or a body
		bytes += uploadWindow
	}
	r := reservation{part: h.cfg.Memory.Part(use), owner: l.cluster.Name, bytes: bytes}
	if !r.part.Take(r.owner, bytes) {
		return r, &limitError{cluster: l.cluster, class: l.class, memory: r.part.Limit(), metrics: l.slot.metrics}
	}
	return r, nil
}
