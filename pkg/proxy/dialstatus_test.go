// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"testing"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// A client is asked to try again only as long as an agent is expected to connect.
func TestRetryAfterWithoutAgent(t *testing.T) {
	for name, test := range map[string]struct {
		absence dialer.NoAgentError
		want    int32
	}{
		"the gateway has just started":  {dialer.NoAgentError{Since: time.Now()}, 1},
		"an agent went away just now":   {dialer.NoAgentError{LastSeen: time.Now(), Since: time.Now()}, 1},
		"none for a long time":          {dialer.NoAgentError{Since: time.Now().Add(-2 * agentReconnects)}, 0},
		"nothing is known of the agent": {dialer.NoAgentError{}, 1},
	} {
		if got := noAgentStatus("edge", &test.absence).ErrStatus.Details.RetryAfterSeconds; got != test.want {
			t.Errorf("%s: Retry-After %d, want %d", name, got, test.want)
		}
	}
}
