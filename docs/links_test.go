// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"
)

var markdownLink = regexp.MustCompile(`\[[^\]]*\]\(([^)\s]+)\)`)

// TestLinks checks that each relative link leads to a file, and each anchor to a heading.
func TestLinks(t *testing.T) {
	for _, p := range pages(t) {
		for _, l := range p.lines {
			if l.code {
				continue
			}
			for _, m := range markdownLink.FindAllStringSubmatch(codeSpan.ReplaceAllString(l.text, ""), -1) {
				target := m[1]
				if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
					continue
				}
				file, anchor, _ := strings.Cut(target, "#")
				to := p.path
				if file != "" {
					to = path.Join(path.Dir(p.path), file)
				}
				if _, err := os.Stat(filepath.Join(root, to)); err != nil {
					t.Errorf("%s:%d: the link to %s leads nowhere", p.path, l.number, target)
					continue
				}
				if anchor != "" && !anchors(readPage(t, to))[anchor] {
					t.Errorf("%s:%d: %s has no heading with the anchor #%s", p.path, l.number, to, anchor)
				}
			}
		}
	}
}

// anchors are those that GitHub gives to the headings of a page.
func anchors(p page) map[string]bool {
	all := map[string]bool{}
	for _, l := range p.lines {
		if l.code || !strings.HasPrefix(l.text, "#") {
			continue
		}
		slug := slugOf(strings.TrimLeft(l.text, "# "))
		for i := 1; all[slug]; i++ {
			slug = fmt.Sprintf("%s-%d", slugOf(strings.TrimLeft(l.text, "# ")), i)
		}
		all[slug] = true
	}
	return all
}

func slugOf(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
			return unicode.ToLower(r)
		default:
			return -1
		}
	}, heading)
}
