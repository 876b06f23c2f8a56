// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestCount(t *testing.T) {
	t.Parallel()
	const (
		passed      = `{"Action":"pass","Package":"p","Test":"TestA"}` + "\n"
		failed      = `{"Action":"fail","Package":"p","Test":"TestB/a/b"}` + "\n"
		parent      = `{"Action":"fail","Package":"p","Test":"TestB"}` + "\n"
		skipped     = `{"Action":"skip","Package":"p","Test":"TestC"}` + "\n"
		output      = `{"Action":"output","Package":"p","Test":"TestA","Output":"--- FAIL: not a result\n"}` + "\n"
		packagePass = `{"Action":"pass","Package":"p"}` + "\n"
		packageFail = `{"Action":"fail","Package":"p"}` + "\n"
		packageSkip = `{"Action":"skip","Package":"q"}` + "\n"
		buildFail   = `{"ImportPath":"q","Action":"build-fail"}` + "\n" + `{"Action":"fail","Package":"q","FailedBuild":"q"}` + "\n"
	)
	for name, test := range map[string]struct {
		files []string
		want  string
		code  int
	}{
		"all pass":                           {[]string{passed + output + packagePass}, "1 passed, 0 failed\n", 0},
		"a package without tests":            {[]string{passed + packagePass + packageSkip}, "1 passed, 0 failed\n", 0},
		"a subtest fails":                    {[]string{passed + failed + parent + packageFail}, "1 passed, 2 failed\n", 1},
		"a test is skipped":                  {[]string{passed + skipped + packagePass}, "1 passed, 0 failed, 1 skipped\n", 0},
		"a package does not build":           {[]string{passed + packagePass + buildFail}, "1 passed, 1 failed\n", 1},
		"a package ends outside a test":      {[]string{passed + packageFail}, "1 passed, 1 failed\n", 1},
		"a package fails in the second file": {[]string{passed + failed + packageFail, passed + packageFail}, "2 passed, 2 failed\n", 1},
		"only skipped":                       {[]string{skipped + packagePass}, "0 passed, 0 failed, 1 skipped\n", 1},
		"no test":                            {[]string{packageSkip}, "0 passed, 0 failed\n", 1},
		"no file":                            {nil, "0 passed, 0 failed\n", 1},
		"a line that is not an event":        {[]string{"panic: the tool itself\n" + passed}, "1 passed, 0 failed\n", 0},
		"the last line has no end":           {[]string{passed + `{"Action":"fail","Package":"p","Test":"TestD"}`}, "1 passed, 1 failed\n", 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var paths []string
			for _, content := range test.files {
				path := filepath.Join(t.TempDir(), "events.json")
				if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
				paths = append(paths, path)
			}
			var out, errOut bytes.Buffer
			if code := run(paths, &out, &errOut); code != test.code || out.String() != test.want || errOut.Len() > 0 {
				t.Errorf("exit %d, %q, %q; want exit %d, %q", code, &out, &errOut, test.code, test.want)
			}
		})
	}
	t.Run("a file that does not exist", func(t *testing.T) {
		t.Parallel()
		var out, errOut bytes.Buffer
		if code := run([]string{filepath.Join(t.TempDir(), "none.json")}, &out, &errOut); code != 1 || out.String() != "0 passed, 1 failed\n" || errOut.Len() == 0 {
			t.Errorf("exit %d, %q, %q", code, &out, &errOut)
		}
	})
}
