// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"compress/gzip"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/html"
	"k8s.io/apimachinery/pkg/util/proxy"
)

const appPath = "/api/v1/namespaces/web/services/https:shop:443/proxy"

// newApplicationServer starts a managed API server that has an application behind one of its
// Services. It proxies as a kube-apiserver does, with the same code.
func newApplicationServer(t *testing.T, application http.HandlerFunc) *apiServer {
	t.Helper()
	app := httptest.NewServer(application)
	t.Cleanup(app.Close)
	location, err := url.Parse(app.URL)
	if err != nil {
		t.Fatal(err)
	}
	return newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		rest, ok := strings.CutPrefix(r.URL.Path, appPath)
		if !ok {
			http.SetCookie(w, &http.Cookie{Name: "api-server", Value: "x"})
			_, _ = io.WriteString(w, "cookies: "+r.Header.Get("Cookie"))
			return
		}
		to := *location
		to.Path = rest
		r.Header.Del("Authorization")
		proxy.NewUpgradeAwareHandler(&to, http.DefaultTransport, true, false, errorResponder{t}).ServeHTTP(w, r)
	})
}

type errorResponder struct{ t *testing.T }

func (e errorResponder) Error(w http.ResponseWriter, r *http.Request, err error) {
	e.t.Errorf("%s: %v", r.URL, err)
	http.Error(w, err.Error(), http.StatusServiceUnavailable)
}

// newHub starts a hub in front of a gateway. Its aggregation layer is the code of kube-aggregator
// (pkg/apiserver/handler_proxy.go).
func newHub(t *testing.T, g *gateway) *httptest.Server {
	t.Helper()
	location, err := url.Parse(g.server.URL)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // a test server
	t.Cleanup(transport.CloseIdleConnections)
	hub := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		to := *location
		to.Path, to.RawQuery = r.URL.Path, r.URL.Query().Encode()
		out := r.Clone(r.Context())
		out.URL, out.Host = &to, to.Host
		out.Header.Set(throughHubHeader, "yes")
		h := proxy.NewUpgradeAwareHandler(&to, transport, true, strings.EqualFold(r.Header.Get("Connection"), "upgrade"), errorResponder{t})
		h.RejectForwardingRedirects = true
		h.ServeHTTP(w, out)
	}))
	t.Cleanup(hub.Close)
	return hub
}

// doors are the ways to a gateway: its own endpoint, and a hub.
func (g *gateway) doors(t *testing.T) map[string]*httptest.Server {
	return map[string]*httptest.Server{"own endpoint": g.server, "hub": newHub(t, g)}
}

// page is what a browser got.
type page struct {
	*http.Response
	body string
}

func browse(t *testing.T, client *http.Client, address string, header ...string) page {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return page{resp, string(body)}
}

// linksOf returns the links of a page as a browser resolves them.
func linksOf(t *testing.T, p page) (links []string) {
	t.Helper()
	base := p.Request.URL
	tokens := html.NewTokenizer(strings.NewReader(p.body))
	for tokens.Next() != html.ErrorToken {
		token := tokens.Token()
		for _, attr := range token.Attr {
			if attr.Key != "href" && attr.Key != "src" && attr.Key != "action" {
				continue
			}
			u, err := base.Parse(attr.Val)
			if err != nil {
				t.Fatal(err)
			}
			if token.Data == "base" {
				base = u
			} else {
				links = append(links, u.String())
			}
		}
	}
	return links
}

