// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"encoding/base64"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"k8s.io/apiserver/pkg/authentication/user"
)

// hostileCallers are callers whose names try to be something else in the text.
func hostileCallers() []caller {
	var all []caller
	for _, s := range []string{
		"jane", "", `"`, `\`, `a"b\"c`, `","auditID":"x"}`, `,"auditID":"x`, "jane,", "<script>&", "\x00\x1f\x7f", "Müller", "日本語\u2028", "\xff\xfe", strings.Repeat("x", 5000),
	} {
		for _, id := range []string{"", "0a1b-2c3d", `x"}`, `a\b`, "é"} {
			all = append(all,
				caller{Name: s, AuditID: id},
				caller{Name: "n", UID: s, Groups: []string{s, "b", s}, ThroughHub: true, AuditID: id},
				caller{Name: "n", Extra: map[string][]string{"z": {s}, "a": nil, s: {s, "2"}}, AuditID: id},
			)
		}
	}
	return all
}

// TestCallerText shows that the text of a caller is what encoding/json writes, so that an earlier
// version reads and writes the same.
func TestCallerText(t *testing.T) {
	t.Parallel()
	known := newCallers()
	for _, c := range hostileCallers() {
		for name, values := range c.Extra {
			if values == nil {
				c.Extra[name] = []string{}
			}
		}
		want, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		value := encodeCaller(c)
		if text, err := base64.RawStdEncoding.DecodeString(value); err != nil || string(text) != string(want) {
			t.Errorf("got %s, %v, want %s", text, err, want)
		}
		var read caller // what it says after encoding/json, which replaces what is not UTF-8
		if err := json.Unmarshal(want, &read); err != nil {
			t.Fatal(err)
		}
		for range 2 { // decoded, and known
			got, id := known.decode(value)
			if got == nil {
				t.Fatalf("%s was not decoded", want)
			}
			wantUser := &user.DefaultInfo{Name: read.Name, UID: read.UID, Groups: read.Groups, Extra: read.Extra}
			if !reflect.DeepEqual(got.user, wantUser) || got.throughHub != read.ThroughHub || id != read.AuditID {
				t.Errorf("%s was decoded as %+v, %v, %q", want, got.user, got.throughHub, id)
			}
		}
	}
	for _, text := range []string{"", "{", `{"name":1}`, `{"name":"a"`, `{"name":"a","auditID":"x"`, `"name":"a","auditID":"x"}`, `{"name":"a"},"auditID":"x"}`} {
		if got, _ := known.decode(base64.RawStdEncoding.EncodeToString([]byte(text))); got != nil {
			t.Errorf("%s was decoded as %+v", text, got.user)
		}
	}
}
