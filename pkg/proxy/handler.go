// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/internal/memory"
)

// Handler serves the proxy subresource. It expects requests that are authenticated and authorized,
// and that carry a RequestInfo. It is safe for concurrent use.
type Handler struct {
	cfg        Config
	classifier classifier
	table      *table
	callers    *callerGate
	buffers    *bufferPool
	bodies     *bodyBudget
	proxyLog   *log.Logger
	serializer runtime.NegotiatedSerializer

	// streams counts the long-running requests in flight. endStreams ends them, by ending
	// streamsCtx.
	streams    atomic.Int64
	streamsCtx context.Context
	endStreams context.CancelFunc

	// rechecked are the long-running requests whose permission is checked again. stopRechecks ends
	// the goroutine that does it, and rechecks waits for it.
	rechecked    openStreams
	stopRechecks context.CancelFunc
	rechecks     sync.WaitGroup
}

var _ http.Handler = (*Handler)(nil)

// NewHandler returns a Handler. Close it after use.
func NewHandler(cfg Config) *Handler {
	cfg.setDefaults()
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	h := &Handler{
		cfg:        cfg,
		classifier: newClassifier(),
		callers:    newCallerGate(cfg.Metrics),
		buffers:    newBufferPool(),
		bodies:     newBodyBudget(cfg.KeptBodyBytes, cfg.Memory.Part(memory.Bodies)),
		proxyLog:   log.New(logWriter{cfg.Logger}, "", 0),
		serializer: serializer.NewCodecFactory(scheme).WithoutConversion(),
	}
	h.streamsCtx, h.endStreams = context.WithCancel(context.Background())
	h.rechecked.open = map[*exchange]struct{}{}
	recheckCtx, stopRechecks := context.WithCancel(context.Background())
	h.stopRechecks = stopRechecks
	if cfg.Authorizer != nil && cfg.RecheckInterval > 0 {
		h.rechecks.Go(func() { h.recheckStreams(recheckCtx) })
	}
	h.table = &table{
		clusters: cfg.Clusters, metrics: cfg.Metrics, logger: cfg.Logger, slots: map[string]*slot{},
		limits: limits{requests: cfg.MaxInFlight, streams: cfg.MaxStreams},
		dials:  newDialLimit(cfg.MaxDials),
		build: func(c *cluster.Cluster, m *clusterMetrics, gate dialGate) (*transports, error) {
			return newTransports(c, cfg.Dialers, cfg.Forwarder, dialLimits{cfg.DialTimeout, cfg.liveness}, m, gate, cfg.Logger)
		},
	}
	return h
}

// Changed follows a cluster's Secret; c is nil when it was deleted. It does not wait for the
// network.
func (h *Handler) Changed(name string, c *cluster.Cluster) { h.table.changed(name, c) }

// Reconnect makes requests to a cluster use new connections from now on. Call it some time before
// the existing connections are closed. Ordinary requests in flight continue. Watches, which would
// not end in time, end as they do when an API server ends them, so that their clients start new
// ones.
func (h *Handler) Reconnect(name string) { h.table.reconnect(name) }

// EndStreams waits until all long-running requests have ended, or until ctx ends. It then ends
// those that are left, and from then on ends new ones at once. Ordinary requests are left for the
// server to wait for.
func (h *Handler) EndStreams(ctx context.Context) {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for h.streams.Load() > 0 {
		select {
		case <-ticker.C:
			continue
		case <-ctx.Done():
		}
		break
	}
	h.endStreams()
}

// Close ends all requests in flight and closes all connections.
func (h *Handler) Close() {
	h.stopRechecks()
	h.endStreams()
	h.table.closeAll()
	h.rechecks.Wait()
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	t, ok := parseTarget(req.URL, v1alpha1.BasePath)
	// The name in the RequestInfo, which is read from the decoded path, is the one that was
	// authorized.
	if info, has := request.RequestInfoFrom(req.Context()); !ok || !has || info.Name != t.cluster || info.Subresource != v1alpha1.ProxySubresource {
		h.refuse(w, req, apierrors.NewBadRequest(fmt.Sprintf(
			"invalid path: must be %sNAME/proxy/PATH, without percent-encoding before PATH", v1alpha1.BasePath)))
		return
	}
	if req.Method == http.MethodTrace || req.Method == http.MethodConnect {
		// The answer to TRACE repeats the request, including the gateway's credential. CONNECT names a
		// host instead of a path: the cluster would not see the path that was authorized.
		h.refuse(w, req, apierrors.NewMethodNotSupported(v1alpha1.Resource(v1alpha1.ResourceName+"/"+v1alpha1.ProxySubresource), req.Method))
		return
	}
	// The attributes do not depend on the path of the cluster's endpoint, so the cluster need not
	// be known yet.
	a := h.classifier.classify(req, t.onEndpoint(&url.URL{}, req.URL))
	l, err := h.table.acquire(t.cluster, callerName(req.Context()), a.class())
	var reserved reservation
	if err == nil {
		if reserved, err = h.reserve(&l, req); err != nil {
			l.release()
		}
	}
	var limit *limitError
	switch {
	case errors.Is(err, errNoCluster):
		h.refuse(w, req, notFound(t.cluster))
	case errors.As(err, &limit):
		code := h.refuse(w, req, tooManyRequests(limit))
		if !isForwarded(req.Context()) { // the other replica counts it
			limit.metrics.requestRefused(string(limit.cluster.Route), a, code)
		}
	case err != nil:
		h.refuse(w, req, shuttingDown(t.cluster))
	default:
		defer reserved.release()
		x := &exchange{handler: h, lease: l, target: t, attributes: a, forwarded: isForwarded(req.Context())}
		x.serve(w, req)
	}
}

// callerName returns the name of the user who sends a request. It is empty if nobody has
// authenticated it.
func callerName(ctx context.Context) string {
	if u, ok := request.UserFrom(ctx); ok && u != nil {
		return u.GetName()
	}
	return ""
}

// refuse writes a Status in the format that the client accepts, and returns its code.
func (h *Handler) refuse(w http.ResponseWriter, req *http.Request, err *apierrors.StatusError) int {
	return responsewriters.ErrorNegotiated(err, h.serializer, schema.GroupVersion{Version: "v1"}, w, req)
}

// logWriter logs what ReverseProxy reports by itself: a client or a cluster that disappeared in the
// middle of an answer.
type logWriter struct{ logger klog.Logger }

func (l logWriter) Write(p []byte) (int, error) {
	l.logger.V(2).Info(strings.TrimSpace(string(p)))
	return len(p), nil
}
