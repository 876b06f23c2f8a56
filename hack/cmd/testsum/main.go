// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Command testsum reads the output of one or more runs of `go test -json` from its standard input, shows how it goes, and ends
// with one line: how many tests passed, failed and were skipped. It exits with 1 if any failed, if a package could not be
// built, or if there was no test at all.
//
// A package has one line, and so has a test that took long; a failure has its whole output, a skip its reason. Sub-tests count as tests; a test with
// sub-tests does not count itself unless it fails or is skipped without one of them.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// slow is how many seconds a test takes to be shown by itself: a package of such tests would be silent for minutes.
const slow = 5

func main() { os.Exit(run(os.Stdin, os.Stdout)) }

// event is a line of `go test -json` (go doc cmd/test2json).
type event struct {
	Action     string
	Package    string
	ImportPath string
	Test       string
	Elapsed    float64
	Output     string
}

type summary struct {
	out                     io.Writer
	passed, failed, skipped int
	// output is what the tests, and the packages (with no test), have said.
	output map[[2]string][]string
	// parents have sub-tests; blamed had one fail.
	parents, blamed map[[2]string]bool
}

func run(in io.Reader, out io.Writer) int {
	s := &summary{out: out, output: map[[2]string][]string{}, parents: map[[2]string]bool{}, blamed: map[[2]string]bool{}}
	began := time.Now()
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			s.take(line)
		}
		if err != nil {
			break
		}
	}
	fmt.Fprintf(out, "took %s\n%d passed, %d failed, %d skipped\n", time.Since(began).Round(time.Second), s.passed, s.failed, s.skipped)
	if s.failed > 0 || s.passed == 0 {
		return 1
	}
	return 0
}

func (s *summary) take(line []byte) {
	var e event
	if err := json.Unmarshal(line, &e); err != nil {
		fmt.Fprintf(s.out, "%s", line) // not from go test: pass it on
		return
	}
	if e.ImportPath != "" && e.Package == "" {
		e.Package = e.ImportPath // of the build
	}
	key := [2]string{e.Package, e.Test}
	for _, parent := range parentsOf(e.Test) {
		s.parents[[2]string{e.Package, parent}] = true
	}
	switch e.Action {
	case "output", "build-output":
		s.output[key] = append(s.output[key], e.Output)
	case "build-fail":
		s.dump(key)
	case "pass", "fail", "skip":
		s.end(e, key)
		delete(s.output, key)
	}
}

// parentsOf lists what could be the parents of a sub-test: a name may have slashes of its own.
func parentsOf(test string) []string {
	var all []string
	for i, r := range test {
		if r == '/' {
			all = append(all, test[:i])
		}
	}
	return all
}

func (s *summary) end(e event, key [2]string) {
	if e.Test == "" {
		s.endPackage(e, key)
		return
	}
	switch e.Action {
	case "pass":
		if !s.parents[key] {
			s.passed++
		}
		if e.Elapsed >= slow && !strings.Contains(e.Test, "/") {
			fmt.Fprintf(s.out, "pass  %s %s (%.0fs)\n", e.Package, e.Test, e.Elapsed)
		}
	case "skip":
		s.skipped++
		fmt.Fprintf(s.out, "SKIP  %s %s: %s\n", e.Package, e.Test, s.reason(key))
	case "fail":
		for _, parent := range parentsOf(e.Test) {
			s.blamed[[2]string{e.Package, parent}] = true
		}
		if !s.blamed[key] {
			s.failed++
		}
		fmt.Fprintf(s.out, "FAIL  %s %s\n", e.Package, e.Test)
		s.dump(key)
	}
	s.blamed[[2]string{e.Package, ""}] = s.blamed[[2]string{e.Package, ""}] || e.Action == "fail"
}

func (s *summary) endPackage(e event, key [2]string) {
	switch e.Action {
	case "fail":
		if !s.blamed[key] { // it did not build, or ended outside a test
			s.failed++
			s.dump(key)
		}
		fmt.Fprintf(s.out, "FAIL  %s (%.1fs)\n", e.Package, e.Elapsed)
	case "pass":
		fmt.Fprintf(s.out, "ok    %s (%.1fs)\n", e.Package, e.Elapsed)
	}
}

func (s *summary) dump(key [2]string) {
	for _, text := range s.output[key] {
		fmt.Fprint(s.out, "      ", text)
	}
}

// reason is what a skipped test said, without the lines of go test itself.
func (s *summary) reason(key [2]string) string {
	var said []string
	for _, text := range s.output[key] {
		if text = strings.TrimSpace(text); !strings.HasPrefix(text, "===") && !strings.HasPrefix(text, "---") {
			said = append(said, text)
		}
	}
	return strings.Join(said, " ")
}
