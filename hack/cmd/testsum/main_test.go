// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestSummary(t *testing.T) {
	const (
		passed  = `{"Action":"pass","Package":"p","Test":"TestA"}` + "\n"
		child   = `{"Action":"run","Package":"p","Test":"TestB/a/b"}` + "\n"
		failed  = `{"Action":"fail","Package":"p","Test":"TestB/a/b"}` + "\n"
		parent  = `{"Action":"fail","Package":"p","Test":"TestB"}` + "\n"
		skipped = `{"Action":"output","Package":"p","Test":"TestC","Output":"needs root\n"}` + "\n" + `{"Action":"skip","Package":"p","Test":"TestC"}` + "\n"
		pkgPass = `{"Action":"pass","Package":"p"}` + "\n"
		pkgFail = `{"Action":"fail","Package":"p"}` + "\n"
	)
	for name, test := range map[string]struct {
		in, last, says string
		code           int
	}{
		"all pass":                         {passed + pkgPass, "1 passed, 0 failed, 0 skipped", "ok    p", 0},
		"a parent does not count":          {passed + child + failed + parent + pkgFail, "1 passed, 1 failed, 0 skipped", "FAIL  p TestB/a/b", 1},
		"a skip says why":                  {passed + skipped + pkgPass, "1 passed, 0 failed, 1 skipped", "needs root", 0},
		"a package that does not build":    {passed + `{"Action":"build-output","ImportPath":"q","Output":"syntax error\n"}` + "\n" + `{"Action":"build-fail","ImportPath":"q"}` + "\n" + `{"Action":"fail","Package":"q"}` + "\n", "1 passed, 1 failed, 0 skipped", "syntax error", 1},
		"no test at all":                   {"", "0 passed, 0 failed, 0 skipped", "", 1},
		"what go test did not say in JSON": {"panic: the tool itself\n" + passed, "1 passed, 0 failed, 0 skipped", "panic: the tool itself", 0},
	} {
		var out bytes.Buffer
		code := run(strings.NewReader(test.in), &out)
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if got := lines[len(lines)-1]; got != test.last || code != test.code || !strings.Contains(out.String(), test.says) {
			t.Errorf("%s: exit %d\n%s", name, code, out.String())
		}
	}
}
