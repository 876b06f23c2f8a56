// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"math"
	"math/rand/v2"
	"testing"
)

// noisy returns figures like those of a busy machine: a minimum, a long tail, and long disturbances
// that affect both routes alike.
func noisy(random *rand.Rand, rounds int) (a, b []float64) {
	disturbance := 0.0
	for range rounds {
		disturbance = 0.9*disturbance + 0.3*random.ExpFloat64()
		a = append(a, 2+disturbance+0.2*random.ExpFloat64())
		b = append(b, 2+disturbance+0.2*random.ExpFloat64())
	}
	return a, b
}

func TestSummarize(t *testing.T) {
	nan := math.NaN()
	for name, test := range map[string]struct {
		figures []float64
		want    Summary
	}{
		"nothing":         {nil, Summary{}},
		"failures only":   {[]float64{nan, nan}, Summary{}},
		"one":             {[]float64{3}, Summary{N: 1, Min: 3, P50: 3, P90: 3, P99: 3, Max: 3, Mean: 3}},
		"failures do not": {[]float64{nan, 1, 2, nan, 3}, Summary{N: 3, Min: 1, P50: 2, P90: 2.8, P99: 2.98, Max: 3, Mean: 2, StdDev: 1}},
	} {
		if got := Summarize(test.figures); !near(got, test.want) {
			t.Errorf("%s: got %+v, want %+v", name, got, test.want)
		}
	}
}

func near(a, b Summary) bool {
	for _, pair := range [][2]float64{{a.Min, b.Min}, {a.P50, b.P50}, {a.P90, b.P90}, {a.P99, b.P99}, {a.Max, b.Max}, {a.Mean, b.Mean}, {a.StdDev, b.StdDev}} {
		if math.Abs(pair[0]-pair[1]) > 1e-9 {
			return false
		}
	}
	return a.N == b.N
}

// TestCompareCoversTheTruth: over many runs of a route against itself, the 95 % interval of the
// ratio contains 1 about as often as promised, although the disturbances are correlated.
func TestCompareCoversTheTruth(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	const runs = 100
	covered := 0
	for range runs {
		a, b := noisy(random, 120)
		c, ok := Compare(a, b)
		if !ok {
			t.Fatal("120 rounds are too few")
		}
		if c.Ratio.Contains(1) {
			covered++
		}
	}
	if covered < runs*88/100 {
		t.Errorf("the interval of the ratio contains 1 in %d of %d runs of a route against itself", covered, runs)
	}
	t.Logf("covered %d of %d", covered, runs)
}

func TestCompareFindsADifference(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	a, b := noisy(random, 300)
	for i := range a {
		a[i] += 5
	}
	c, ok := Compare(a, b)
	if !ok || !c.Difference.Contains(5) {
		t.Errorf("a difference of 5 was measured as %+v", c.Difference)
	}
	if c.Ratio.Contains(1) {
		t.Errorf("a route that is slower by 5 has a ratio of %+v", c.Ratio)
	}
}

// TestCompareIsOfPairs: a disturbance of both routes in one round does not widen the interval by
// much.
func TestCompareIsOfPairs(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	var a, b []float64
	for i := range 300 {
		slow := 1 + 9*float64(i%3) // every third round is ten times slower, for both
		a = append(a, 2*slow*(1+0.01*random.Float64()))
		b = append(b, slow*(1+0.01*random.Float64()))
	}
	c, _ := Compare(a, b)
	if !c.Ratio.Contains(2) && math.Abs(c.Ratio.Value-2) > 0.05 {
		t.Errorf("ratio %+v, want 2", c.Ratio)
	}
	if c.Ratio.Spread() > 0.1 {
		t.Errorf("the interval %+v is wide, though every pair has the same ratio", c.Ratio)
	}
}

func TestCompareLeavesOutFailedRounds(t *testing.T) {
	nan := math.NaN()
	a := []float64{2, nan, 2, 2, 2, 2, nan}
	b := []float64{1, 1, nan, 1, 1, 1, nan}
	c, ok := Compare(a, b)
	if !ok || c.Pairs != 4 || c.Ratio.Value != 2 {
		t.Errorf("got %+v (%t)", c, ok)
	}
	if _, ok := Compare(a[:3], b[:3]); ok {
		t.Error("one pair was compared")
	}
	if again, _ := Compare(a, b); again != c {
		t.Error("the same data has two results")
	}
}

// TestResampleMedian compares the median of random draws with that of the same figures in a list.
func TestResampleMedian(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 8))
	figures := []float64{3, 1, 4, 1, 5, 9, 2, 6}
	r := newResample(figures)
	for size := range 40 {
		r.reset()
		var drawn []float64
		for range size + 1 {
			i := random.IntN(len(figures))
			r.draw(i)
			drawn = append(drawn, figures[i])
		}
		if got, want := r.median(), Median(drawn); got != want {
			t.Errorf("the median of %v is %g, want %g", drawn, got, want)
		}
	}
}

func TestFitGrowth(t *testing.T) {
	n := []float64{1, 10, 100, 1000}
	grow := func(f func(float64) float64) (y []float64) {
		for _, v := range n {
			y = append(y, f(v))
		}
		return y
	}
	linear, ok := FitGrowth(n, grow(func(v float64) float64 { return 80 + 0.2*v }))
	if !ok || math.Abs(linear.Fixed-80) > 1e-6 || math.Abs(linear.Each-0.2) > 1e-9 || linear.R2 < 0.999 {
		t.Errorf("80 + 0.2 n was fitted as %+v", linear)
	}
	square, _ := FitGrowth(n, grow(func(v float64) float64 { return v * v }))
	if math.Abs(square.Exponent-2) > 1e-9 {
		t.Errorf("n² was fitted with the exponent %g", square.Exponent)
	}
	constant, _ := FitGrowth(n, grow(func(float64) float64 { return 7 }))
	if constant.Each != 0 || math.Abs(constant.Exponent) > 1e-9 {
		t.Errorf("a constant was fitted as %+v", constant)
	}
	if _, ok := FitGrowth([]float64{5}, []float64{1}); ok {
		t.Error("one point was fitted")
	}
}

func TestDrift(t *testing.T) {
	steady, rising := make([]float64, 90), make([]float64, 90)
	for i := range steady {
		steady[i], rising[i] = 5, 5+float64(i)/10
	}
	if d := Drift(steady); d != 0 {
		t.Errorf("a steady route has a drift of %g", d)
	}
	if d := Drift(rising); d < 0.5 {
		t.Errorf("a route that becomes twice as slow has a drift of %g", d)
	}
}
