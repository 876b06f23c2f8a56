// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strings"
)

// A Cookie header says neither who set a cookie nor for which path. A browser sends an application
// the application's own cookies, and all those that the hub, or whatever else is served at the same
// origin, has set for a path above it. The gateway must not pass on the latter.
//
// So the gateway sets a second cookie with each cookie of an application: a receipt, with the same
// path and lifetime, whose value is a hash of the name and the value. Only a cookie with a receipt
// is passed on. Whoever can make a receipt knows the cookie's value already, so no application can
// get a cookie that it does not know. The receipt needs no key, so any replica can check it.

// receiptPrefix begins the name of a receipt. The name of its cookie follows.
const receiptPrefix = "cluster-gateway.receipt."

// receipt returns the value of the receipt for a cookie.
func receipt(name, value string) string {
	sum := sha256.Sum256([]byte(name + "=" + value))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// applicationCookies returns the cookies of a request that have a receipt, as a Cookie header. It
// is empty if there are none.
func applicationCookies(h http.Header) string {
	type cookie struct{ name, value string }
	var cookies []cookie
	receipts := map[cookie]bool{}
	for _, line := range h["Cookie"] {
		for pair := range strings.SplitSeq(line, ";") {
			name, value, ok := strings.Cut(strings.Trim(pair, " \t"), "=")
			if !ok || name == "" {
				continue
			}
			if of, is := strings.CutPrefix(name, receiptPrefix); is {
				receipts[cookie{of, value}] = true
			} else {
				cookies = append(cookies, cookie{name, value})
			}
		}
	}
	var kept []string
	for _, c := range cookies {
		if len(receipts) > 0 && receipts[cookie{c.name, receipt(c.name, c.value)}] {
			kept = append(kept, c.name+"="+c.value)
		}
	}
	return strings.Join(kept, "; ")
}

// narrowCookies returns the Set-Cookie headers with which an application sets its cookies: for the
// application's path on the gateway or below it, and each with a receipt.
func (a *application) narrowCookies(values []string) []string {
	var narrowed []string
	for _, value := range values {
		pair, rest, _ := strings.Cut(value, ";")
		name, content, ok := strings.Cut(pair, "=")
		name, content = strings.Trim(name, " \t"), strings.Trim(content, " \t")
		if !ok || name == "" || hasPrefixFold(name, receiptPrefix) {
			continue
		}
		path, httpOnly := "", false
		var attributes strings.Builder
		for attribute := range strings.SplitSeq(rest, ";") {
			attribute = strings.Trim(attribute, " \t")
			key, v, _ := strings.Cut(attribute, "=")
			switch strings.ToLower(strings.Trim(key, " \t")) {
			case "": // nothing
			case "domain": // is of the host that the application knows
			case "path":
				path = strings.Trim(v, " \t")
			case "httponly":
				httpOnly = true
				attributes.WriteString("; HttpOnly")
			default:
				attributes.WriteString("; " + attribute)
			}
		}
		suffix := "; Path=" + a.cookiePath(path) + attributes.String()
		narrowed = append(narrowed, name+"="+content+suffix)
		if !httpOnly {
			suffix += "; HttpOnly"
		}
		narrowed = append(narrowed, receiptPrefix+name+"="+receipt(name, content)+suffix)
	}
	return narrowed
}

// cookiePath returns the path on the gateway for a Path attribute. It is always within the
// application. If there is no attribute, a browser uses the directory of the page (RFC 6265,
// 5.1.4).
func (a *application) cookiePath(attribute string) string {
	if !strings.HasPrefix(attribute, "/") || hasDotSegment(attribute) {
		attribute = a.prefix + a.root + a.page[:max(0, strings.LastIndexByte(a.page, '/'))]
	}
	path := a.pathOf(attribute)
	if path == a.prefix+a.root {
		path += "/"
	}
	return path
}
