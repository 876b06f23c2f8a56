// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/oam-dev/cluster-gateway/benchmark/measure"
)

// form is one output format of the report.
type form struct {
	name   string
	render func(io.Writer) error
}

// write prints the report and writes it in all formats.
func (s *session) write() error {
	if err := os.MkdirAll(s.options.out, 0o755); err != nil {
		return err
	}
	forms := []form{
		{"report.txt", s.report.Text},
		{"report.md", s.report.Markdown},
		{"report.json", s.report.JSON},
		{"benchstat.txt", s.report.Benchstat},
		{"report.html", s.report.HTML},
	}
	for _, f := range s.report.Figures() {
		forms = append(forms, form{f.Name + ".svg", func(w io.Writer) error {
			svg, err := f.SVG(false)
			if err != nil {
				return err
			}
			_, err = w.Write(svg)
			return err
		}})
	}
	for _, form := range forms {
		if err := writeFile(filepath.Join(s.options.out, form.name), form.render); err != nil {
			return err
		}
	}
	fmt.Fprintln(s.out)
	if err := s.report.Text(s.out); err != nil {
		return err
	}
	fmt.Fprintln(s.out)
	for _, form := range forms {
		s.logf("%s", filepath.Join(s.options.out, form.name))
	}
	return nil
}

func writeFile(path string, render func(io.Writer) error) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := render(f); err != nil {
		_ = f.Close() // an earlier error is returned instead
		return fmt.Errorf("%s: %w", path, err)
	}
	return f.Close()
}

// versions returns the versions of the components that were measured and of the benchmark.
func (s *session) versions() map[string]string {
	versions := map[string]string{"benchmark": revision()}
	if v := s.serverVersion(s.routes[0]); v != "" {
		versions["managed API server"] = v
	}
	if s.bed != nil {
		versions["gateway"] = "built from the same checkout"
		if s.options.gatewayBinary != "" {
			versions["gateway"] = s.options.gatewayBinary
		}
		for _, b := range s.bed.Lab.Binaries().All() {
			versions[b.Name] = filepath.Base(filepath.Dir(b.Path))
		}
	}
	return versions
}

func (s *session) serverVersion(r *measure.Route) string {
	body, _, err := r.Do(s.ctx, http.MethodGet, "/version", nil)
	var version struct {
		GitVersion string `json:"gitVersion"`
	}
	if err != nil || json.Unmarshal(body, &version) != nil {
		return ""
	}
	return version.GitVersion
}

// builtFrom is set by the linker: see the Makefile.
var builtFrom string

// revision returns the commit that this binary was built from.
func revision() string {
	if builtFrom != "" {
		return builtFrom
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	commit, dirty := "unknown", ""
	for _, setting := range info.Settings {
		switch {
		case setting.Key == "vcs.revision":
			commit = setting.Value
		case setting.Key == "vcs.modified" && setting.Value == "true":
			dirty = ", with changes"
		}
	}
	return commit + dirty
}
