// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/http"
	"net/url"

	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/server/filters"
)

// attributes describe a request as the managed cluster's API server sees it.
type attributes struct {
	// verb is the Kubernetes verb ("get", "list", "watch", …) of a resource request, or the HTTP
	// method in lower case. It is "connect" for upgrades, and "other" for a verb that no API server
	// knows, so that it is fit for a metric label.
	verb string
	// longRunning requests have no deadline.
	longRunning bool
	// upgrade requests ask to leave HTTP. They are ordinary requests until the cluster answers, and
	// long-running from then on if it accepts.
	upgrade bool
	// relayed requests are for an application behind the API server, which returns the
	// application's answer.
	relayed bool
	// info is what the API server will read from the request. It is empty if it cannot be read.
	info *request.RequestInfo
}

// isKnownVerb bounds the verb label of metrics.
func isKnownVerb(verb string) bool {
	switch verb {
	case "get", "list", "watch", "create", "update", "patch", "delete", "deletecollection",
		"head", "post", "put", "options", "connect":
		return true
	}
	return false
}

// isRelaying reports whether the proxy subresource of a resource leads to an application.
func isRelaying(resource string) bool {
	return resource == "services" || resource == "pods" || resource == "nodes"
}

// classifier works out the attributes of requests.
type classifier struct {
	resolver    request.RequestInfoResolver
	longRunning request.LongRunningRequestCheck
}

// newClassifier returns a classifier that treats as long-running exactly what kube-apiserver does
// (k8s.io/kubernetes, pkg/controlplane/apiserver/config.go: BuildGenericConfig). kube-apiserver has
// no deadline for such a request, so neither may the gateway.
func newClassifier() classifier {
	return classifier{
		resolver: &request.RequestInfoFactory{
			APIPrefixes:          sets.NewString("api", "apis"),
			GrouplessAPIPrefixes: sets.NewString("api"),
		},
		longRunning: filters.BasicLongRunningRequestCheck(
			sets.NewString("watch", "proxy"),
			sets.NewString("attach", "exec", "proxy", "log", "portforward"),
		),
	}
}

// classify returns the attributes of a request whose URL on the managed cluster is u.
func (c classifier) classify(req *http.Request, u *url.URL) attributes {
	onCluster := &http.Request{Method: req.Method, URL: u, Header: req.Header}
	info, err := c.resolver.NewRequestInfo(onCluster)
	if err != nil {
		info = &request.RequestInfo{}
	}
	a := attributes{
		info:        info,
		verb:        info.Verb,
		longRunning: c.longRunning(onCluster, info),
		relayed: info.IsResourceRequest && info.APIGroup == "" && info.Subresource == "proxy" &&
			isRelaying(info.Resource),
	}
	switch {
	case isUpgrade(req.Header):
		a.verb, a.upgrade = "connect", true
	case !isKnownVerb(a.verb):
		a.verb = "other"
	}
	return a
}

// class returns the class of a request that the cluster has not answered yet.
func (a attributes) class() class {
	switch {
	case a.upgrade:
		return classUpgrade
	case a.longRunning:
		return classStream
	default:
		return classRequest
	}
}
