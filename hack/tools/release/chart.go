// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// charts returns the packaged charts, as helm package makes them, with the version of the release.
func (r *release) charts() ([]file, error) {
	names, err := filepath.Glob(filepath.Join(r.source, "charts", "*", "Chart.yaml"))
	if err != nil {
		return nil, err
	}
	var packages []file
	for _, path := range names {
		f, err := r.chart(filepath.Dir(path))
		if err != nil {
			return nil, fmt.Errorf("chart %s: %w", filepath.Base(filepath.Dir(path)), err)
		}
		packages = append(packages, f)
	}
	return packages, nil
}

func (r *release) chart(dir string) (file, error) {
	chart := filepath.Base(dir)
	var files []file
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		if !entry.Type().IsRegular() {
			return fmt.Errorf("%s is not a regular file", path)
		}
		inside, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if data, err = r.stampChart(chart+"/"+filepath.ToSlash(inside), string(data)); err != nil {
			return fmt.Errorf("%s: %w", inside, err)
		}
		files = append(files, file{name: chart + "/" + filepath.ToSlash(inside), data: data, mode: modeFile})
		return nil
	})
	if err != nil {
		return file{}, err
	}
	data, err := tarGz(files, r.time)
	return file{name: chart + "-" + r.chartVersion() + ".tgz", data: data, mode: modeFile}, err
}

// chartVersion returns the version as charts write it.
func (r *release) chartVersion() string { return strings.TrimPrefix(r.version, "v") }

// gatewayChart is the name of the chart with the gateway's image.
const gatewayChart = "cluster-gateway"

// The lines of a chart that differ in a release.
const (
	chartVersionLine    = "version: 0.0.0"
	chartAppVersionLine = "appVersion: v0.0.0"
	chartImageLine      = "  repository: " + defaultImage
)

func (r *release) stampChart(name, text string) ([]byte, error) {
	lines := strings.Split(text, "\n")
	switch {
	case filepath.Base(name) == "Chart.yaml":
		if err := onlyLine(lines, chartVersionLine, "version: "+r.chartVersion()); err != nil {
			return nil, err
		}
		if err := onlyLine(lines, chartAppVersionLine, "appVersion: "+r.version); err != nil {
			return nil, err
		}
	case name == gatewayChart+"/values.yaml": // the other chart has no image of ours
		if err := onlyLine(lines, chartImageLine, "  repository: "+r.image); err != nil {
			return nil, err
		}
	}
	return []byte(strings.Join(lines, "\n")), nil
}