// TestApplicationLinks checks that a browser can follow the links of an application's pages. An API
// server rewrites rooted links so that they begin with its own path; the hub rewrites those again.
func TestApplicationLinks(t *testing.T) {
	pages := map[string]string{
		"/": `<!DOCTYPE html><html><a href="/a/b?x=1#f">1</a><a href='c:d'>2</a><a href="/c:d">3</a>` +
			`<img src=/pic.png><form action="/"></form><a href="?q">4</a><script src="//HOST/s.js"></script><a href="https://elsewhere.example/x">5</a></html>`,
		"/a/b": `<a href="/">up</a><a href="/a/b">self</a><a href="/a/">dir</a><a href="c">c</a><a href="/x%20y">escaped</a>`,
		"/spa": `<base href="/ui/v1/"><script src="main.js"></script><a href="/login">login</a><base href="/no/">`,
	}
	want := map[string][]string{
		"/":    {"/a/b?x=1#f", "c:d", "/c:d", "/pic.png", "/", "/?q", "/s.js", "https://elsewhere.example/x"},
		"/a/b": {"/", "/a/b", "/a/", "/a/c", "/x%20y"},
		"/spa": {"/ui/v1/main.js", "/login"},
	}
	s := newApplicationServer(t, func(w http.ResponseWriter, r *http.Request) {
		text, ok := pages[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		text = strings.ReplaceAll(text, "HOST", r.Host)
		if r.Header.Get("Accept-Encoding") == "gzip" {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			defer z.Close()
			_, _ = io.WriteString(z, text)
			return
		}
		_, _ = io.WriteString(w, text)
	})
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	for name, door := range g.doors(t) {
		for path := range pages {
			root := door.URL + basePath + "a/proxy" + appPath
			for _, encoding := range []string{"gzip, br, zstd", "identity", "br"} {
				p := browse(t, door.Client(), root+path, "Accept-Encoding", encoding)
				if p.StatusCode != http.StatusOK || p.Header.Get("Content-Encoding") != "" {
					t.Fatalf("%s: %s: %s %v %s", name, path, p.Status, p.Header, p.body)
				}
				var links []string
				for _, link := range want[path] {
					if strings.HasPrefix(link, "/") {
						link = root + link
					}
					links = append(links, link)
				}
				diff(t, fmt.Sprintf("%s: links of %s: %s", name, path, p.body), links, linksOf(t, p))
			}
		}
	}
}

// TestApplicationPagePassesUnchanged checks what is not a page with links, and that large pages
// arrive whole.
func TestApplicationPagePassesUnchanged(t *testing.T) {
	large := "<p>" + strings.Repeat("x", 2*maxHTMLToken) + "</p><A HREF=x  Class = 'y'>&eacute;</A><!-- <a href=/x> -->"
	script := `<script>if (a < b) { go("<a href='/x'>") }</script>`
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case appPath + "/large":
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, large)
		case appPath + "/script":
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, script)
		case appPath + "/part":
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = io.WriteString(w, `<a href="/x">`)
		case appPath + "/json", "/api/v1/namespaces/web/configmaps/page":
			w.Header().Set("Content-Type", map[bool]string{true: "application/json", false: "text/html"}[r.URL.Path == appPath+"/json"])
			_, _ = io.WriteString(w, `<a href="/x">`)
		}
	})
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	for path, want := range map[string]string{
		appPath + "/large": large, appPath + "/script": script, appPath + "/part": `<a href="/x">`, appPath + "/json": `<a href="/x">`,
		"/api/v1/namespaces/web/configmaps/page": `<a href="/x">`,
	} {
		if _, body := g.get("a", path); body != want {
			t.Errorf("%s: got %.200q, want %.200q", path, body, want)
		}
	}
}

