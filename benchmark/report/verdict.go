// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/oam-dev/cluster-gateway/benchmark/stats"
)

// Limits above which a run is too noisy to be trusted.
const (
	tooMuchForeign = 0.10 // of the machine's CPU time
	tooMuchDrift   = 0.40 // of the direct route's median
	tooWide        = 0.20 // half an interval, relative to its ratio
)

// Warnings returns the problems of the run, most important first.
func (r *Report) Warnings() []string {
	var all []string
	if r.Interrupted {
		all = append(all, "INTERRUPTED: the measurements are not complete.")
	}
	all = append(all, r.failures()...)
	all = append(all, r.noise()...)
	return all
}

func (r *Report) failures() []string {
	var all []string
	for _, s := range r.Series {
		where := s.Route + ", " + s.Workload
		if x := formatX(s.XLabel, s.X); x != "" {
			where += " at " + x
		}
		switch {
		case s.Stopped != "":
			all = append(all, fmt.Sprintf("FAILS: %s: %s.%s", where, s.Stopped, s.commonError()))
		case s.Attempts == 0:
			all = append(all, fmt.Sprintf("NOT MEASURED: %s.", where))
		case s.Failing():
			all = append(all, fmt.Sprintf("FAILS: %s: %d of %d requests failed, so its times mean nothing.%s", where, s.Failures, s.Attempts, s.commonError()))
		case s.Failures > 0:
			all = append(all, fmt.Sprintf("ERRORS: %s: %d of %d requests failed.%s", where, s.Failures, s.Attempts, s.commonError()))
		}
	}
	return all
}

func (s *Series) commonError() string {
	most := ""
	for _, e := range slices.Sorted(maps.Keys(s.Errors)) {
		if most == "" || s.Errors[e] > s.Errors[most] {
			most = e
		}
	}
	if most == "" {
		return ""
	}
	return " Most often: " + most
}

func (r *Report) noise() []string {
	var all []string
	if r.Conditions.ForeignCPU > tooMuchForeign {
		all = append(all, fmt.Sprintf("NOISE: %.0f %% of the machine's CPU time was used by something other than this benchmark. This affects the times, and the ratios less so.", 100*r.Conditions.ForeignCPU))
	}
	var drifting, wide []string
	for _, s := range r.Series {
		name := s.Workload
		if x := formatX(s.XLabel, s.X); x != "" {
			name += " at " + x
		}
		if d := stats.Drift(s.Figures); s.Route == Direct && len(s.Figures) >= 30 && d > tooMuchDrift {
			drifting = append(drifting, fmt.Sprintf("%s by %.0f %%", name, 100*d))
		}
		if s.ToDirect != nil && s.ToDirect.Ratio.Spread() > tooWide {
			wide = append(wide, fmt.Sprintf("%s/%s", s.Route, name))
		}
	}
	if len(drifting) > 0 {
		all = append(all, "NOISE: between its first and its last third the direct route changed: "+list(drifting)+".")
	}
	if len(wide) > 0 {
		all = append(all, fmt.Sprintf("NOISE: the interval of the ratio is wider than ±%.0f %%: %s.", 100*tooWide, list(wide)))
	}
	return all
}

// list shortens a long list.
func list(items []string) string {
	const most = 8
	text := ""
	for i, item := range items {
		if i == most {
			return text + ", and " + strconv.Itoa(len(items)-most) + " more"
		}
		if i > 0 {
			text += ", "
		}
		text += item
	}
	return text
}

// Target is a value that a figure should reach.
type Target struct {
	What        string
	Limit       float64
	AtLeast     bool
	Unit        Unit // the unit of the figure; empty for a ratio
	Ratio       bool
	Predecessor string
	// Optional means that the target is left out if it was not measured, because the default run
	// does not measure it.
	Optional bool
	// Reached returns the figure, its bounds if it has any, and whether the figure exists.
	Reached func(*Report) (stats.Interval, bool)
}

