// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"math"
	"math/rand/v2"
	"slices"
)

// resamples is how many times the rounds are drawn anew for one interval.
const resamples = 1000

// minimumPairs is how many rounds a comparison needs: fewer say nothing about their own spread.
const minimumPairs = 4

// Interval is an estimate with the bounds between which it lies with 95 % confidence.
type Interval struct {
	Value float64 `json:"value"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}

// Contains reports whether v is within the bounds.
func (i Interval) Contains(v float64) bool { return i.Low <= v && v <= i.High }

// Spread is the half width of the interval relative to its value: 0.1 means ±10 %.
func (i Interval) Spread() float64 {
	if i.Value == 0 {
		return math.Inf(1)
	}
	return (i.High - i.Low) / 2 / math.Abs(i.Value)
}

// Comparison is how a route stands to the one it is compared with.
type Comparison struct {
	// Ratio is that of the medians, Difference their difference in the unit of the figures.
	Ratio      Interval `json:"ratio"`
	Difference Interval `json:"difference"`
	// Pairs is the number of rounds in which both succeeded.
	Pairs int `json:"pairs"`
}

// Compare compares figures with those of a base, round by round; ok is false when there are too few rounds in which both succeeded.
//
// The intervals are percentiles of a bootstrap over blocks of consecutive rounds. Whole rounds are drawn, so what disturbed both
// routes of a round cancels out; and blocks of them, because a disturbance lasts longer than one round, and drawing single rounds
// would then promise more certainty than there is. The draw is seeded by the data's size only: the same data give the same interval.
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
	drawnA, drawnB := make([]float64, 0, n+block), make([]float64, 0, n+block)
	for i := range resamples {
		drawnA, drawnB = drawnA[:0], drawnB[:0]
		for len(drawnA) < n {
			// Circular, so that every round is as likely as any other.
			at := random.IntN(n)
			for j := range block {
				drawnA, drawnB = append(drawnA, a[(at+j)%n]), append(drawnB, b[(at+j)%n])
			}
		}
		medianA, medianB := medianInPlace(drawnA), medianInPlace(drawnB)
		ratios[i], differences[i] = medianA/medianB, medianA-medianB
	}
	medianA, medianB := medianInPlace(a), medianInPlace(b)
	return Comparison{
		Ratio:      interval(medianA/medianB, ratios),
		Difference: interval(medianA-medianB, differences),
		Pairs:      n,
	}, true
}

func medianInPlace(figures []float64) float64 {
	slices.Sort(figures)
	return Quantile(figures, 0.5)
}

func interval(value float64, drawn []float64) Interval {
	slices.Sort(drawn)
	return Interval{Value: value, Low: Quantile(drawn, 0.025), High: Quantile(drawn, 0.975)}
}

// Drift tells by how much the median of the last third of the rounds differs from that of the first, relative to the median of all:
// 0.5 means that the machine, or what was measured, changed by half of it during the run.
func Drift(figures []float64) float64 {
	valid := Valid(figures)
	third := len(valid) / 3
	if third == 0 {
		return 0
	}
	return math.Abs(Median(valid[len(valid)-third:])-Median(valid[:third])) / Median(valid)
}
