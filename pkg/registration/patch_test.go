// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"encoding/base64"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestMergePatch(t *testing.T) {
	t.Parallel()
	change := map[string]any{"metadata": map[string]any{"labels": map[string]string{"a": "b"}}, "data": map[string][]byte{"k": []byte("v")}}
	for _, test := range []struct {
		name string
		read metav1.Object
		want string
	}{
		{"unguarded", nil, `{"data":{"k":"dg=="},"metadata":{"labels":{"a":"b"}}}`},
		{"UID", &metav1.ObjectMeta{UID: "u"}, `{"data":{"k":"dg=="},"metadata":{"labels":{"a":"b"},"uid":"u"}}`},
		{"version", &metav1.ObjectMeta{UID: "u", ResourceVersion: "7"}, `{"data":{"k":"dg=="},"metadata":{"labels":{"a":"b"},"resourceVersion":"7","uid":"u"}}`},
	} {
		if got, err := MergePatch(test.read, change); err != nil || string(got) != test.want {
			t.Errorf("%s: got %s, %v\nwant %s", test.name, got, err, test.want)
		}
	}
	if _, changed := change["metadata"].(map[string]any)["uid"]; changed {
		t.Error("the caller's map was changed")
	}
}

func TestParseToken(t *testing.T) {
	t.Parallel()
	enc := base64.RawURLEncoding.EncodeToString
	token := enc([]byte(`{"alg":"none"}`)) + "." + enc([]byte(`{"iat":100,"exp":700,"jti":"id"}`)) + ".c2ln"
	want := TokenClaims{ID: "id", IssuedAt: time.Unix(100, 0), Expires: time.Unix(700, 0)}
	if got := ParseToken(token); got != want {
		t.Errorf("got %+v", got)
	}
	for _, other := range []string{"", "opaque", "a.b.c", "a." + enc([]byte("[]")) + ".c"} {
		if got := ParseToken(other); got != (TokenClaims{}) {
			t.Errorf("%q has %+v", other, got)
		}
	}
}