// Targets are the targets of the gateway. They are ratios to the direct route unless they have a
// unit.
func Targets() []Target {
	targets := []Target{
		ratioTarget("GET, p50, hub, direct cluster", "get", "hub-direct", 0, 2.1, "3.0–3.5; 2.1–2.4"),
		ratioTarget("GET, p50, hub, embedded tunnel", "get", "hub-embedded", 0, 2.4, "9.2–10.2; 2.8"),
		ratioTarget("GET, p50, own endpoint, direct cluster", "get", "own-direct", 0, 1.4, ""),
		ratioTarget("GET, p50, own endpoint, embedded tunnel", "get", "own-embedded", 0, 1.7, "none; 2.0"),
		betweenTarget("GET, p50, own endpoint, forwarded by another replica against not forwarded", GetReplicas, Forwarded, WithAgent, 1.35, ""),
		betweenTarget("CPU time of two replicas for a request, spread over both against all to one", SpreadCPU, TwoReplicas, OneReplica, 1.05, ""),
		betweenTarget("ConfigMap flow, p50, hub, tunnel against direct cluster", flowWorkload, "hub-embedded", "hub-direct", 1.25, "2.4–2.6; 1.24"),
		rateTarget("32 workers, rate, hub, embedded tunnel", "load", "hub-embedded", 32, 0.33, "0.07–0.09; 0.35"),
		rateTarget("32 workers, rate, own endpoint, embedded tunnel", "load", "own-embedded", 32, 0.62, "none; 0.54"),
		factTarget("round trips per warm GET at 50 ms, hub, embedded tunnel", RoundTripsFact("hub-embedded", "50ms"), 1.2, Count, "3.4; 1.15"),
		ratioTarget("19 MiB list, own endpoint, embedded tunnel, with gzip as client-go requests it", "download-gzip", "own-embedded", 0, 1.3, "1.6; 1.1–1.3"),
		ratioTarget("19 MiB list, own endpoint, embedded tunnel, without compression", "download", "own-embedded", 0, 1.3, "1.6; 1.1–1.3"),
		{
			What: "19 MiB list without compression, own endpoint, gateway's CPU time, tunnel against direct cluster", Limit: 1.15, Ratio: true,
			Reached: func(r *Report) (stats.Interval, bool) {
				tunnel, measured := r.Fact(DownloadCPUFact("own-embedded"))
				direct, also := r.Fact(DownloadCPUFact("own-direct"))
				v := tunnel / direct
				return stats.Interval{Value: v, Low: v, High: v}, measured && also && direct > 0
			},
		},
		rateTarget("port-forward, MiB/s, own endpoint, embedded tunnel", "port-forward", "own-embedded", 0, 0.55, ""),
		factTarget("descriptors after 10,000 requests, more than after 100", DescriptorsFact, 0, Count, "one more per tunneled request"),
		factTarget("gateway's memory for an idle cluster with a tunnel", MemoryPerClusterFact, 160<<10, Bytes, ""),
		factTarget("gateway restart with 1,000 clusters, until all are served", RestartFact(1000), 30, Seconds, ""),
	}
	for _, n := range []int{LargeFleet, largestFleet} {
		share, in := float64(n)/largestFleet, ""
		if n < largestFleet {
			in = fmt.Sprintf(" (%.0f %% of the target for %s)", 100*share, group(largestFleet))
		}
		memory := factTarget("gateway's resident memory with "+group(int64(n))+" idle clusters"+in, FleetMemoryFact(n), share*fleetMemory, Bytes, "")
		restart := factTarget("gateway restart with "+group(int64(n))+" clusters, until all are served"+in, RestartFact(n), share*fleetRestart, Seconds, "")
		memory.Optional, restart.Optional = true, true
		targets = append(targets, memory, restart)
	}
	return targets
}

// The targets for many clusters on one gateway.
const (
	largestFleet = 10_000
	fleetMemory  = 2.2 * (1 << 30)
	fleetRestart = 90

	// LargeFleet is a number of clusters that fits if a process can have 20,000 open files, of which
	// the gateway needs two for each cluster. Its targets are those of 10,000 in proportion.
	LargeFleet = 9_500
)

// FleetMemoryFact returns the name of the fact for a number of clusters.
func FleetMemoryFact(clusters int) string {
	return "gateway's resident memory with " + group(int64(clusters)) + " idle clusters"
}

