// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package enrollment

import (
	"fmt"
	"testing"
	"time"
)

// TestReportInterval shows that the same outcome is reported only once in a while, and that the
// memory for it is bounded.
func TestReportInterval(t *testing.T) {
	now := time.Now()
	e := New(Config{Now: func() time.Time { return now }})
	for i, want := range []bool{true, false, false} {
		if got := e.shouldReport("east", "expired"); got != want {
			t.Errorf("time %d: %v", i, got)
		}
	}
	if !e.shouldReport("west", "expired") || !e.shouldReport("east", "revoked") || !e.shouldReport("east", "expired") {
		t.Error("another name or another outcome is not reported")
	}
	now = now.Add(reportInterval)
	if !e.shouldReport("east", "expired") {
		t.Error("it is not reported again")
	}
	for i := range 3 * maxReported {
		e.shouldReport(fmt.Sprint(i), "expired")
	}
	if len(e.reported) > maxReported {
		t.Errorf("%d reports are remembered", len(e.reported))
	}
}
