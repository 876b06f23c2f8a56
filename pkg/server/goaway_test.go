// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"testing"
)

// connectionOf sends a request and returns the connection that it used. A request without a user
// is anonymous.
func (s *apiServer) connectionOf(t *testing.T, client *http.Client, user string) net.Conn {
	t.Helper()
	var used net.Conn
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) { used = info.Conn }})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+proxiedPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	if user != "" {
		req.Header.Set(userHeader, user)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("code %d, %v", resp.StatusCode, err)
	}
	return used
}

// TestGoaway checks when the server closes the connection of a client. Without --goaway-chance, it
// does so only after an anonymous request: the generic API server does not let unauthenticated
// clients keep an HTTP/2 connection (feature gate UnauthenticatedHTTP2DOSMitigation).
func TestGoaway(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		chance float64
		user   string
		closes bool
	}{
		"off":                     {0, "jane", false},
		"always":                  {1, "jane", true},
		"off, but anonymous user": {0, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startAPIServer(t, func(http.ResponseWriter, *http.Request) {}, nil, func(o *GenericOptions) { o.GoawayChance = test.chance })
			client := newClient(t)
			first := s.connectionOf(t, client, test.user)
			if test.closes {
				// The client may send requests until it has received the GOAWAY.
				eventually(t, "a new connection", func() bool { return s.connectionOf(t, client, test.user) != first })
				return
			}
			for range 50 {
				if s.connectionOf(t, client, test.user) != first {
					t.Fatal("a request used another connection")
				}
			}
		})
	}
}
