// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

// width is the longest line of a page, in characters.
const width = 100

var longWord = regexp.MustCompile(`\S{60,}`)

// TestLineLength holds prose to the width. Tables, code and lines with a long URL or path are
// exempt.
func TestLineLength(t *testing.T) {
	for _, p := range pages(t) {
		if p.generated() || historic(p) && p.path != "CHANGELOG.md" {
			continue
		}
		for _, l := range p.lines {
			if l.code || strings.HasPrefix(strings.TrimSpace(l.text), "|") || longWord.MatchString(l.text) {
				continue
			}
			if n := utf8.RuneCountInString(l.text); n > width {
				t.Errorf("%s:%d: %d characters; at most %d are allowed", p.path, l.number, n, width)
			}
		}
	}
}

// british spellings that Kubernetes' documentation does not use.
var british = regexp.MustCompile(`(?i)\b(?:(?:un)?authoris\w*|organis\w*|recognis\w*|serialis\w*|initialis\w*|behaviour\w*|honour\w*|colour\w*|(?:re)?dialled|dialling|dialler\w*|cancelled|cancelling|labelled|travell\w*|licence|favour\w*|artefact\w*)\b`)

// TestSpelling holds pages to US spelling. The linter does the same for Go.
func TestSpelling(t *testing.T) {
	for _, p := range pages(t) {
		if p.path == "docs/benchmark/report.md" {
			continue
		}
		for _, l := range p.lines {
			if word := british.FindString(l.text); word != "" {
				t.Errorf("%s:%d: %q is not US spelling", p.path, l.number, word)
			}
		}
	}
}