// TestApplicationRedirects checks that redirects of an application work on the gateway's own
// endpoint, and that through the hub, which passes none on, the answer says why.
func TestApplicationRedirects(t *testing.T) {
	s := newApplicationServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/rooted":
			http.Redirect(w, r, "/home?x=1", http.StatusFound)
		case "/absolute":
			http.Redirect(w, r, "http://"+r.Host+"/home", http.StatusMovedPermanently)
		case "/aware":
			w.Header().Set("Location", basePath+"a/proxy"+appPath+"/home")
			w.WriteHeader(http.StatusSeeOther)
		case "/deep/relative":
			w.Header().Set("Location", "../home")
			w.WriteHeader(http.StatusTemporaryRedirect)
		case "/away":
			http.Redirect(w, r, "https://elsewhere.example/", http.StatusFound)
		case "/created":
			w.Header().Set("Location", "/things/1")
			w.WriteHeader(http.StatusCreated)
		default:
			_, _ = io.WriteString(w, "at "+r.URL.RequestURI())
		}
	})
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	g.set(s.secret("b", "endpoint", s.URL+"/clusters/b"))
	doors := g.doors(t)
	root := basePath + "a/proxy" + appPath
	for path, want := range map[string]string{
		"": "/", "/rooted": "/home?x=1", "/absolute": "/home", "/aware": "/home", "/deep/relative": "/home",
	} {
		own := g.server.Client()
		own.CheckRedirect = nil
		if p := browse(t, own, g.server.URL+root+path); p.StatusCode != http.StatusOK || p.body != "at "+want || !strings.HasPrefix(p.Request.URL.Path, root) {
			t.Errorf("%q on the own endpoint led to %s: %s %s", path, p.Request.URL, p.Status, p.body)
		}
		p := browse(t, doors["hub"].Client(), doors["hub"].URL+root+path)
		if p.StatusCode != http.StatusBadGateway || !strings.Contains(p.body, `cluster \"a\" answered with a redirect`) ||
			!strings.Contains(p.body, " to "+appPath+want+", and the hub's aggregation layer does not pass redirects on") ||
			!strings.Contains(p.body, "own endpoint") {
			t.Errorf("%q through the hub: %s %s", path, p.Status, p.body)
		}
	}
	for name, door := range doors {
		if p := browse(t, door.Client(), door.URL+root+"/away"); p.StatusCode != http.StatusBadGateway || !strings.Contains(p.body, "redirect to another host") {
			t.Errorf("%s: a redirect to another host: %s %s", name, p.Status, p.body)
		}
		if p := browse(t, door.Client(), door.URL+root+"/created"); p.StatusCode != http.StatusCreated || p.Header.Get("Location") != "things/1" {
			t.Errorf("%s: Location of a 201: %s %q", name, p.Status, p.Header.Get("Location"))
		}
	}
}

// TestRedirectsBelowProxies checks that a redirect of an application can be followed through a
// client's proxy that serves the cluster below another path, such as kubectl proxy.
func TestRedirectsBelowProxies(t *testing.T) {
	s := newApplicationServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/old" {
			http.Redirect(w, r, "/new", http.StatusFound)
			return
		}
		_, _ = io.WriteString(w, r.URL.Path)
	})
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	local := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		to, err := url.Parse(g.server.URL)
		if err != nil {
			t.Error(err)
			return
		}
		to.Path = basePath + "a/proxy" + r.URL.Path
		proxy.NewUpgradeAwareHandler(to, g.client.Transport, false, false, errorResponder{t}).ServeHTTP(w, r)
	}))
	defer local.Close()
	if p := browse(t, local.Client(), local.URL+appPath+"/old"); p.StatusCode != http.StatusOK || p.body != "/new" {
		t.Errorf("led to %s: %s %s", p.Request.URL, p.Status, p.body)
	}
}

