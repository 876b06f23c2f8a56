// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// docLink is a name in brackets: of a symbol, a member of a type, or one of these with its package.
// The characters beside the brackets are spaces or punctuation, so arrays and maps are not links.
var docLink = regexp.MustCompile(`(?:^|[\s("'])\[\*?([A-Za-z_]\w*(?:\.[A-Za-z_]\w*){0,2})\](?:$|[\s.,;:!?)"'])`)

// TestDocLinks checks that each doc link in a Go comment leads to something that is declared.
func TestDocLinks(t *testing.T) {
	files := goFiles(t)
	ours := declared(files)

	type link struct {
		at, folder, path, symbol string
	}
	var links []link
	var foreign []string
	// As for the go command, the imports of all files of a package count.
	imports := map[string]map[string]string{}
	for _, s := range files {
		folder := filepath.ToSlash(filepath.Dir(s.path))
		if imports[folder] == nil {
			imports[folder] = map[string]string{}
		}
		for _, i := range s.file.Imports {
			p, _ := strconv.Unquote(i.Path.Value)
			name := path.Base(p)
			if i.Name != nil {
				name = i.Name.Name
			}
			imports[folder][name] = p
		}
	}
	for _, s := range files {
		folder := filepath.ToSlash(filepath.Dir(s.path))
		for _, group := range s.file.Comments {
			for _, comment := range group.List {
				at := s.path + ":" + strconv.Itoa(s.fset.Position(comment.Pos()).Line)
				text := strings.TrimPrefix(comment.Text, "//")
				if strings.HasPrefix(text, "\t") || strings.HasPrefix(text, "    ") {
					continue // code in a comment
				}
				for _, m := range docLink.FindAllStringSubmatch(text, -1) {
					first, rest, _ := strings.Cut(m[1], ".")
					if p, ok := imports[folder][first]; ok && rest != "" {
						links = append(links, link{at, folder, p, rest})
						if !strings.HasPrefix(p, module) {
							foreign = append(foreign, p)
						}
						continue
					}
					links = append(links, link{at, folder, "", m[1]})
				}
			}
		}
	}
	slices.Sort(foreign)
	theirs := importedSymbols(t, slices.Compact(foreign))

	for _, l := range links {
		in := ours[l.folder]
		if own, ok := strings.CutPrefix(l.path, module+"/"); ok {
			in = ours[own]
		} else if l.path != "" {
			in = theirs[l.path]
		}
		if !in[l.symbol] {
			t.Errorf("%s: the link to %s leads nowhere", l.at, strings.TrimPrefix(l.path+" "+l.symbol, " "))
		}
	}
	if len(links) < 10 {
		t.Fatalf("found %d links only", len(links))
	}
}
