// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/oam-dev/cluster-gateway/pkg/policy"
)

// allowsAndRecords is an Authorizer that allows every request and records what it was asked.
type allowsAndRecords struct{ asked chan *policy.Request }

func (a allowsAndRecords) Authorize(_ context.Context, r *policy.Request) error {
	a.asked <- r
	return nil
}

func (allowsAndRecords) StillAllowed(context.Context, *policy.Request) error { return nil }

// arrival is a request as a managed API server has received it, and what kube-apiserver's own code
// reads from it.
type arrival struct {
	uri    string
	header http.Header
	info   *request.RequestInfo
	err    error
}

// kubeAPIServerInfo is what every API server uses to read its requests
// (k8s.io/apiserver/pkg/server, NewRequestInfoResolver).
func kubeAPIServerInfo() *request.RequestInfoFactory {
	return &request.RequestInfoFactory{APIPrefixes: sets.NewString("api", "apis"), GrouplessAPIPrefixes: sets.NewString("api")}
}

// newReadingAPIServer returns an API server that reports what arrives.
func newReadingAPIServer(t *testing.T, arrivals chan<- arrival) *apiServer {
	return newAPIServer(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		got := arrival{uri: r.RequestURI, header: r.Header.Clone()}
		for name, values := range r.Trailer {
			got.header["Trailer: "+name] = values
		}
		got.info, got.err = kubeAPIServerInfo().NewRequestInfo(r)
		arrivals <- got
	})
}

// targetOf writes what an API server has read as the gateway would ask for it.
func targetOf(info *request.RequestInfo) policy.Target {
	return policy.Target{
		Resource: info.IsResourceRequest, Verbs: []string{info.Verb}, Group: info.APIGroup, Kind: info.Resource,
		Subresource: info.Subresource, Namespace: info.Namespace, Name: info.Name, Path: info.Path,
	}
}

// checkSame fails if the cluster reads something else than what was authorized. The gateway may ask
// for create in addition.
func checkSame(t *testing.T, line string, authorized policy.Target, info *request.RequestInfo) {
	t.Helper()
	if len(authorized.Verbs) == 2 && authorized.Verbs[1] == "create" {
		authorized.Verbs = authorized.Verbs[:1]
	}
	diff(t, line+": what was authorized, and what the cluster reads", authorized, targetOf(info))
}

// readCorpus returns the lines of testdata/requests.txt.
func readCorpus(t testing.TB) []string {
	t.Helper()
	text, err := os.ReadFile("testdata/requests.txt")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			lines = append(lines, strings.ReplaceAll(line, "{long}", strings.Repeat("x", 6000)))
		}
	}
	return lines
}

// sendRaw sends a request line as it is, with headers, and returns the code of the answer.
type sendRaw func(t *testing.T, g *gateway, method, uri string) int

