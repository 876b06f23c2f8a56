// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
)

// resamples is the number of random resamples for one interval.
const resamples = 1000

// minimumPairs is the smallest number of rounds that can be compared. Fewer rounds do not show how
// much they vary.
const minimumPairs = 4

// Interval is an estimate with its 95 % confidence bounds.
type Interval struct {
	Value float64 `json:"value"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}

// Contains reports whether v is within the bounds.
func (i Interval) Contains(v float64) bool { return i.Low <= v && v <= i.High }

// Spread is half the width of the interval relative to its value: 0.1 means ±10 %.
func (i Interval) Spread() float64 {
	if i.Value == 0 {
		return math.Inf(1)
	}
	return (i.High - i.Low) / 2 / math.Abs(i.Value)
}

// Comparison compares a route with a base route.
type Comparison struct {
	// Ratio is the ratio of the medians. Difference is their difference, in the unit of the figures.
	Ratio      Interval `json:"ratio"`
	Difference Interval `json:"difference"`
	// Pairs is the number of rounds in which both routes succeeded.
	Pairs int `json:"pairs"`
}

// Compare compares figures with those of a base, round by round. ok is false if both succeeded in
// too few rounds.
//
// The intervals are percentiles of a bootstrap over blocks of consecutive rounds. It draws whole
// rounds, so a disturbance of both routes in one round cancels out. It draws blocks of rounds
// because a disturbance lasts longer than one round: single rounds would result in intervals that
// are too narrow. The random generator is seeded with the size of the data only, so the same data
// always has the same interval.
func Compare(figures, base []float64) (c Comparison, ok bool) {
	var a, b []float64
	for i := range min(len(figures), len(base)) {
		if !math.IsNaN(figures[i]) && !math.IsNaN(base[i]) {
			a, b = append(a, figures[i]), append(b, base[i])
		}
	}
	n := len(a)
	if n < minimumPairs {
		return Comparison{Pairs: n}, false
	}
	block := int(math.Ceil(math.Cbrt(float64(n))))
	random := rand.New(rand.NewPCG(uint64(n), 0x9e3779b97f4a7c15))
	ratios, differences := make([]float64, resamples), make([]float64, resamples)
	drawnA, drawnB := newResample(a), newResample(b)
	for i := range resamples {
		drawnA.reset()
		drawnB.reset()
		for drawnA.size < n {
			// Circular, so that every round has the same probability.
			at := random.IntN(n)
			for j := range block {
				drawnA.draw((at + j) % n)
				drawnB.draw((at + j) % n)
			}
		}
		medianA, medianB := drawnA.median(), drawnB.median()
		ratios[i], differences[i] = medianA/medianB, medianA-medianB
	}
	medianA, medianB := Median(a), Median(b)
	return Comparison{
		Ratio:      interval(medianA/medianB, ratios),
		Difference: interval(medianA-medianB, differences),
		Pairs:      n,
	}, true
}

// resample counts how often each figure was drawn. It finds their median without sorting them,
// because the figures are sorted only once.
type resample struct {
	sorted []float64
	rank   []int // of each figure in sorted
	counts []int // by rank
	size   int
}

func newResample(figures []float64) *resample {
	n := len(figures)
	byRank := make([]int, n)
	for i := range byRank {
		byRank[i] = i
	}
	slices.SortFunc(byRank, func(i, j int) int { return cmp.Compare(figures[i], figures[j]) })
	r := &resample{sorted: make([]float64, n), rank: make([]int, n), counts: make([]int, n)}
	for rank, i := range byRank {
		r.sorted[rank], r.rank[i] = figures[i], rank
	}
	return r
}

func (r *resample) reset() {
	clear(r.counts)
	r.size = 0
}

func (r *resample) draw(i int) {
	r.counts[r.rank[i]]++
	r.size++
}

// median returns the same as Median for the drawn figures. At least one must have been drawn.
func (r *resample) median() float64 {
	lower, seen := -1, 0
	for rank, count := range r.counts {
		seen += count
		if lower < 0 && 2*seen >= r.size {
			lower = rank
		}
		if 2*seen > r.size {
			return r.sorted[lower] + 0.5*(r.sorted[rank]-r.sorted[lower])
		}
	}
	return math.NaN()
}

func interval(value float64, drawn []float64) Interval {
	slices.Sort(drawn)
	return Interval{Value: value, Low: Quantile(drawn, 0.025), High: Quantile(drawn, 0.975)}
}

// Drift returns the difference between the median of the last third of the rounds and that of the
// first third, relative to the median of all rounds. 0.5 means that the machine, or what was
// measured, changed by half during the run.
func Drift(figures []float64) float64 {
	valid := Valid(figures)
	third := len(valid) / 3
	if third == 0 {
		return 0
	}
	return math.Abs(Median(valid[len(valid)-third:])-Median(valid[:third])) / Median(valid)
}
