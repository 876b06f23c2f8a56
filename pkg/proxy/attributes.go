// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/http"
	"net/url"
	"strings"

	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/request"
)

// attributes describe a request as the managed cluster's API server sees it.
type attributes struct {
	// verb is the Kubernetes verb ("get", "list", "watch", …) of a resource request, or the HTTP
	// method in lower case. It is "connect" for upgrades, and "other" for a verb that no API server
	// knows, so that it is fit for a metric label.
	verb string
	// longRunning requests have no deadline.
	longRunning bool
	// upgrade requests ask to leave HTTP.
	upgrade bool
	// relayed requests are for an application behind the API server, which returns the
	// application's answer.
	relayed bool
}

// knownVerbs bounds the verb label of metrics.
var knownVerbs = sets.New("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection",
	"head", "post", "put", "options", "connect")

// relayingResources are the resources whose proxy subresource leads to an application.
var relayingResources = sets.New("services", "pods", "nodes")

// classifier works out the attributes of requests.
type classifier struct{ resolver request.RequestInfoResolver }

func newClassifier() classifier {
	return classifier{&request.RequestInfoFactory{
		APIPrefixes:          sets.NewString("api", "apis"),
		GrouplessAPIPrefixes: sets.NewString("api"),
	}}
}

// classify returns the attributes of a request that is sent to onCluster, its URL on the managed
// cluster.
func (c classifier) classify(req *http.Request, onCluster *url.URL) attributes {
	info, err := c.resolver.NewRequestInfo(&http.Request{Method: req.Method, URL: onCluster, Header: req.Header})
	relayed := err == nil && info.IsResourceRequest && info.APIGroup == "" && info.Subresource == "proxy" &&
		relayingResources.Has(info.Resource)
	if isUpgrade(req.Header) {
		return attributes{verb: "connect", longRunning: true, upgrade: true, relayed: relayed}
	}
	if err != nil || !knownVerbs.Has(info.Verb) {
		return attributes{verb: "other"}
	}
	a := attributes{verb: info.Verb, relayed: relayed}
	if !info.IsResourceRequest {
		return a
	}
	switch info.Subresource {
	case "exec", "attach", "portforward", "proxy":
		a.longRunning = true
	case "log":
		// Read as the API server reads a boolean (apimachinery, pkg/runtime:
		// Convert_Slice_string_To_bool).
		follow, given := onCluster.Query()["follow"]
		a.longRunning = given && follow[0] != "0" && !strings.EqualFold(follow[0], "false")
	default:
		a.longRunning = info.Verb == "watch"
	}
	return a
}