func overHTTP1(t *testing.T, g *gateway, method, uri string) int {
	t.Helper()
	conn := g.raw(method + " " + uri + " HTTP/1.1\r\nHost: gateway\r\n" + userHeader + ": jane\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
	defer conn.Close()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%.200s %.200s: %v", method, uri, err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

func overHTTP2(t *testing.T, g *gateway, method, uri string) int {
	t.Helper()
	req := httptest.NewRequest(http.MethodGet, g.server.URL, nil)
	req.RequestURI, req.Method = "", method
	path, query, has := strings.Cut(uri, "?")
	req.URL.Opaque, req.URL.RawQuery, req.URL.ForceQuery = path, query, has && query == ""
	req.Header.Set(userHeader, "jane")
	resp, err := g.client.Do(req)
	if err != nil {
		t.Fatalf("%.200s %.200s: %v", method, uri, err)
	}
	_ = resp.Body.Close()
	if resp.ProtoMajor != 2 {
		t.Fatalf("%s", resp.Proto)
	}
	return resp.StatusCode
}

// TestClusterReadsWhatWasAuthorized compares, for every spelling in the corpus, what the gateway
// asks the hub with what kube-apiserver's own code reads from the request that arrives. No spelling
// reaches another cluster.
func TestClusterReadsWhatWasAuthorized(t *testing.T) {
	t.Parallel()
	for protocol, send := range map[string]sendRaw{"HTTP/1.1": overHTTP1, "HTTP/2": overHTTP2} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			authorizer := allowsAndRecords{make(chan *policy.Request, 1)}
			g := newGateway(t, func(c *Config) { c.Authorizer, c.AuthorizeRequests = authorizer, true })
			arrivals := make(chan arrival, 1)
			g.set(newReadingAPIServer(t, arrivals).secret("a"))
			g.set(newAPIServer(t, func(_ http.ResponseWriter, r *http.Request) {
				t.Errorf("%s reached another cluster", r.RequestURI)
			}).secret("b"))
			for _, line := range readCorpus(t) {
				rest, refused := strings.CutPrefix(line, "!")
				method, sent, _ := strings.Cut(rest, " ")
				code := send(t, g, method, basePath+"a/proxy"+sent)
				if refused {
					if code != http.StatusBadRequest || len(authorizer.asked) > 0 || len(arrivals) > 0 {
						t.Errorf("%.200s: %d, want 400; asked %d times, arrived %d times", line, code, len(authorizer.asked), len(arrivals))
					}
				} else if code != http.StatusOK {
					t.Errorf("%.200s: %d", line, code)
				}
				select {
				case got := <-arrivals:
					asked := <-authorizer.asked
					if got.err != nil {
						t.Errorf("%.200s: the cluster cannot read %.200s: %v", line, got.uri, got.err)
						continue
					}
					if asked.Cluster != "a" {
						t.Errorf("%.200s: cluster %q was authorized", line, asked.Cluster)
					}
					if got.uri != strings.ReplaceAll(sent, "|", "%7C") {
						t.Errorf("%.200s arrived as %.200s", line, got.uri)
					}
					checkSame(t, line, asked.Target, got.info)
				default:
					for len(authorizer.asked) > 0 {
						<-authorizer.asked
					}
				}
			}
		})
	}
}

