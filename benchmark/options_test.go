// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

func TestOptions(t *testing.T) {
	for line, faults := range map[string][]string{
		"":                               nil,
		"--quick --only load,scale":      nil,
		"--direct a --hub b --cluster c": nil,
		"--route other=file":             nil,
		"--hub b --cluster c":            {"--hub requires --direct", "--cluster requires --direct"},
		"--direct a --hub b":             {"require --cluster"},
		"--direct a --cluster c":         {"require --cluster"},
		"--route other --pod x":          {`invalid --route "other"`, "--pod requires --direct", "NAMESPACE/NAME"},
		"--only nothing --fleet 0 extra": {"invalid --only", "at least 1", "extra"},
	} {
		o, flags := newOptions(), pflag.NewFlagSet("", pflag.ContinueOnError)
		o.addFlags(flags)
		if err := flags.Parse(strings.Fields(line)); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		err := o.validate(flags.Args())
		if (err == nil) != (faults == nil) {
			t.Errorf("%q: %v", line, err)
			continue
		}
		for _, want := range faults {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q: the errors %v do not contain %q", line, err, want)
			}
		}
	}
}

func TestBusiestSecond(t *testing.T) {
	began := time.Now()
	var times []time.Time
	for _, ms := range []int{0, 900, 1100, 1500, 1950, 4000, 4100} {
		times = append(times, began.Add(time.Duration(ms)*time.Millisecond))
	}
	if most, all := busiestSecond(times); most != 3 || all != 7 { // 900, 1100 and 1500 are within one second; 1950 is not
		t.Errorf("%d of %d", most, all)
	}
	if most, all := busiestSecond(nil); most != 0 || all != 0 {
		t.Error("no times, but a count above 0")
	}
}

// TestTooLargeFleet names the largest fleet that fits.
func TestTooLargeFleet(t *testing.T) {
	if text := tooLarge(9_500, 20_000); text != "" {
		t.Errorf("9,500 clusters fit, but: %s", text)
	}
	for _, want := range []string{"10000 clusters were skipped", "20000 open files", "--fleet 9750"} {
		if text := tooLarge(10_000, 20_000); !strings.Contains(text, want) {
			t.Errorf("%q does not contain %q", text, want)
		}
	}
	if text := tooLarge(9_750, 20_000); text != "" {
		t.Errorf("the named fleet does not fit: %s", text)
	}
}

// TestRetryInterval keeps the rate of all clients together.
func TestRetryInterval(t *testing.T) {
	if few, many := retryInterval(100), retryInterval(9_500); few != restartRetry || many != 950*time.Millisecond {
		t.Errorf("%s and %s", few, many)
	}
}
