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
