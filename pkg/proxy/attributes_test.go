// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/http"
	"net/url"
	"testing"
)

func TestClassify(t *testing.T) {
	upgrade := http.Header{"Connection": {"keep-alive, Upgrade"}, "Upgrade": {"SPDY/3.1"}}
	for _, test := range []struct {
		method, url string
		header      http.Header
		want        attributes
	}{
		{"GET", "/api/v1/namespaces/n/pods", nil, attributes{verb: "list"}},
		{"GET", "/api/v1/namespaces/n/pods?watch=false", nil, attributes{verb: "list"}},
		{"GET", "/api/v1/namespaces/n/pods?watch=1", nil, attributes{verb: "watch", longRunning: true}},
		{"GET", "/api/v1/namespaces/n/pods?watch=1&limit=x", nil, attributes{verb: "watch", longRunning: true}},
		{"GET", "/api/v1/watch/namespaces/n/pods", nil, attributes{verb: "watch", longRunning: true}},
		{"GET", "/api/v1/namespaces/n/pods/p", nil, attributes{verb: "get"}},
		{"GET", "/api/v1/namespaces/n/pods/p/log", nil, attributes{verb: "get", longRunning: true}},
		{"GET", "/api/v1/namespaces/n/pods/p/log?follow=true", nil, attributes{verb: "get", longRunning: true}},
		{"GET", "/apis/example.com/v1/namespaces/n/machines/m/log", nil, attributes{verb: "get", longRunning: true}},
		{"GET", "/api/v1/namespaces/log/pods/log", nil, attributes{verb: "get"}},
		{"GET", "/api/v1/proxy/namespaces/n/services/s/x", nil, attributes{verb: "other", longRunning: true}},
		{"BREW", "/api/v1/namespaces/n/services/s/proxy/x", nil, attributes{verb: "other", longRunning: true, relayed: true}},
		{"GET", "/debug/pprof/profile?seconds=120", nil, attributes{verb: "get", longRunning: true}},
		{"GET", "/debug/pprof", nil, attributes{verb: "get"}},
		{"POST", "/api/v1/namespaces/n/pods/p/exec?command=x", nil, attributes{verb: "create", longRunning: true}},
		{"POST", "/api/v1/namespaces/n/pods/p/exec?command=x", upgrade, attributes{verb: "connect", longRunning: true, upgrade: true}},
		{"GET", "/api/v1/namespaces/n/services/s/proxy/x", nil, attributes{verb: "get", longRunning: true, relayed: true}},
		{"POST", "/api/v1/namespaces/n/pods/https:p:1/proxy", nil, attributes{verb: "create", longRunning: true, relayed: true}},
		{"GET", "/api/v1/nodes/n/proxy/x", upgrade, attributes{verb: "connect", longRunning: true, upgrade: true, relayed: true}},
		{"GET", "/apis/example.com/v1/namespaces/n/services/s/proxy/x", nil, attributes{verb: "get", longRunning: true}},
		{"DELETE", "/api/v1/namespaces/n/pods", nil, attributes{verb: "deletecollection"}},
		{"PATCH", "/apis/apps/v1/namespaces/n/deployments/d", nil, attributes{verb: "patch"}},
		{"GET", "/healthz", nil, attributes{verb: "get"}},
		{"HEAD", "/healthz", nil, attributes{verb: "head"}},
		{"OPTIONS", "/apis", nil, attributes{verb: "options"}},
		{"BREW", "/healthz", nil, attributes{verb: "other"}},
		{"BREW", "/api/v1/pods", nil, attributes{verb: "other"}},
		{"GET", "/healthz?watch=1", nil, attributes{verb: "get"}},
		{"GET", "/", http.Header{"Upgrade": {"h2c"}}, attributes{verb: "get"}},
	} {
		u, err := url.Parse(test.url)
		if err != nil {
			t.Fatal(err)
		}
		got := newClassifier().classify(&http.Request{Method: test.method, URL: u, Header: test.header}, u)
		if got.info = nil; got != test.want {
			t.Errorf("%s %s: got %+v, want %+v", test.method, test.url, got, test.want)
		}
	}
}
