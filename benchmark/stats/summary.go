// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"math"
	"slices"
)

// Summary describes the figures of the successful rounds. The zero value describes no figures.
type Summary struct {
	N      int     `json:"n"`
	Min    float64 `json:"min"`
	P50    float64 `json:"p50"`
	P90    float64 `json:"p90"`
	P99    float64 `json:"p99"`
	Max    float64 `json:"max"`
	Mean   float64 `json:"mean"`
	StdDev float64 `json:"stddev"`
}

// Summarize describes figures. It ignores NaN.
func Summarize(figures []float64) Summary {
	sorted := Valid(figures)
	if len(sorted) == 0 {
		return Summary{}
	}
	slices.Sort(sorted)
	mean, deviation := moments(sorted)
	return Summary{
		N: len(sorted), Min: sorted[0], Max: sorted[len(sorted)-1], Mean: mean, StdDev: deviation,
		P50: Quantile(sorted, 0.5), P90: Quantile(sorted, 0.9), P99: Quantile(sorted, 0.99),
	}
}

// Valid returns a copy without NaN.
func Valid(figures []float64) []float64 {
	return slices.DeleteFunc(slices.Clone(figures), math.IsNaN)
}

// Quantile of sorted figures, by linear interpolation between the two nearest. NaN if there are
// none.
func Quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	at := q * float64(len(sorted)-1)
	below := int(math.Floor(at))
	above := min(below+1, len(sorted)-1)
	return sorted[below] + (at-float64(below))*(sorted[above]-sorted[below])
}

// Median of figures in any order. NaN if there are none.
func Median(figures []float64) float64 {
	sorted := Valid(figures)
	slices.Sort(sorted)
	return Quantile(sorted, 0.5)
}

// moments returns the mean and the standard deviation of the sample.
func moments(figures []float64) (mean, deviation float64) {
	for _, f := range figures {
		mean += f
	}
	mean /= float64(len(figures))
	if len(figures) < 2 {
		return mean, 0
	}
	sum := 0.0
	for _, f := range figures {
		sum += (f - mean) * (f - mean)
	}
	return mean, math.Sqrt(sum / float64(len(figures)-1))
}
