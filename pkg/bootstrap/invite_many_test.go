// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func namesFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "names.txt")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReadNames(t *testing.T) {
	t.Parallel()
	names, err := readNames(namesFile(t, "# the shops\n\nshop-1\r\n  shop-2  # Berlin\nshop-3"))
	if err != nil || !slices.Equal(names, []string{"shop-1", "shop-2", "shop-3"}) {
		t.Errorf("%q, %v", names, err)
	}
	path := namesFile(t, "shop-1\nShop_2\nshop-1\ntwo names\n")
	_, err = readNames(path)
	for _, want := range []string{path + `:2: invalid cluster name "Shop_2"`, path + `:3: "shop-1" is also on line 1`, path + `:4: invalid cluster name "two names"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %s in %v", want, err)
		}
	}
	if _, err := readNames(namesFile(t, "# nothing\n")); err == nil || !strings.Contains(err.Error(), "the file has no names") {
		t.Error(err)
	}
}

// TestInviteManyRefuses checks that faults of the file and the flags are reported before a cluster
// is invited.
func TestInviteManyRefuses(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	h.answers = nil // nothing may be asked
	names := namesFile(t, "shop-1\n")
	for want, args := range map[string][]string{
		"--from requires --invitations-dir":                         {"--from", names},
		"invalid --invitations-dir":                                 {"--from", names, "--invitations-dir", names},
		"with --from, the names are in the file":                    {"--from", names, "shop-1"},
		"--out-dir is for one cluster":                              {"--from", names, "--out-dir", t.TempDir(), "--endpoint", "https://a"},
		"invalid --ttl":                                             {"--from", names, "--invitations-dir", t.TempDir(), "--ttl", "1s"},
		"--from: open " + names + ".missing: no such file or direc": {"--from", names + ".missing", "--invitations-dir", t.TempDir()},
	} {
		out, _, err := h.run(t, append([]string{"invite"}, args...)...)
		if err == nil || !strings.Contains(err.Error(), want) || ExitCode(err) != exitTrouble || out != "" {
			t.Errorf("%v: %v (exit code %d)\nwant %s\n%s", args, err, ExitCode(err), want, out)
		}
	}
	if _, _, err := h.run(t, "invite", "shop-1", "--invitations-dir", t.TempDir()); err == nil || !strings.Contains(err.Error(), "--invitations-dir requires --from") {
		t.Error(err)
	}
}