// TestOddRequestsReachNoCluster sends request lines and framings with which one server can be made
// to see another request, or one more, than the server in front of it.
func TestOddRequestsReachNoCluster(t *testing.T) {
	t.Parallel()
	const (
		line     = "POST " + basePath + "a/proxy/first HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n"
		smuggled = "GET /smuggled HTTP/1.1\r\nHost: cluster\r\nImpersonate-User: admin\r\n\r\n"
	)
	for name, test := range map[string]struct {
		text string
		// arrives is whether the first request may arrive. The second never may.
		arrives bool
	}{
		"absolute form":              {"GET https://b.example" + basePath + "a/proxy/first HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n", true},
		"absolute form of a cluster": {"GET https://b.example/smuggled HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n", false},
		"CONNECT":                    {"CONNECT cluster:443 HTTP/1.1\r\nHost: cluster:443\r\nConnection: close\r\n\r\n" + smuggled, false},
		"CONNECT to a path":          {"CONNECT " + basePath + "a/proxy/smuggled HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n", false},
		"TRACE":                      {"TRACE " + basePath + "a/proxy/smuggled HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n", false},
		"asterisk":                   {"OPTIONS * HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n", false},
		"length and chunks":          {line + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled, true},
		"two lengths":                {line + "Content-Length: 0\r\nContent-Length: 80\r\n\r\n" + smuggled, false},
		"list of lengths":            {line + "Content-Length: 0, 80\r\n\r\n" + smuggled, false},
		"signed length":              {line + "Content-Length: +0\r\n\r\n" + smuggled, false},
		"length of too few bytes":    {line + "Content-Length: 0\r\n\r\n" + smuggled, true},
		"unknown encoding":           {line + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + smuggled, false},
		"encoding twice":             {line + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + smuggled, false},
		"list of encodings":          {line + "Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n" + smuggled, false},
		"space before the colon":     {line + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + smuggled, false},
		"folded encoding":            {line + "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + smuggled, true},
		"encoding in odd case":       {line + "tRANSFER-eNCODING: cHUNKED\r\n\r\n0\r\n\r\n" + smuggled, true},
		"chunk with a bare LF":       {line + "Transfer-Encoding: chunked\r\n\r\n0\n\n" + smuggled, true},
		"chunk of negative size":     {line + "Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n" + smuggled, true},
		"upgrade to h2c":             {line + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nContent-Length: 0\r\n\r\n" + smuggled, true},
		"CR in a value":              {line + "X-A: b\rImpersonate-User: admin\r\nContent-Length: 0\r\n\r\n", false},
		"NUL in a value":             {line + "X-A: b\x00\r\nContent-Length: 0\r\n\r\n", false},
		"two hosts":                  {line + "Host: cluster\r\nContent-Length: 0\r\n\r\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			arrivals := make(chan arrival, 10)
			g := newGateway(t, nil)
			g.set(newReadingAPIServer(t, arrivals).secret("a"))
			conn := g.raw(test.text)
			_, _ = io.ReadAll(conn)
			g.get("a", "/after") // is sent on the same connection to the cluster
			close(arrivals)
			for got := range arrivals {
				switch {
				case got.uri == "/after", got.uri == "/first" && test.arrives:
				default:
					t.Errorf("%s arrived", got.uri)
				}
				for name := range got.header {
					if hasPrefixFold(strings.TrimPrefix(name, "Trailer: "), "Impersonate-") {
						t.Errorf("%s: %s arrived", got.uri, name)
					}
				}
			}
		})
	}
}

// TestCallersHeadersNeverArriveOverHTTP2 sends what identifies a caller as headers and as trailers.
func TestCallersHeadersNeverArriveOverHTTP2(t *testing.T) {
	t.Parallel()
	arrivals := make(chan arrival, 1)
	g := newGateway(t, nil)
	g.set(newReadingAPIServer(t, arrivals).secret("a"))
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		req, err := http.NewRequest(method, g.url("a", "/x"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if method == http.MethodPost {
			req.Body, req.ContentLength = io.NopCloser(strings.NewReader("x")), -1
			req.Trailer = http.Header{"X-Remote-User": {secretOfCaller}, "Impersonate-User": {secretOfCaller}, "Authorization": {secretOfCaller}, "Cookie": {secretOfCaller}}
			delete(req.Trailer, "Authorization") // net/http refuses to send it
		}
		for header := range strings.SplitSeq(strings.TrimSpace(hostileHeaders), "\r\n") {
			name, value, _ := strings.Cut(header, ": ")
			switch strings.ToLower(name) {
			case "keep-alive", "proxy-connection", "x-hop": // HTTP/2 has no hop-by-hop headers
			default:
				req.Header.Add(name, value)
			}
		}
		resp, err := g.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		got := <-arrivals
		for name, values := range got.header {
			if text := strings.Join(append(values, name), " "); strings.Contains(text, secretOfCaller) || strings.Contains(text, "system:masters") {
				t.Errorf("%s: %s: %q arrived", method, name, values)
			}
		}
		diff(t, "credential", []string{"Bearer " + testToken}, got.header["Authorization"])
	}
}

// FuzzClusterReadsWhatWasAuthorized checks the same property as the corpus without a network: what
// is written to the cluster is read again by net/http and by kube-apiserver's own code.
func FuzzClusterReadsWhatWasAuthorized(f *testing.F) {
	for _, line := range readCorpus(f) {
		method, sent, _ := strings.Cut(strings.TrimPrefix(line, "!"), " ")
		if len(sent) < 1000 {
			f.Add(method, basePath+"a/proxy"+sent)
		}
	}
	f.Fuzz(func(t *testing.T, method, uri string) {
		in, err := http.ReadRequest(bufio.NewReader(strings.NewReader(method + " " + uri + " HTTP/1.1\r\nHost: gateway\r\n\r\n")))
		if err != nil {
			return
		}
		door, err := kubeAPIServerInfo().NewRequestInfo(in)
		parsed, ok := parseTarget(in.URL, basePath)
		if err != nil || !ok || door.Name != parsed.cluster || door.Subresource != "proxy" {
			return // refused by the handler
		}
		out := parsed.onEndpoint(&url.URL{Scheme: "https", Host: "cluster"}, in.URL)
		a := newClassifier().classify(in, out)
		if ambiguous(a.info, parsed.rawPath) {
			return
		}
		at, err := http.ReadRequest(bufio.NewReader(strings.NewReader(in.Method + " " + out.RequestURI() + " HTTP/1.1\r\nHost: cluster\r\n\r\n")))
		if err != nil {
			return // the cluster refuses it
		}
		info, err := kubeAPIServerInfo().NewRequestInfo(at)
		if err != nil {
			t.Fatalf("%s %s: %v", method, uri, err)
		}
		checkSame(t, method+" "+uri, targetOf(a.info), info)
		if in.URL.RawQuery != at.URL.RawQuery {
			t.Errorf("%q: the query became %q", uri, at.URL.RawQuery)
		}
	})
}
