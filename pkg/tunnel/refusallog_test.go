// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A refused agent tries again and again. The log has the first time, and how many followed.
func TestRefusalLog(t *testing.T) {
	t.Parallel()
	var lines []string
	logger := funcr.New(func(_, args string) { lines = append(lines, args) }, funcr.Options{})
	var l refusalLog
	began := time.Now()
	log := func(after time.Duration, cluster, reason string) {
		l.log(logger, refusalKey{"Refused an agent", cluster, reason}, "192.0.2.1:5000", began.Add(after))
	}
	check := func(want ...string) {
		t.Helper()
		for i, line := range lines {
			lines[i] = strings.TrimPrefix(line, `"level"=0 "msg"="Refused an agent" `)
		}
		if !slices.Equal(lines, want) {
			t.Errorf("the lines are\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
		}
		lines = nil
	}
	line := func(cluster, reason, more string) string {
		return fmt.Sprintf(`"cluster"=%q "address"="192.0.2.1:5000" "reason"=%q%s`, cluster, reason, more)
	}
	for i := range 10 {
		log(time.Duration(i)*time.Second, "east", "full")
	}
	log(10*time.Second, "east", "revoked")
	log(11*time.Second, "west", "full")
	check(line("east", "full", ""), line("east", "revoked", ""), line("west", "full", ""))
	log(refusalLogInterval, "east", "full")
	log(refusalLogInterval+time.Second, "east", "full")
	check(line("east", "full", ` "moreTimes"=9`))

	// What was only counted is logged in the end, and nothing is left.
	l.flush(logger, began.Add(2*refusalLogInterval))
	check(line("east", "full", ""))
	l.flush(logger, began.Add(4*refusalLogInterval))
	check()
	if len(l.last) != 0 {
		t.Errorf("%d refusals are left", len(l.last))
	}

	// Very many different ones use bounded memory, and are not all logged.
	for i := range 2 * maxLoggedRefusals {
		log(0, fmt.Sprint("c", i), "full")
	}
	if len(l.last) > maxLoggedRefusals+1 || len(lines) > maxLoggedRefusals+1 {
		t.Errorf("%d refusals are kept, and %d lines were logged", len(l.last), len(lines))
	}
	lines = nil
	l.flush(logger, began.Add(refusalLogInterval))
	if want := fmt.Sprintf(`"times"=%d`, maxLoggedRefusals-1); len(lines) != 1 || !strings.Contains(lines[0], want) {
		t.Errorf("the lines are %q, want one with %s", lines, want)
	}
}

// The log of a server has one line for an agent that is refused again and again.
func TestRefusedAgentsAreLoggedOnce(t *testing.T) {
	t.Parallel()
	logged := make(chan string, 100)
	g := startGateway(t, func(c *Config) {
		c.MaxAgents = 1
		c.Logger = funcr.New(func(_, args string) { logged <- args }, funcr.Options{})
	})
	g.connect(t, "east", "first")
	for range 5 {
		if _, err := g.tryConnect(t, g.tls(t, "east"), "one too many"); status.Code(err) != codes.ResourceExhausted {
			t.Fatal(err)
		}
	}
	n := 0
	for len(logged) > 0 {
		if strings.Contains(<-logged, "Refused an agent") {
			n++
		}
	}
	if n != 1 {
		t.Errorf("the refusal was logged %d times", n)
	}
}
