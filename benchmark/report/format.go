// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/oam-dev/cluster-gateway/benchmark/stats"
)

// Format formats a figure for people.
func (u Unit) Format(v float64) string {
	if math.IsNaN(v) {
		return "–"
	}
	switch u {
	case Seconds:
		return formatSeconds(v)
	case PerSecond:
		return formatCount(v) + "/s"
	case BytesPerSecond:
		return formatBytes(v) + "/s"
	case Bytes:
		return formatBytes(v)
	case Cores:
		return strconv.FormatFloat(100*v, 'g', 3, 64) + " % of a core"
	default:
		return formatCount(v)
	}
}

func formatSeconds(v float64) string {
	switch abs := math.Abs(v); {
	case abs == 0:
		return "0 ms"
	case abs < 1e-3:
		return strconv.FormatFloat(1e6*v, 'f', 0, 64) + " µs"
	case abs < 0.1:
		return strconv.FormatFloat(1e3*v, 'f', 2, 64) + " ms"
	case abs < 1:
		return strconv.FormatFloat(1e3*v, 'f', 0, 64) + " ms"
	default:
		return strconv.FormatFloat(v, 'f', 2, 64) + " s"
	}
}

func formatBytes(v float64) string {
	switch abs := math.Abs(v); {
	case abs < 1<<10:
		return strconv.FormatFloat(v, 'f', 0, 64) + " B"
	case abs < 1<<20:
		return strconv.FormatFloat(v/(1<<10), 'f', 1, 64) + " KiB"
	case abs < 10<<20:
		return strconv.FormatFloat(v/(1<<20), 'f', 1, 64) + " MiB"
	default:
		return strconv.FormatFloat(v/(1<<20), 'f', 0, 64) + " MiB"
	}
}

func formatCount(v float64) string {
	if v == math.Trunc(v) || math.Abs(v) >= 100 {
		return group(int64(math.Round(v)))
	}
	return strconv.FormatFloat(v, 'f', 1, 64)
}

// group formats 12345 as 12,345.
func group(n int64) string {
	digits := strconv.FormatInt(n, 10)
	start := 0
	if n < 0 {
		start = 1
	}
	for at := len(digits) - 3; at > start; at -= 3 {
		digits = digits[:at] + "," + digits[at:]
	}
	return digits
}

// formatRatio formats an estimate with its bounds.
func formatRatio(i stats.Interval) string {
	return fmt.Sprintf("%.2f [%.2f, %.2f]", i.Value, i.Low, i.High)
}

func formatX(label string, x float64) string {
	switch label {
	case "":
		return ""
	case RTTLabel:
		return formatTime(x)
	case BandwidthLabel:
		return strconv.FormatFloat(8*x/1e6, 'f', 0, 64) + " Mbit/s"
	default:
		return group(int64(x)) + " " + label
	}
}

func formatTime(seconds float64) string {
	return time.Duration(seconds * float64(time.Second)).Round(time.Microsecond).String()
}

// Labels for the parameter of a series, in addition to plain counts.
const (
	RTTLabel       = "round-trip time"
	BandwidthLabel = "bandwidth"
)

// FormatX formats the parameter of a workload.
func FormatX(label string, x float64) string { return formatX(label, x) }

// Brief describes in one line how the routes performed.
func Brief(series []*Series) string {
	var all []string
	for _, s := range series {
		switch {
		case s.Failing():
			all = append(all, s.Route+" FAILS")
		case s.ToDirect != nil:
			all = append(all, fmt.Sprintf("%s %.2f×", s.Route, s.ToDirect.Ratio.Value))
		default:
			all = append(all, s.Route+" "+s.Unit.Format(s.Summary.P50))
		}
	}
	return strings.Join(all, ", ")
}