// TestApplicationCookies checks that an application gets its own cookies, and no others.
func TestApplicationCookies(t *testing.T) {
	shop := func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/login":
			w.Header()["Set-Cookie"] = []string{
				"session=s3cret; Path=/; Domain=shop.example; HttpOnly; Secure; SameSite=Lax; Max-Age=600",
				"lang=de; path=/ui", "here=1", "dots=1; Path=/../../x", "aware=1; Path=" + appPath + "/aware",
				"=nameless", "valueless", receiptPrefix + "hub=" + receipt("hub", "guess"),
			}
		case "/logout":
			http.SetCookie(w, &http.Cookie{Name: "session", Path: "/", MaxAge: -1})
		}
		_, _ = io.WriteString(w, "cookies: "+r.Header.Get("Cookie"))
	}
	s := newApplicationServer(t, shop)
	g := newGateway(t, func(c *Config) { c.ApplicationCookies = true })
	g.set(s.secret("a"))
	g.set(s.secret("b"))
	for name, door := range g.doors(t) {
		jar, err := cookiejar.New(nil)
		if err != nil {
			t.Fatal(err)
		}
		client := &http.Client{Transport: door.Client().Transport, Jar: jar}
		origin, err := url.Parse(door.URL)
		if err != nil {
			t.Fatal(err)
		}
		// What the hub, or a proxy in front of it, has set.
		jar.SetCookies(origin, []*http.Cookie{
			{Name: "hub", Value: "hub-session", Path: "/"}, {Name: "session", Value: "hub-session", Path: "/"},
		})
		root := door.URL + basePath + "a/proxy" + appPath
		cookies := func(address string) string {
			t.Helper()
			p := browse(t, client, address)
			return strings.TrimPrefix(p.body, "cookies: ")
		}
		if got := cookies(root + "/"); got != "" {
			t.Errorf("%s: before the application has set one: %q", name, got)
		}
		p := browse(t, client, root+"/login")
		path := basePath + "a/proxy" + appPath
		var set []string
		for _, c := range p.Response.Header["Set-Cookie"] {
			if !strings.HasPrefix(c, receiptPrefix) {
				set = append(set, c)
			} else if !strings.Contains(c, "; Path="+path+"/") || !strings.Contains(c, "; HttpOnly") {
				t.Errorf("%s: a receipt: %s", name, c)
			}
		}
		diff(t, name+": Set-Cookie", []string{
			"session=s3cret; Path=" + path + "/; HttpOnly; Secure; SameSite=Lax; Max-Age=600",
			"lang=de; Path=" + path + "/ui", "here=1; Path=" + path + "/", "dots=1; Path=" + path + "/",
			"aware=1; Path=" + path + "/aware",
		}, set)
		for address, want := range map[string]string{
			root + "/":      "dots=1; here=1; session=s3cret",
			root + "/ui/x":  "dots=1; here=1; lang=de; session=s3cret",
			root + "/aware": "aware=1; dots=1; here=1; session=s3cret",
			door.URL + basePath + "a/proxy/api/v1/namespaces/web/secrets": "",
			door.URL + basePath + "b/proxy" + appPath + "/":               "",
		} {
			got := strings.Split(cookies(address), "; ")
			slices.Sort(got)
			diff(t, name+": cookies at "+address, want, strings.Join(got, "; "))
		}
		// The cookie of the hub with the same name stays the hub's.
		browse(t, client, root+"/logout")
		if got := cookies(root + "/"); strings.Contains(got, "hub-session") || strings.Contains(got, "session=") {
			t.Errorf("%s: after the application has deleted its cookie: %q", name, got)
		}
		// An application that knows the name of a cookie does not get its value.
		forged := browse(t, &http.Client{Transport: door.Client().Transport}, root+"/",
			"Cookie", "hub=hub-session; "+receiptPrefix+"hub="+receipt("hub", "guess"))
		if forged.body != "cookies: " {
			t.Errorf("%s: with a forged receipt: %s", name, forged.body)
		}
		// The API server itself sets and gets none.
		api := browse(t, client, door.URL+basePath+"a/proxy/api/v1/nodes")
		if api.body != "cookies: " || api.Header.Get("Set-Cookie") != "" {
			t.Errorf("%s: the API server: %v %s", name, api.Header, api.body)
		}
	}
	off := newGateway(t, nil)
	off.set(s.secret("a"))
	resp, body := off.get("a", appPath+"/login", "Cookie", "session=s3cret; "+receiptPrefix+"session="+receipt("session", "s3cret"))
	if body != "cookies: " || resp.Header.Get("Set-Cookie") != "" {
		t.Errorf("without ApplicationCookies: %v %s", resp.Header, body)
	}
}

