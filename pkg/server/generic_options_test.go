// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/rest"
)

// The hub sends everything over few HTTP/2 connections. Uploads that one cluster does not read
// (here: a handler that does not read) must not use up the connection's flow-control window, or
// another cluster's uploads wait for them.
func TestStuckUploadsDoNotHoldUpTheirConnection(t *testing.T) {
	const body = 1 << 20
	o := NewGenericOptions()
	o.Serving.BindPort = 0
	o.Serving.Listener = listen(t)
	if err := o.Serving.MaybeDefaultWithSelfSignedCerts("localhost", nil, nil); err != nil {
		t.Fatal(err)
	}
	var info *genericapiserver.SecureServingInfo
	var loopback *rest.Config
	if err := o.Serving.ApplyTo(&info, &loopback); err != nil {
		t.Fatal(err)
	}
	release, arrived := make(chan struct{}), make(chan struct{}, 100)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stuck" {
			arrived <- struct{}{}
			<-release
			return
		}
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			t.Error(err)
		}
		_, _ = io.WriteString(w, strconv.FormatInt(n, 10))
	})
	stop := make(chan struct{})
	stopped, listenerStopped, err := info.Serve(handler, time.Second, stop)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	client := &http.Client{Transport: transport, Timeout: 20 * time.Second}
	url := "https://" + info.Listener.Addr().String()
	var group errgroup.Group
	defer func() {
		close(release)
		_ = group.Wait()
		transport.CloseIdleConnections()
		close(stop)
		<-stopped
		<-listenerStopped
	}()
	post := func(path string) (string, error) {
		resp, err := client.Post(url+path, "application/json", bytes.NewReader(make([]byte, body)))
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		if resp.ProtoMajor != 2 {
			return "", errors.New("not over HTTP/2")
		}
		answer, err := io.ReadAll(resp.Body)
		return string(answer), err
	}
	if _, err := post("/"); err != nil { // the one connection
		t.Fatal(err)
	}
	for range 30 {
		group.Go(func() error { _, err := post("/stuck"); return err })
	}
	for range 30 {
		<-arrived
	}
	if got, err := post("/"); err != nil || got != strconv.Itoa(body) {
		t.Errorf("an upload beside 30 stuck ones: %q, %v", got, err)
	}
}

// k8s.io/apiserver multiplies the number of streams by the window of each, in 32 bits.
func TestTooManyStreams(t *testing.T) {
	for args, fault := range map[string]bool{"": false, "--http2-max-streams-per-connection=8191": false, "--http2-max-streams-per-connection=8192": true} {
		o := parsed(t, strings.Fields("--tunnel-mode=off "+args)...)
		want := []string(nil)
		if fault {
			want = []string{`invalid --http2-max-streams-per-connection "8192": must be at most 8191`}
		}
		if got := messages(o.Validate()); !slices.Equal(got, want) {
			t.Errorf("%q: %q", args, got)
		}
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return lis
}
