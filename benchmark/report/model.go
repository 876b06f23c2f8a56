// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"encoding/json"
	"math"
	"time"

	"github.com/oam-dev/cluster-gateway/benchmark/stats"
)

// Direct is the name of the route that all others are compared with.
const Direct = "direct"

// Routes through one of two replicas of the gateway: the one that has an agent of the cluster, and
// the other one, which forwards requests to it.
const (
	WithAgent = "own-with-agent"
	Forwarded = "own-forwarded"
)

// Workloads of two replicas.
const (
	GetReplicas = "get-replicas"
	SpreadCPU   = "spread-cpu"
)

// Ways in which requests to many clusters are spread over two replicas.
const (
	OneReplica  = "one-replica"
	TwoReplicas = "two-replicas"
)

// Unit is the unit of a figure.
type Unit string

// The units.
const (
	Seconds        Unit = "s"
	PerSecond      Unit = "1/s"
	BytesPerSecond Unit = "B/s"
	Bytes          Unit = "B"
	Count          Unit = ""
	Cores          Unit = "cores"
)

// MoreIsBetter reports whether a higher figure is better.
func (u Unit) MoreIsBetter() bool { return u == PerSecond || u == BytesPerSecond }

// Report contains the results of a run.
type Report struct {
	Conditions Conditions `json:"conditions"`
	// Interrupted is true if the run was stopped before it was complete.
	Interrupted bool        `json:"interrupted"`
	Routes      []Route     `json:"routes"`
	Series      []*Series   `json:"series"`
	Resources   []Resources `json:"resources,omitempty"`
	// Growth describes how costs grow with the number of clusters.
	Growth []Growth `json:"growth,omitempty"`
	// Facts are single figures.
	Facts []Fact `json:"facts,omitempty"`
	// Notes explain what was skipped or measured in an unexpected way.
	Notes []string `json:"notes,omitempty"`
}

// Conditions are the conditions under which a run was made.
type Conditions struct {
	Date     time.Time         `json:"date"`
	Took     time.Duration     `json:"took"`
	Command  string            `json:"command"`
	Machine  string            `json:"machine"`
	CPUs     int               `json:"cpus"`
	Memory   uint64            `json:"memoryBytes"`
	Kernel   string            `json:"kernel"`
	Go       string            `json:"go"`
	Versions map[string]string `json:"versions"`
	// ForeignCPU is the share of the machine's CPU time that other processes used or that was stolen
	// during the run. It is negative if unknown.
	ForeignCPU float64 `json:"foreignCPU"`
	// Busy is the share of the machine's CPU time that was used by all processes.
	Busy float64 `json:"busy"`
}

// Route is one path to an API server.
type Route struct {
	Name  string `json:"name"`
	Title string `json:"title"`
}

// Series contains the results of one route in one workload.
type Series struct {
	Workload string `json:"workload"`
	Title    string `json:"title"`
	Route    string `json:"route"`
	// X is the workload's parameter, if it has one: workers, round-trip time in seconds, bytes per
	// second, watchers, clusters.
	X      float64 `json:"x,omitempty"`
	XLabel string  `json:"xLabel,omitempty"`
	Unit   Unit    `json:"unit"`
	// Figures has one value for each round. It is NaN for a failed round.
	Figures Figures `json:"figures"`
	// Pool, if set, contains the values that the summary describes: all values of the rounds, if the
	// figure of a round is only their median.
	Pool     []float64      `json:"-"`
	Attempts int            `json:"attempts"`
	Failures int            `json:"failures"`
	Errors   map[string]int `json:"errors,omitempty"`
	// Stopped says why the measurement of the route was stopped. It is empty if it was completed.
	Stopped string `json:"stopped,omitempty"`

	Summary stats.Summary `json:"summary"`
	// ToDirect compares with the direct route. It is nil for the direct route itself, for a route that
	// fails, and if there are too few values.
	ToDirect *stats.Comparison `json:"toDirect,omitempty"`

	finished bool
}

