// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// fuzzedApplication is an application whose names need escapes.
func fuzzedApplication(page string) *application {
	return &application{
		endpoint: &url.URL{Scheme: "https", Host: "cluster:6443"}, prefix: basePath + "a/proxy",
		root: "/api/v1/namespaces/shop/services/https:web:443/proxy", page: page,
	}
}

// FuzzCookies checks that no application sets a cookie that a browser would send to anything but
// the application, and that each cookie that it sets comes back to it.
func FuzzCookies(f *testing.F) {
	for _, value := range []string{
		"a=b", "a=b; Path=/", "a=b; path=/../..; Domain=hub; HttpOnly", "a=b; Path=/x%2f..%2f", "=b", "a", "a=b;;Path", "a=b; Path=//h/x; Secure",
		"a=b; Path=/x; Path=/y", "cluster-gateway.receipt.a=b", "a=b=c; Path = /x", "a=b; Path=/api/v1/namespaces/shop/services/https:web:443/proxy/x",
		`a="b;c"; Path=/`, "a=b; Path=/x,/y", "a=b; Path=/%zz",
	} {
		f.Add(value, "/x/y")
	}
	f.Fuzz(func(t *testing.T, value, page string) {
		u, err := url.ParseRequestURI("/x" + page)
		if err != nil || page != "" && page[0] != '/' || hasDotSegment(page) || u.RawQuery != "" || strings.ContainsAny(value, "\r\n\x00") {
			return // net/http would not have delivered it
		}
		page = strings.TrimPrefix(u.EscapedPath(), "/x")
		a := fuzzedApplication(page)
		sent := http.Header{}
		for _, narrowed := range a.narrowCookies([]string{value}) {
			pair, attributes, _ := strings.Cut(narrowed, ";")
			paths := 0
			for attribute := range strings.SplitSeq(attributes, ";") {
				key, path, _ := strings.Cut(strings.Trim(attribute, " \t"), "=")
				switch strings.ToLower(strings.Trim(key, " \t")) {
				case "domain":
					t.Errorf("%q became %q", value, narrowed)
				case "path":
					paths++
					if !strings.HasPrefix(path, a.prefix+a.root+"/") || hasDotSegment(path) {
						t.Errorf("%q on the page %q is for %q", value, page, path)
					}
				}
			}
			if paths != 1 {
				t.Errorf("%q became %q", value, narrowed)
			}
			sent.Add("Cookie", pair)
		}
		pair, _, _ := strings.Cut(value, ";")
		name, content, _ := strings.Cut(pair, "=")
		want := ""
		if len(sent) > 0 {
			want = strings.Trim(name, " \t") + "=" + strings.Trim(content, " \t")
		}
		if got := applicationCookies(sent); got != want {
			t.Errorf("%q came back as %q, want %q", value, got, want)
		}
	})
}

// FuzzHTML checks that a page of an application arrives whole however it is written, and that a
// rewritten link to the API server stays within the application.
func FuzzHTML(f *testing.F) {
	for _, page := range []string{
		`<a href="/x">`, `<base href="/y/"><a href=z>`, `<a href="https://cluster:6443/x?a#b">`, `<a href="//cluster:6443/..">`, `<A HREF='/x' href=/y>`,
		`<script>"<a href=/x>"</script>`, `<!-- <a href="/x"> -->`, `<a href="&#47;x">`, `<a href="javascript:alert(1)">`, `<a`, `<a href="/\x00">`,
		`<img src=/x longdesc=/y>text<input formaction="/z"/>`, `<a href="/x:y">`, `<a href=" /x ">`, "<a href=\"/\n/x\">",
	} {
		f.Add(page, page)
	}
	f.Fuzz(func(t *testing.T, page, link string) {
		a := fuzzedApplication("/dir/page")
		resp := &http.Response{Header: http.Header{}, Body: io.NopCloser(strings.NewReader(page))}
		rewriteHTML(resp, a)
		got, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatalf("%q: %v", page, err)
		}
		if !strings.Contains(page, "<") && string(got) != page {
			t.Errorf("%q became %q", page, got)
		}
		l := links{application: a, base: a.path()}
		rewritten, to := l.rewrite(link)
		if rewritten == link || hasDotSegment(to) {
			return // the browser resolves dots, as it does without a proxy
		}
		u, err := url.Parse(rewritten)
		if err != nil {
			t.Fatalf("%q became %q: %v", link, rewritten, err)
		}
		on := &url.URL{Scheme: "https", Host: "hub", Path: a.path()}
		if at := on.ResolveReference(u); at.Scheme != "https" || at.Host != "hub" || at.EscapedPath() != a.prefix+a.root && !strings.HasPrefix(at.Path, a.prefix+a.root+"/") {
			t.Errorf("%q became %q, which leads to %s", link, rewritten, at)
		}
	})
}
