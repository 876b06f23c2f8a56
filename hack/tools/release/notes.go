// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// notes returns the release notes: the section of the changelog about this version, and what is
// needed to check the release.
func (r *release) notes(digest string) ([]file, error) {
	changelog, err := os.ReadFile(filepath.Join(r.source, "CHANGELOG.md"))
	if err != nil {
		return nil, err
	}
	section, ok := changes(string(changelog), r.version)
	if !ok {
		r.say("CHANGELOG.md has no section %s, so the release notes have the section Unreleased.", r.version)
		if section, ok = changes(string(changelog), "Unreleased"); !ok {
			return nil, fmt.Errorf("CHANGELOG.md has neither a section %s nor a section Unreleased", r.version)
		}
	}
	var out strings.Builder
	fmt.Fprintf(&out, "# Cluster Gateway %s\n\n%s\n\n", r.version, absoluteLinks(section, r.version))
	fmt.Fprintf(&out, "## About this release\n\n| | |\n| --- | --- |\n")
	for _, row := range [][2]string{
		{"commit", r.commit}, {"built with", r.goVersion}, {"image", "`" + digest + "`"},
	} {
		fmt.Fprintf(&out, "| %s | %s |\n", row[0], row[1])
	}
	fmt.Fprintf(&out, "\n[How to verify it](%s)\n", project+"/blob/"+r.version+"/docs/release.md")
	return []file{{name: "release-notes.md", data: []byte(out.String()), mode: modeFile}}, nil
}

// changes returns the text of a section: ## [v0.1.0], ## [0.1.0] or ## v0.1.0, perhaps with a date.
func changes(changelog, version string) (string, bool) {
	heading := regexp.MustCompile(`^## \[?v?` + regexp.QuoteMeta(strings.TrimPrefix(version, "v")) + `\]?($|\s)`)
	var section []string
	found := false
	for line := range strings.SplitSeq(changelog, "\n") {
		switch {
		case heading.MatchString(line):
			found = true
		case found && (strings.HasPrefix(line, "## ") || linkDefinition.MatchString(line)):
			return strings.TrimSpace(strings.Join(section, "\n")), true
		case found:
			section = append(section, line)
		}
	}
	return strings.TrimSpace(strings.Join(section, "\n")), found
}

var (
	linkDefinition = regexp.MustCompile(`^\[[^\]]+\]: `)
	link           = regexp.MustCompile(`\]\(([^)\s]+)\)`)
)

// absoluteLinks makes links to files of the repository work elsewhere.
func absoluteLinks(text, version string) string {
	return link.ReplaceAllStringFunc(text, func(whole string) string {
		to := link.FindStringSubmatch(whole)[1]
		if strings.Contains(to, "://") || strings.HasPrefix(to, "#") || strings.HasPrefix(to, "mailto:") {
			return whole
		}
		return "](" + project + "/blob/" + version + "/" + to + ")"
	})
}
