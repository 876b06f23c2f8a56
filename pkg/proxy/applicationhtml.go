// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"
)

// maxHTMLToken limits the memory for one tag, text or script of a page. A page with a larger one is
// passed on unchanged from there.
const maxHTMLToken = 1 << 20

// isHTML reports whether an answer is a complete HTML page whose links can be rewritten.
func isHTML(resp *http.Response) bool {
	mediaType, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	if !strings.EqualFold(strings.TrimSpace(mediaType), "text/html") || resp.Request.Method == http.MethodHead {
		return false
	}
	switch resp.StatusCode {
	case http.StatusSwitchingProtocols, http.StatusNoContent, http.StatusPartialContent, http.StatusNotModified:
		return false
	}
	switch strings.ToLower(resp.Header.Get("Content-Encoding")) {
	case "", "identity", "gzip":
		return true
	default:
		return false
	}
}

// rewriteHTML replaces the body of an HTML page with one that has relative links. It rewrites the
// attributes that a Kubernetes API server rewrites (k8s.io/apimachinery, pkg/util/proxy), and so
// undoes what that got wrong for lack of the gateway's path. The hub's aggregation layer rewrites
// the page once more, to links that no browser can follow, but leaves relative ones as they are.
func rewriteHTML(resp *http.Response, a *application) {
	resp.Body = &htmlBody{
		body: resp.Body, compressed: strings.EqualFold(resp.Header.Get("Content-Encoding"), "gzip"),
		links: links{application: a, base: a.path()},
	}
	resp.ContentLength = -1
	resp.Header.Del("Content-Length")
	resp.Header.Del("Content-Encoding")
}

// htmlBody is the body of an HTML page, with rewritten links.
type htmlBody struct {
	body       io.ReadCloser
	compressed bool
	links      links

	tokens *html.Tokenizer
	// plain is the page without compression.
	plain io.Reader
	// passOn is set when the rest is passed on unchanged.
	passOn bool
	tag    []byte
	out    bytes.Buffer
	err    error
}

func (b *htmlBody) Close() error { return b.body.Close() }

func (b *htmlBody) Read(p []byte) (int, error) {
	if b.tokens == nil && b.err == nil {
		b.err = b.open()
	}
	for b.err == nil && !b.passOn && b.out.Len() < len(p) {
		b.next()
	}
	switch {
	case b.out.Len() > 0:
		return b.out.Read(p)
	case b.err != nil:
		return 0, b.err
	default:
		return b.plain.Read(p)
	}
}

func (b *htmlBody) open() error {
	b.plain = b.body
	if b.compressed {
		plain, err := gzip.NewReader(b.body)
		if err != nil {
			return err
		}
		b.plain = plain
	}
	b.tokens = html.NewTokenizer(b.plain)
	b.tokens.SetMaxBuf(maxHTMLToken)
	return nil
}

// next moves a token of the page to b.out.
func (b *htmlBody) next() {
	switch b.tokens.Next() {
	case html.ErrorToken:
		b.out.Write(b.tokens.Raw())
		if err := b.tokens.Err(); errors.Is(err, html.ErrBufferExceeded) {
			b.out.Write(b.tokens.Buffered())
			b.passOn = true
		} else {
			b.err = err
		}
	case html.StartTagToken, html.SelfClosingTagToken:
		b.tag = append(b.tag[:0], b.tokens.Raw()...) // Token changes what Raw returns
		if token := b.tokens.Token(); b.links.rewriteTag(&token) {
			b.out.WriteString(token.String())
		} else {
			b.out.Write(b.tag)
		}
	default:
		b.out.Write(b.tokens.Raw())
	}
}

// links rewrites the links of one page.
type links struct {
	*application
	// base is the path against which a browser resolves the links of the page.
	base string
	// hasBase is set after the first base element. Others have no effect.
	hasBase bool
	// elsewhere is set if the base is not an application of the cluster.
	elsewhere bool
}

// rewriteTag rewrites the links in the attributes of a tag. It reports whether it changed any.
func (l *links) rewriteTag(token *html.Token) (changed bool) {
	for i := range token.Attr {
		attr := &token.Attr[i]
		if !isLink(token.DataAtom, attr.Key) {
			continue
		}
		if l.elsewhere && token.DataAtom != atom.Base {
			continue
		}
		value, to := l.rewrite(attr.Val)
		if value != attr.Val {
			attr.Val, changed = value, true
		}
		if token.DataAtom == atom.Base && !l.hasBase {
			l.hasBase, l.elsewhere = true, to == ""
			if to != "" {
				l.base = to
			}
		}
	}
	return changed
}

// rewrite returns a link as the browser needs it, and the path on the gateway to which it leads.
// The path is empty if the link leads elsewhere.
func (l *links) rewrite(link string) (rewritten, to string) {
	u, err := url.Parse(strings.TrimSpace(link))
	if err != nil || u.Opaque != "" || u.User != nil {
		return link, ""
	}
	switch {
	case u.Scheme != "" && u.Scheme != "http" && u.Scheme != "https", u.Scheme != "" && u.Host == "":
		return link, ""
	case u.Host != "" && !l.hasHost(u):
		return link, ""
	case u.Host == "" && !strings.HasPrefix(u.Path, "/"): // relative already
		base := &url.URL{Path: l.base}
		return link, base.ResolveReference(&url.URL{Path: escapedPath(u)}).Path
	}
	to = l.pathOf(escapedPath(u))
	ref := relativeReference(l.base, to)
	if u.ForceQuery || u.RawQuery != "" {
		ref += "?" + u.RawQuery
	}
	if u.Fragment != "" {
		ref += "#" + u.EscapedFragment()
	}
	return ref, to
}

// isLink reports whether an attribute of an element is a URL that a Kubernetes API server rewrites.
func isLink(element atom.Atom, attribute string) bool {
	switch attribute {
	case "href":
		return element == atom.A || element == atom.Area || element == atom.Base || element == atom.Link
	case "src":
		switch element {
		case atom.Audio, atom.Embed, atom.Frame, atom.Iframe, atom.Img, atom.Input, atom.Script, atom.Source, atom.Video:
			return true
		}
	case "longdesc":
		return element == atom.Frame || element == atom.Iframe || element == atom.Img
	case "usemap":
		return element == atom.Img || element == atom.Input || element == atom.Object
	case "formaction":
		return element == atom.Button || element == atom.Input
	case "cite":
		return element == atom.Blockquote || element == atom.Del || element == atom.Ins || element == atom.Q
	case "codebase":
		return element == atom.Applet || element == atom.Object
	case "classid", "data":
		return element == atom.Object
	case "action":
		return element == atom.Form
	case "background":
		return element == atom.Body
	case "icon":
		return element == atom.Command
	case "manifest":
		return element == atom.Html
	case "poster":
		return element == atom.Video
	case "profile":
		return element == atom.Head
	}
	return false
}