// failing is the share of failed requests from which a route counts as failing. The times of a
// failing route are not a result.
const failing = 0.01

// Failing reports whether the route fails in this workload, so that its times mean nothing.
func (s *Series) Failing() bool {
	return s.Stopped != "" || s.Attempts == 0 || float64(s.Failures) > failing*float64(s.Attempts)
}

// Figures are numbers, some of which may be missing: NaN here, null in JSON.
type Figures []float64

// MarshalJSON implements json.Marshaler.
func (f Figures) MarshalJSON() ([]byte, error) {
	list := make([]*float64, len(f))
	for i := range f {
		if !math.IsNaN(f[i]) {
			rounded := roundSignificant(f[i])
			list[i] = &rounded
		}
	}
	return json.Marshal(list)
}

// UnmarshalJSON implements json.Unmarshaler.
func (f *Figures) UnmarshalJSON(data []byte) error {
	var list []*float64
	if err := json.Unmarshal(data, &list); err != nil {
		return err
	}
	*f = make(Figures, len(list))
	for i, v := range list {
		(*f)[i] = math.NaN()
		if v != nil {
			(*f)[i] = *v
		}
	}
	return nil
}

// roundSignificant rounds to five significant digits: no measurement is more precise.
func roundSignificant(v float64) float64 {
	if v == 0 || math.IsInf(v, 0) {
		return v
	}
	scale := math.Pow(10, 4-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*scale) / scale
}

// Resources are the resources that one process used.
type Resources struct {
	Process string `json:"process"`
	// Phase is "before", "during" (peaks, and CPU since before) or "after".
	Phase       string  `json:"phase"`
	CPUSeconds  float64 `json:"cpuSeconds"`
	RSS         uint64  `json:"rssBytes"`
	PeakRSS     uint64  `json:"peakRSSBytes"`
	Descriptors int     `json:"descriptors"`
	// Goroutines is negative if the process does not report it.
	Goroutines int `json:"goroutines"`
}

// Growth contains a cost for several numbers of clusters.
type Growth struct {
	Cost   string    `json:"cost"`
	Unit   Unit      `json:"unit"`
	Counts []float64 `json:"counts"`
	Values Figures   `json:"values"`
	// Minor costs are in the table, but not in the plot.
	Minor bool `json:"minor,omitempty"`
	// Fit is nil if there are too few points.
	Fit *stats.Fit `json:"fit,omitempty"`
}

// Fact is a single figure.
type Fact struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  Unit    `json:"unit"`
	Note  string  `json:"note,omitempty"`
}

// Find returns a series, or nil.
func (r *Report) Find(workload, route string, x float64) *Series {
	for _, s := range r.Series {
		if s.Workload == workload && s.Route == route && s.X == x {
			return s
		}
	}
	return nil
}

// Fact returns the value of a fact, and whether it exists.
func (r *Report) Fact(name string) (float64, bool) {
	for _, f := range r.Facts {
		if f.Name == name {
			return f.Value, true
		}
	}
	return 0, false
}

// Finish computes summaries, comparisons and fits from the figures. Once a series is in the report,
// it does not change, so finished series are skipped.
func (r *Report) Finish() {
	for _, s := range r.Series {
		if s.finished {
			continue
		}
		s.Summary = stats.Summarize(s.Figures)
		if s.Pool != nil {
			s.Summary = stats.Summarize(s.Pool)
		}
	}
	for _, s := range r.Series {
		if s.finished {
			continue
		}
		s.finished = true
		direct := r.Find(s.Workload, Direct, s.X)
		if s.Route == Direct || direct == nil || direct.Failing() || s.Failing() {
			continue
		}
		if c, ok := stats.Compare(s.Figures, direct.Figures); ok {
			s.ToDirect = &c
		}
	}
	for i := range r.Growth {
		g := &r.Growth[i]
		if fit, ok := stats.FitGrowth(g.Counts, g.Values); ok {
			g.Fit = &fit
		}
	}
}
