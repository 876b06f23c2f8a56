// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bytes"
	"fmt"
	"image/color"
	"math"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/oam-dev/cluster-gateway/benchmark/stats"
)

// Figure is a plot.
type Figure struct {
	Name, Title, Caption string
	plot                 *plot.Plot
	// rises means that every curve ends in the top right corner, so that the bottom right corner is
	// free.
	rises bool
}

// curve is one line of a plot.
type curve struct {
	name   string
	points plotter.XYs
}

// textColor is a placeholder for the color of the text around the plot, which can be dark or light.
// Nothing else in the plot has this color.
var textColor = color.RGBA{R: 1, G: 1, B: 1, A: 255}

const textColorInSVG = "#010101"

// background is the background color if the plot is not part of a page.
const background = "#ffffff"

// palette has colors that can be distinguished on white and on black, and by color-blind people
// (after Okabe and Ito).
func palette(i int) color.Color {
	colors := []color.RGBA{
		{0x80, 0x80, 0x80, 255}, {0x00, 0x85, 0xc7, 255}, {0xd5, 0x6a, 0x10, 255}, {0x00, 0x9e, 0x73, 255},
		{0xc0, 0x68, 0x9a, 255}, {0xb8, 0x8a, 0x00, 255}, {0x4b, 0xa3, 0xe0, 255}, {0xa0, 0x50, 0x50, 255},
	}
	return colors[i%len(colors)]
}

// Figures returns the plots that have data.
func (r *Report) Figures() []Figure {
	var all []Figure
	for _, f := range []Figure{r.distribution("get"), r.distribution(flowWorkload), r.rates(), r.distances(), r.costs()} {
		if f.plot != nil {
			all = append(all, f)
		}
	}
	return all
}

// distribution shows, for each latency, the share of requests that took no longer.
func (r *Report) distribution(workload string) Figure {
	var curves []curve
	title := ""
	for _, s := range r.Series {
		if s.Workload != workload || s.Failing() || s.Summary.N == 0 {
			continue
		}
		title = s.Title
		sorted := stats.Valid(s.Figures)
		slices.Sort(sorted)
		var points plotter.XYs
		for i := range 100 {
			q := float64(i) / 100
			points = append(points, plotter.XY{X: 1e3 * stats.Quantile(sorted, q), Y: 100 * q})
		}
		points = append(points, plotter.XY{X: 1e3 * s.Summary.P99, Y: 99})
		curves = append(curves, curve{s.Route, points})
	}
	return lines(Figure{
		Name: "latency-" + workload, Title: "Latency: " + title,
		rises:   true,
		Caption: "The share of all rounds that took no longer than the given number of milliseconds, up to 99 %. Further left is faster; steeper means less variation.",
	}, "milliseconds", "% of rounds", true, false, curves)
}

func (r *Report) rates() Figure {
	return lines(Figure{
		Name: "rate", Title: "Rate over concurrency",
		Caption: "GETs per second, by the number of workers that send them one after another; the median of the rounds.",
	}, "workers", "requests/s", true, false, r.byX("load", 1, 1))
}

func (r *Report) distances() Figure {
	return lines(Figure{
		Name: "distance", Title: "Latency over distance",
		Caption: "A warm GET, by the round-trip time between agent and tunnel server (direct: between client and API server); the median.",
	}, "round trip, ms", "GET, ms", false, false, r.byX("get-far", 1e3, 1e3))
}

// byX has a curve for each route over the workload's parameter.
func (r *Report) byX(workload string, scaleX, scaleY float64) []curve {
	var curves []curve
	for _, s := range r.Series {
		if s.Workload != workload || s.Failing() || s.Summary.N == 0 {
			continue
		}
		at := slices.IndexFunc(curves, func(c curve) bool { return c.name == s.Route })
		if at < 0 {
			at = len(curves)
			curves = append(curves, curve{name: s.Route})
		}
		curves[at].points = append(curves[at].points, plotter.XY{X: scaleX * s.X, Y: scaleY * s.Summary.P50})
	}
	return curves
}

// costs shows each cost relative to its value at the smallest number of clusters, so that all of
// them fit into one plot.
func (r *Report) costs() Figure {
	var curves []curve
	for _, g := range r.Growth {
		if len(g.Counts) < 2 || g.Values[0] <= 0 || g.Minor {
			continue
		}
		c := curve{name: g.Cost}
		for i := range g.Counts {
			if g.Values[i] > 0 {
				c.points = append(c.points, plotter.XY{X: g.Counts[i], Y: g.Values[i] / g.Values[0]})
			}
		}
		curves = append(curves, c)
	}
	return lines(Figure{
		Name: "scale", Title: "Cost over clusters",
		Caption: "Each cost as a multiple of its value at the smallest number of clusters. Both axes are logarithmic: a cost that is proportional to the number of clusters rises by one decade per decade.",
	}, "clusters", "times the first", true, true, curves)
}

