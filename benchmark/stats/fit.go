// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package stats

import "math"

// Fit describes how a cost grows with a number n: Fixed + Each × n, by least squares. Exponent is
// the exponent of a power law through the same points: 1 is linear, 2 is quadratic, 0 is constant.
type Fit struct {
	Fixed    float64 `json:"fixed"`
	Each     float64 `json:"each"`
	Exponent float64 `json:"exponent"`
	// R2 is the share of the variance that the straight line explains. Points is the number of points.
	R2     float64 `json:"r2"`
	Points int     `json:"points"`
}

// FitGrowth fits costs y at numbers n. ok is false if there are fewer than two different numbers.
func FitGrowth(n, y []float64) (f Fit, ok bool) {
	f.Fixed, f.Each, f.R2, ok = line(n, y)
	f.Points = len(n)
	if !ok {
		return Fit{}, false
	}
	var logN, logY []float64
	for i := range n {
		if n[i] > 0 && y[i] > 0 {
			logN, logY = append(logN, math.Log(n[i])), append(logY, math.Log(y[i]))
		}
	}
	if _, exponent, _, ok := line(logN, logY); ok {
		f.Exponent = exponent
	}
	return f, true
}

// line returns the straight line through points by least squares, and its coefficient of
// determination.
func line(x, y []float64) (at0, slope, r2 float64, ok bool) {
	if len(x) < 2 || len(x) != len(y) {
		return 0, 0, 0, false
	}
	meanX, _ := moments(x)
	meanY, _ := moments(y)
	var xx, xy, yy float64
	for i := range x {
		xx += (x[i] - meanX) * (x[i] - meanX)
		xy += (x[i] - meanX) * (y[i] - meanY)
		yy += (y[i] - meanY) * (y[i] - meanY)
	}
	if xx == 0 {
		return 0, 0, 0, false
	}
	slope = xy / xx
	r2 = 1
	if yy > 0 {
		r2 = xy * xy / (xx * yy)
	}
	return meanY - slope*meanX, slope, r2, true
}