// Names of facts that have a target.
const (
	DescriptorsFact      = "descriptors left open by 9,900 more requests"
	MemoryPerClusterFact = "gateway's memory per idle cluster with a tunnel"
)

// DownloadCPUFact returns the name of the fact for a route.
func DownloadCPUFact(route string) string {
	return "gateway's CPU time of a 19 MiB list, not compressed, " + route
}

// RoundTripsFact returns the name of the fact for a route and a round-trip time.
func RoundTripsFact(route, rtt string) string {
	return "round trips per warm GET at " + rtt + ", " + route
}

// RestartFact returns the name of the fact for a number of clusters.
func RestartFact(clusters int) string {
	return "gateway restart with " + group(int64(clusters)) + " clusters, until all are served"
}

func ratioTarget(what, workload, route string, x, limit float64, predecessor string) Target {
	return Target{What: what, Limit: limit, Ratio: true, Predecessor: predecessor, Reached: func(r *Report) (stats.Interval, bool) {
		return r.ratio(workload, route, x)
	}}
}

// betweenTarget is a ratio to another route than the direct one.
func betweenTarget(what, workload, route, base string, limit float64, predecessor string) Target {
	return Target{What: what, Limit: limit, Ratio: true, Predecessor: predecessor, Reached: func(r *Report) (stats.Interval, bool) {
		return r.between(workload, route, base, 0)
	}}
}

func rateTarget(what, workload, route string, x, limit float64, predecessor string) Target {
	t := ratioTarget(what, workload, route, x, limit, predecessor)
	t.AtLeast = true
	return t
}

func factTarget(what, fact string, limit float64, unit Unit, predecessor string) Target {
	return Target{What: what, Limit: limit, Unit: unit, Predecessor: predecessor, Reached: func(r *Report) (stats.Interval, bool) {
		v, ok := r.Fact(fact)
		return stats.Interval{Value: v, Low: v, High: v}, ok
	}}
}

func (r *Report) ratio(workload, route string, x float64) (stats.Interval, bool) {
	s := r.Find(workload, route, x)
	if s == nil || s.ToDirect == nil {
		return stats.Interval{}, false
	}
	return s.ToDirect.Ratio, true
}

// between compares two routes other than the direct one.
func (r *Report) between(workload, route, base string, x float64) (stats.Interval, bool) {
	a, b := r.Find(workload, route, x), r.Find(workload, base, x)
	if a == nil || b == nil || a.Failing() || b.Failing() {
		return stats.Interval{}, false
	}
	c, ok := stats.Compare(a.Figures, b.Figures)
	return c.Ratio, ok
}

// verdict is "met", "missed", or "open" when the limit lies within the bounds.
func (t Target) verdict(i stats.Interval) string {
	met := i.Value <= t.Limit
	if t.AtLeast {
		met = i.Value >= t.Limit
	}
	switch {
	case i.Low != i.High && i.Contains(t.Limit) && met:
		return "met, within noise"
	case i.Low != i.High && i.Contains(t.Limit):
		return "missed, within noise"
	case met:
		return "met"
	default:
		return "MISSED"
	}
}

func (r *Report) targetTable() Table {
	t := Table{
		Title:  "Targets",
		Header: []string{"what", "target", "reached [95 %]", "", "predecessor; bare proxy"},
		Note:   "The last column contains the measurements of others on another machine with two CPUs. The bare proxy is a reverse proxy without authentication, authorization or metrics.",
	}
	measured := false
	for _, target := range Targets() {
		sign := "≤ "
		if target.AtLeast {
			sign = "≥ "
		}
		limit, reached, verdict := target.format(target.Limit), "not measured", ""
		if i, ok := target.Reached(r); ok {
			measured = true
			reached, verdict = target.format(i.Value), target.verdict(i)
			if i.Low != i.High {
				reached = formatRatio(i)
			}
		} else if target.Optional {
			continue
		}
		t.Rows = append(t.Rows, []string{target.What, sign + limit, reached, verdict, target.Predecessor})
	}
	if !measured {
		return Table{}
	}
	return t
}

func (t Target) format(v float64) string {
	if t.Ratio || t.Unit == Count && v != float64(int(v)) {
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
	return t.Unit.Format(v)
}
