// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Command testcount reads files of `go test -json` events, as gotestsum writes them with
// --jsonfile, and prints how many tests passed, failed and were skipped. It exits with 1 if a test
// failed or if no test passed.
//
// It counts as gotestsum does: a test and each of its subtests. A package that fails without a
// failed test (it did not build, or its process ended outside a test) counts as one failure.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(paths []string, out, errOut io.Writer) int {
	c := counter{blamed: map[string]bool{}}
	for _, path := range paths {
		if err := c.read(path); err != nil {
			fmt.Fprintln(errOut, "testcount:", err)
			c.failed++
		}
	}
	fmt.Fprintf(out, "%d passed, %d failed", c.passed, c.failed)
	if c.skipped > 0 {
		fmt.Fprintf(out, ", %d skipped", c.skipped)
	}
	fmt.Fprintln(out)
	if c.failed > 0 || c.passed == 0 {
		return 1
	}
	return 0
}

type counter struct {
	passed, failed, skipped int
	// blamed are the packages in which a test failed.
	blamed map[string]bool
}

func (c *counter) read(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	clear(c.blamed) // a later file may be about the same packages
	lines := bufio.NewReader(f)
	for {
		line, err := lines.ReadBytes('\n')
		c.add(line)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading %s: %w", path, err)
		}
	}
}

func (c *counter) add(line []byte) {
	// See go doc cmd/test2json. A line that is not an event is not counted; gotestsum has shown it.
	var e struct{ Action, Package, Test string }
	if json.Unmarshal(line, &e) != nil {
		return
	}
	switch {
	case e.Test == "" && e.Action == "fail":
		if !c.blamed[e.Package] {
			c.failed++
		}
	case e.Test == "":
	case e.Action == "pass":
		c.passed++
	case e.Action == "skip":
		c.skipped++
	case e.Action == "fail":
		c.failed++
		c.blamed[e.Package] = true
	}
}
