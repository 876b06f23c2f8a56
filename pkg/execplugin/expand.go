// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package execplugin

import (
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"
)

// references returns the names of the parameters to which a text refers.
func references(text string) ([]string, error) {
	var names []string
	var malformed error
	expand(text, func(name string) string {
		if !parameterName.MatchString(name) {
			malformed = errors.New("$(NAME) must contain the name of a parameter; write $$( for a literal $(")
		}
		names = append(names, name)
		return ""
	})
	switch {
	case malformed != nil:
		return nil, malformed
	case strings.ContainsRune(text, 0):
		return nil, errors.New("must not contain a NUL character")
	}
	return names, nil
}

// expand replaces each $(NAME) with the result of value, and each $$( with $(. It does not expand
// what it has inserted, so a value never refers to another parameter. A reference without its
// closing parenthesis ends with the text.
func expand(text string, value func(name string) string) string {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(text, "$(")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		if strings.HasSuffix(before, "$") {
			b.WriteString("(") // the first $ of $$( is written, and stands for both
			text = rest
			continue
		}
		name, after, closed := strings.Cut(rest, ")")
		if !closed {
			name += "(" // never a name
		}
		b.WriteString(value(name))
		text = after
	}
}

// isPrintable reports whether the value is one line that means what it looks like.
func isPrintable(value string) bool {
	return utf8.ValidString(value) && !strings.ContainsFunc(value, func(r rune) bool { return !unicode.IsPrint(r) })
}