// lines draws curves. A figure without curves has no plot.
func lines(f Figure, x, y string, logX, logY bool, curves []curve) Figure {
	curves = slices.DeleteFunc(curves, func(c curve) bool { return len(c.points) < 2 })
	if len(curves) == 0 {
		return f
	}
	p := plot.New()
	p.BackgroundColor = color.Transparent
	p.X.Label.Text, p.Y.Label.Text = x, y
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Color, axis.Label.TextStyle.Color, axis.Tick.Color, axis.Tick.Label.Color = textColor, textColor, textColor, textColor
		axis.Label.TextStyle.Font.Size, axis.Tick.Label.Font.Size = 13, 12
	}
	p.Legend.TextStyle.Color, p.Legend.TextStyle.Font.Size = textColor, 12
	p.Legend.Top, p.Legend.Left = !f.rises, !f.rises // where there is space
	p.Legend.Padding = vg.Points(3)
	p.Legend.XOffs = vg.Points(6)
	if f.rises {
		p.Legend.XOffs = -vg.Points(6)
	}
	for _, style := range []*text.Style{&p.X.Label.TextStyle, &p.Y.Label.TextStyle, &p.X.Tick.Label, &p.Y.Tick.Label, &p.Legend.TextStyle} {
		style.Font.Variant = "Sans"
	}
	p.Legend.ThumbnailWidth = vg.Points(16)
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = color.NRGBA{128, 128, 128, 70}, color.NRGBA{128, 128, 128, 70}
	p.Add(grid)
	for i, c := range curves {
		line, points, err := plotter.NewLinePoints(c.points)
		if err != nil {
			continue // one of its figures cannot be drawn
		}
		line.Color, line.Width = palette(i), vg.Points(1.6)
		if i >= 4 { // lines also differ by their dashes, not only by color
			line.Dashes = []vg.Length{vg.Points(5), vg.Points(2)}
		}
		points.Color, points.Shape, points.Radius = palette(i), draw.CircleGlyph{}, vg.Points(2)
		p.Add(line)
		if len(c.points) < 20 {
			p.Add(points)
		}
		name := c.name
		if f.rises { // to the left of its line; the spaces keep a font that is wider than the measured one away from it
			name += "    "
		}
		p.Legend.Add(name, line)
	}
	if logX && p.X.Min > 0 && p.X.Min < p.X.Max {
		p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, decades{}
	}
	if logY && p.Y.Min > 0 && p.Y.Min < p.Y.Max {
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, decades{}
	} else {
		p.Y.Min = math.Min(0, p.Y.Min)
		if !f.rises { // space for the legend
			p.Y.Max += (p.Y.Max - p.Y.Min) * 0.07 * float64(len(curves))
		}
	}
	f.plot = p
	return f
}

// decades marks 1, 2 and 5 of each decade, as plain numbers.
type decades struct{}

// Ticks implements plot.Ticker.
func (decades) Ticks(low, high float64) []plot.Tick {
	var ticks []plot.Tick
	if low <= 0 || math.IsInf(high, 0) || math.IsNaN(high) {
		return nil // zero and negative values have no logarithm
	}
	for exponent := math.Floor(math.Log10(low)); exponent <= math.Ceil(math.Log10(high)); exponent++ {
		for _, factor := range []float64{1, 2, 5} {
			if v := factor * math.Pow(10, exponent); v >= low*0.999 && v <= high*1.001 {
				ticks = append(ticks, plot.Tick{Value: v, Label: fmt.Sprintf("%g", roundSignificant(v))})
			}
		}
	}
	return ticks
}

const (
	figureWidth  = 600
	figureHeight = 380
)

// SVG draws a figure. In an HTML page, its text has the page's text color; otherwise, it is a
// separate image on white.
func (f Figure) SVG(page bool) ([]byte, error) {
	canvas := vgsvg.New(vg.Points(figureWidth), vg.Points(figureHeight))
	f.plot.Draw(draw.Crop(draw.New(canvas), 0, -vg.Points(18), 0, -vg.Points(8))) // the label of the last tick extends beyond the axis
	var b bytes.Buffer
	if _, err := canvas.WriteTo(&b); err != nil {
		return nil, err
	}
	svg := b.String()
	svg = svg[strings.Index(svg, "<svg"):] // a page must not contain the XML declaration
	// The text was measured with Liberation Sans, which few machines have. Arial and Helvetica have
	// the same widths.
	svg = strings.ReplaceAll(svg, "font-family:Liberation Sans", "font-family:Arial,Liberation Sans,Helvetica,sans-serif")
	opening, rest, _ := strings.Cut(svg, ">")
	if page {
		label := strings.NewReplacer(`"`, "'", "<", "", "&", "and").Replace(f.Title)
		return []byte(opening + ` role="img" aria-label="` + label + `">` + strings.ReplaceAll(rest, textColorInSVG, "currentColor")), nil
	}
	return []byte(opening + `><rect width="100%" height="100%" fill="` + background + `"/>` + rest), nil
}
