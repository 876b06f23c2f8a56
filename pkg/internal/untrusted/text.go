// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package untrusted makes text that a managed cluster sent safe to store and to show.
//
// What a cluster says about itself (the body of /readyz, its version, error messages, the names in
// its certificates) ends up in conditions, annotations, Events, log lines and terminals. It can be
// of any length and can hold terminal escape sequences, so it passes through [Text] where it enters
// the gateway.
package untrusted

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxLength is the length in bytes of the longest text that [Text] returns. The message of an Event
// may not be longer.
const MaxLength = 1024

// ellipsis marks a text that was cut.
const ellipsis = "…"

// Text returns s as one printable line of at most [MaxLength] bytes. Each sequence of line breaks,
// control characters, escape characters, invisible characters and invalid UTF-8 becomes one space.
// A longer text is cut between two characters and ends in an ellipsis.
func Text(s string) string { return Limit(s, MaxLength) }

// Limit is like [Text] with another maximum length, which must be at least that of the ellipsis (3
// bytes).
func Limit(s string, maxLength int) string {
	var b strings.Builder
	end := 0 // the length of the longest prefix that leaves room for the ellipsis
	space := true
	for i, size := 0, 0; i < len(s); i += size {
		var r rune
		r, size = utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && size == 1 || !unicode.IsPrint(r) {
			r = ' '
		}
		if r == ' ' && space && size > 0 && s[i] != ' ' {
			continue // one space stands for the whole sequence
		}
		if b.Len()+utf8.RuneLen(r) > maxLength {
			return strings.TrimRight(b.String()[:end], " ") + ellipsis
		}
		b.WriteRune(r)
		space = r == ' '
		if b.Len() <= maxLength-len(ellipsis) {
			end = b.Len()
		}
	}
	return strings.TrimRight(b.String(), " ")
}
