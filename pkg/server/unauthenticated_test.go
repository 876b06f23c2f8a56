// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/oam-dev/cluster-gateway/pkg/internal/memory"
	"github.com/oam-dev/cluster-gateway/pkg/registry"
)

// TestUnauthenticatedLimit checks what requests hold before they are authenticated, that those that
// do not fit are refused, and who is not affected.
func TestUnauthenticatedLimit(t *testing.T) {
	const budget = 64 << 20
	part := memory.NewBudget(budget).Part(memory.Unauthenticated)
	authenticating, answer := make(chan struct{}), make(chan struct{})
	slow := authenticator.RequestFunc(func(r *http.Request) (*authenticator.Response, bool, error) {
		if r.Header.Get("Authorization") == "Bearer slow" {
			authenticating <- struct{}{}
			<-answer
		}
		name := "joe"
		if r.Header.Get("Authorization") == "" && r.TLS == nil {
			name = user.Anonymous
		}
		return &authenticator.Response{User: &user.DefaultInfo{Name: name}}, true, nil
	})
	checked := make(chan int64, 1)
	chain := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok, err := (releasingAuthenticator{slow}).AuthenticateRequest(r); !ok || err != nil {
			t.Error(ok, err)
		}
		if r.URL.Path == "/held" {
			// How much another address can take shows how much this one holds.
			var n int64
			for ; part.Take("other", 1<<10); n += 1 << 10 {
				continue
			}
			part.Give("other", n)
			checked <- n
		}
		w.WriteHeader(http.StatusNoContent)
	})
	scheme, err := registry.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	h := withUnauthenticatedLimit(chain, part, serializer.NewCodecFactory(scheme))
	send := func(path, address, token string, state *tls.ConnectionState, body io.Reader) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodPost, path, body)
		r.RemoteAddr, r.TLS = address, state
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	send("/held", "192.0.2.1:1", "good", nil, strings.NewReader("x"))
	if free := <-checked; free != part.Limit()/2 {
		t.Errorf("after authentication, %d of %d bytes are left for another address, want half", free, part.Limit())
	}
	send("/held", "192.0.2.1:1", "", nil, strings.NewReader("x"))
	if free := <-checked; free >= part.Limit()/2 {
		t.Errorf("an anonymous request holds nothing: %d of %d bytes are left for another address", free, part.Limit())
	}
	waiting := 0
	for ; int64(waiting+1)*(unauthenticatedMemory+unauthenticatedBody+100) <= part.Limit()/2; waiting++ {
		go send("/", "192.0.2.1:2", "slow", nil, strings.NewReader("x"))
		<-authenticating
	}
	w := send("/", "192.0.2.1:3", "good", nil, strings.NewReader("x"))
	if w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") != "1" || w.Header().Get("Connection") != "close" || !strings.Contains(w.Body.String(), "--memory-budget") {
		t.Errorf("with %d requests of this address waiting: %d %v %s", waiting, w.Code, w.Header(), w.Body)
	}
	if w := send("/", "192.0.2.2:1", "good", nil, strings.NewReader("x")); w.Code != http.StatusNoContent {
		t.Errorf("another address: %d %s", w.Code, w.Body)
	}
	certificate := &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{}}}
	if w := send("/", "192.0.2.1:4", "", certificate, strings.NewReader("x")); w.Code != http.StatusNoContent {
		t.Errorf("the same address with a certificate: %d %s", w.Code, w.Body)
	}
	close(answer)
	w = send("/", "192.0.2.1:5", "good", nil, http.NoBody)
	for w.Code == http.StatusTooManyRequests { // the last ones are just leaving
		w = send("/", "192.0.2.1:5", "good", nil, http.NoBody)
	}
	if w.Code != http.StatusNoContent {
		t.Errorf("after the others have been answered: %d %s", w.Code, w.Body)
	}
}
