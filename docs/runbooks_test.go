// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// runbook is a section of docs/runbooks.md about an alert or a reason.
type runbook struct{ name, text string }

// runbooksOf returns the sections of docs/runbooks.md below a heading, by their anchors.
func runbooksOf(t *testing.T, heading string) map[string]runbook {
	t.Helper()
	all := map[string]runbook{}
	inside, anchor := false, ""
	for _, l := range readPage(t, "docs/runbooks.md").lines {
		switch {
		case l.code:
		case strings.HasPrefix(l.text, "## "):
			inside, anchor = l.text == "## "+heading, ""
		case !inside:
		case strings.HasPrefix(l.text, "### "):
			name := strings.TrimPrefix(l.text, "### ")
			anchor = slugOf(name)
			if _, twice := all[anchor]; twice {
				t.Errorf("docs/runbooks.md has two sections %s", name)
			}
			all[anchor] = runbook{name: name}
		case anchor != "":
			all[anchor] = runbook{name: all[anchor].name, text: all[anchor].text + l.text + "\n"}
		}
	}
	for _, r := range all {
		at := 0
		for _, part := range []string{"- **Symptom:** ", "- **Look:** ", "- **Do:** "} {
			i := strings.Index(r.text[at:], part)
			if i < 0 {
				t.Errorf("docs/runbooks.md: %s has no %q, or not in this order", r.name, part)
				break
			}
			at += i
		}
	}
	return all
}

// TestEachAlertHasARunbook compares the sections with the URLs in the generated rules.
func TestEachAlertHasARunbook(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(root, "manifests/gateway/monitoring/rules.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert       string
				Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal(data, &rules); err != nil {
		t.Fatal(err)
	}
	sections := runbooksOf(t, "Alerts")
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			url, anchor, _ := strings.Cut(r.Annotations["runbook_url"], "#")
			if !strings.HasSuffix(url, "/docs/runbooks.md") || sections[anchor].name != r.Alert {
				t.Errorf("docs/runbooks.md has no section for the alert %s at %s#%s", r.Alert, url, anchor)
			}
			delete(sections, anchor)
		}
	}
	for _, s := range sections {
		t.Errorf("docs/runbooks.md: there is no alert %s", s.name)
	}
}

// TestEachReasonHasARunbook compares the sections with the constants of the API package.
func TestEachReasonHasARunbook(t *testing.T) {
	sections := runbooksOf(t, "Condition reasons")
	found := 0
	for name, value := range stringConstants(t, "pkg/apis/cluster/v1alpha1") {
		if !strings.HasPrefix(name, "Reason") {
			continue
		}
		found++
		if sections[slugOf(value)].name != value {
			t.Errorf("docs/runbooks.md has no section for the reason %s", value)
		}
		delete(sections, slugOf(value))
	}
	if found < 20 {
		t.Fatalf("found %d reasons only", found)
	}
	for _, s := range sections {
		t.Errorf("docs/runbooks.md: there is no reason %s", s.name)
	}
}
