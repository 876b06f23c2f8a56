// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"fmt"
	"strings"
	"testing"
)

// TestAgentPairHash shows that the hash covers the certificate and the CAs, and that no way of
// printing a pair reveals its key.
func TestAgentPairHash(t *testing.T) {
	pair := func(certificate, key, ca string) AgentPair {
		return AgentPair{Certificate: []byte(certificate), Key: []byte(key), CA: []byte(ca)}
	}
	one := pair("certificate", "private", "ca")
	if one.Hash() != pair("certificate", "another", "ca").Hash() {
		t.Error("the hash depends on the key")
	}
	for _, other := range []AgentPair{pair("certificate2", "private", "ca"), pair("certificate", "private", "2ca"), pair("certificatec", "private", "a")} {
		if one.Hash() == other.Hash() {
			t.Errorf("%s has the same hash", other.Certificate)
		}
	}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		for _, v := range []any{one, &one, []AgentPair{one}, struct{ P AgentPair }{one}} {
			text := fmt.Sprintf(format, v)
			if strings.Contains(text, "private") || strings.Contains(text, fmt.Sprintf("%x", "private")) || strings.Contains(text, "112 114 105") {
				t.Errorf("%s shows the key: %s", format, text)
			}
		}
	}
}
