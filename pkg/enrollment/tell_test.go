// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package enrollment

import (
	"fmt"
	"testing"
	"time"
)

// TestNews shows that the same word is told once in a while only, and that what is remembered of it is bounded.
func TestNews(t *testing.T) {
	now := time.Now()
	e := New(Config{Now: func() time.Time { return now }})
	for i, want := range []bool{true, false, false} {
		if got := e.isNews("east", "expired"); got != want {
			t.Errorf("time %d: %v", i, got)
		}
	}
	if !e.isNews("west", "expired") || !e.isNews("east", "revoked") || !e.isNews("east", "expired") {
		t.Error("another name or another word is not told")
	}
	now = now.Add(tellAgain)
	if !e.isNews("east", "expired") {
		t.Error("it is not told again")
	}
	for i := range 3 * maxTold {
		e.isNews(fmt.Sprint(i), "expired")
	}
	if len(e.told) > maxTold {
		t.Errorf("%d words are remembered", len(e.told))
	}
}