// TestApplicationWebSocket checks that an application's WebSocket works, with its cookie.
func TestApplicationWebSocket(t *testing.T) {
	s := newApplicationServer(t, func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSet-Cookie: ws=1; Path=/\r\n\r\n")
		_ = rw.Flush()
		line, _ := rw.ReadString('\n')
		_, _ = fmt.Fprintf(rw, "%s %s %s", r.Header.Get("Cookie"), r.Header.Get("Origin"), line)
		_ = rw.Flush()
	})
	g := newGateway(t, func(c *Config) { c.ApplicationCookies = true })
	g.set(s.secret("a"))
	conn := g.raw("GET " + basePath + "a/proxy" + appPath + "/ws HTTP/1.1\r\nHost: gateway\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Origin: https://gateway\r\nCookie: hub=x; id=7; " + receiptPrefix + "id=" + receipt("id", "7") + "\r\n\r\n")
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols || !strings.HasPrefix(resp.Header.Get("Set-Cookie"), "ws=1; Path="+basePath+"a/proxy"+appPath+"/") {
		t.Fatalf("%s %v", resp.Status, resp.Header)
	}
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		t.Fatal(err)
	}
	line, err := r.ReadString('\n')
	if line != "id=7 https://gateway hello\n" {
		t.Errorf("got %q, %v", line, err)
	}
}

func TestRelativeReference(t *testing.T) {
	for _, test := range []struct{ from, to, want string }{
		{"/a/b", "/a/b", "b"}, {"/a/b", "/a/", "./"}, {"/a/b", "/a", "../a"}, {"/a/b", "/", "../"}, {"/a/b/", "/a/c", "../c"},
		{"/a/b", "/a/c:d", "./c:d"}, {"/a/b", "/a//c", ".//c"}, {"/a/b/c", "/x/y", "../../x/y"}, {"/ab/c", "/ac/d", "../ac/d"},
	} {
		got := relativeReference(test.from, test.to)
		if got != test.want {
			t.Errorf("from %s to %s: got %q, want %q", test.from, test.to, got, test.want)
		}
		resolved := (&url.URL{Path: test.from}).ResolveReference(mustParse(t, got))
		if resolved.Path != test.to {
			t.Errorf("from %s, %q leads to %s, not to %s", test.from, got, resolved.Path, test.to)
		}
	}
}

func mustParse(t *testing.T, address string) *url.URL {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestLimitEncodings(t *testing.T) {
	for accepted, want := range map[string]string{
		"": "", "gzip, deflate, br, zstd": "gzip", "br": "identity", "gzip;q=0": "identity", "gzip; q=0.5": "gzip", "*": "identity", "GZIP": "gzip",
	} {
		h := http.Header{}
		if accepted != "" {
			h.Set("Accept-Encoding", accepted)
		}
		limitEncodings(h)
		diff(t, accepted, want, h.Get("Accept-Encoding"))
	}
}

// TestNewApplication checks where the path of an application ends.
func TestNewApplication(t *testing.T) {
	for path, want := range map[string]string{
		"/api/v1/namespaces/n/services/s/proxy":        "/api/v1/namespaces/n/services/s/proxy",
		"/api/v1/namespaces/n/pods/p:80/proxy/a/proxy": "/api/v1/namespaces/n/pods/p:80/proxy",
		"/api/v1/nodes/n/proxy/metrics":                "/api/v1/nodes/n/proxy",
		"/api/v1/namespaces/n/services/a%2Fproxy/x":    "",
		"//api/v1/nodes/n/proxy/":                      "",
		"/api/v1/nodes/n":                              "",
	} {
		a, ok := newApplication(&url.URL{}, target{rawPath: path})
		if a.root != want || ok != (want != "") {
			t.Errorf("%s: got %q, %v, want %q", path, a.root, ok, want)
		}
	}
}
