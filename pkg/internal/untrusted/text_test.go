// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package untrusted

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestText(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"empty":                   {"", ""},
		"plain":                   {"etcd is not ready", "etcd is not ready"},
		"other scripts":           {"集群 không sẵn sàng", "集群 không sẵn sàng"},
		"spaces are kept":         {"a  b", "a  b"},
		"lines":                   {"[+]ping ok\r\n[-]etcd failed\n", "[+]ping ok [-]etcd failed"},
		"terminal escapes":        {"\x1b[31mred\x1b[0m\a", "[31mred [0m"},
		"C1 escape":               {"a\u009b2Jb", "a 2Jb"},
		"right-to-left override":  {"abc\u202edef", "abc def"},
		"invalid UTF-8":           {"a\xff\xfeb", "a b"},
		"a replacement character": {"a\ufffdb", "a\ufffdb"},
		"only controls":           {"\n\n\x00", ""},
	} {
		if got := Text(c.in); got != c.want {
			t.Errorf("%s: Text(%q) = %q, want %q", name, c.in, got, c.want)
		}
	}
}

func TestTextIsBounded(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{strings.Repeat("a", MaxLength), strings.Repeat("a", MaxLength)},
		{strings.Repeat("a", MaxLength+1), strings.Repeat("a", MaxLength-3) + "…"},
		// A character of two bytes does not fit into the last byte before the ellipsis.
		{strings.Repeat("é", MaxLength), strings.Repeat("é", (MaxLength-3)/2) + "…"},
		{strings.Repeat("x\x1b", 60<<10), strings.Repeat("x ", (MaxLength-3)/2) + "x…"},
	} {
		if got := Text(c.in); got != c.want {
			t.Errorf("Text of %d bytes is %d bytes, want %d: %.40q…%q", len(c.in), len(got), len(c.want), got, got[max(0, len(got)-10):])
		}
	}
}

func FuzzText(f *testing.F) {
	for _, seed := range []string{"", "a b", "\x1b[2J", "\xff", strings.Repeat("世\n", 600)} {
		f.Add(seed, 16)
	}
	f.Fuzz(func(t *testing.T, s string, limit int) {
		limit = 3 + int(uint(limit)%2048)
		got := Limit(s, limit)
		if len(got) > limit || !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("Limit(%q, %d) = %q", s, limit, got)
		}
		if again := Limit(got, limit); again != got {
			t.Errorf("Limit(%q, %d) = %q, and of that %q", s, limit, got, again)
		}
	})
}
