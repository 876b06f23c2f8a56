// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
)

// The gateway's own requests use the cluster's transport and credential, and keep the transport
// until the answer is read.
func TestRoundTripper(t *testing.T) {
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.String() != "/below/api/v1/namespaces/a%2Fb?dryRun=All" || r.Header.Get("Authorization") != "Bearer "+testToken || r.Method != http.MethodPost {
			t.Errorf("%s %s %s", r.Method, r.URL, r.Header)
		}
		body, _ := io.ReadAll(r.Body)
		_, _ = w.Write(append([]byte("got "), body...))
	})
	g := newGateway(t, nil)
	g.set(s.secret("a", "endpoint", s.URL+"/below"))
	client := &http.Client{Transport: g.handler.RoundTripper("a")}
	resp, err := client.Post("https://a/api/v1/namespaces/a%2Fb?dryRun=All", "text/plain", strings.NewReader("it"))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if string(body) != "got it" || err != nil {
		t.Errorf("%q, %v", body, err)
	}
	if err := errors.Join(resp.Body.Close(), resp.Body.Close()); err != nil {
		t.Error(err)
	}
	if _, err := (&http.Client{Transport: g.handler.RoundTripper("b")}).Get("https://b/"); !errors.Is(err, errNoCluster) {
		t.Error(err)
	}
}
