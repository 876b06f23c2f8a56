// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"encoding/json"
	"strings"
)

// longest is the maximum length of a message.
const longest = 160

// statusMessage returns the message of a metav1.Status, or the beginning of any other body.
func statusMessage(body string) string {
	var status struct {
		Message string `json:"message"`
	}
	if json.Unmarshal([]byte(body), &status) == nil && status.Message != "" {
		return clip(status.Message)
	}
	return clip(body)
}

func clip(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > longest {
		s = s[:longest] + "…"
	}
	return s
}
