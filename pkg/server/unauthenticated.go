// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"net"
	"net/http"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"

	"github.com/oam-dev/cluster-gateway/pkg/internal/memory"
)

const (
	// unauthenticatedMemory is what a request makes the gateway hold before it is authenticated,
	// besides its header: goroutines and buffers of its stream.
	unauthenticatedMemory = 32 << 10
	// unauthenticatedBody is how much of a body a client can send before anybody reads it
	// (k8s.io/apiserver, pkg/server/secure_serving.go).
	unauthenticatedBody = 256 << 10
)

// withUnauthenticatedLimit takes memory from part for each request until releasingAuthenticator has
// authenticated its caller. To check a token, the gateway asks the hub, which takes time, and
// meanwhile anybody who can connect can make the gateway hold bodies and headers. Addresses of
// clients are treated alike. A request with a client certificate and no token takes nothing, so the
// hub and its administrators always get in: this process checks the certificate at once.
func withUnauthenticatedLimit(handler http.Handler, part *memory.Part, s runtime.NegotiatedSerializer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 && r.Header.Get("Authorization") == "" {
			handler.ServeHTTP(w, r)
			return
		}
		owner, _, err := net.SplitHostPort(r.RemoteAddr)
		if err != nil {
			owner = r.RemoteAddr
		}
		bytes := sizeBeforeAuthentication(r)
		if !part.Take(owner, bytes) {
			w.Header().Set("Connection", "close")
			responsewriters.ErrorNegotiated(apierrors.NewTooManyRequests(
				"too many requests wait for authentication at this gateway (--memory-budget); try again later", 1), s, schema.GroupVersion{Version: "v1"}, w, r)
			return
		}
		release := sync.OnceFunc(func() { part.Give(owner, bytes) })
		defer release()
		handler.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), releaseKey{}, release)))
	})
}

type releaseKey struct{}

// sizeBeforeAuthentication returns how much memory a request can make the gateway hold before
// anything reads its body.
func sizeBeforeAuthentication(r *http.Request) int64 {
	n := int64(unauthenticatedMemory)
	for name, values := range r.Header {
		for _, value := range values {
			n += int64(len(name) + len(value))
		}
	}
	if r.ContentLength != 0 { // not known, or a body
		n += unauthenticatedBody
	}
	return n
}

// releasingAuthenticator gives back what withUnauthenticatedLimit has taken, once the caller is
// known. Anonymous callers keep it until they have their answer.
type releasingAuthenticator struct{ authenticator.Request }

var _ authenticator.Request = releasingAuthenticator{}

// AuthenticateRequest implements authenticator.Request.
func (a releasingAuthenticator) AuthenticateRequest(r *http.Request) (*authenticator.Response, bool, error) {
	resp, ok, err := a.Request.AuthenticateRequest(r)
	if release, has := r.Context().Value(releaseKey{}).(func()); has && ok && err == nil && resp.User.GetName() != user.Anonymous {
		release()
	}
	return resp, ok, err
}
