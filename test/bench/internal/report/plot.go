package report

import (
	"fmt"
	"html/template"
	"math"
	"slices"
	"strings"
)

// The drawing's measures in SVG user units.
const (
	plotWidth, plotHeight           = 860.0, 300.0
	marginLeft, marginRight         = 48.0, 16.0
	marginTop, marginBottom         = 12.0, 36.0
	ticksAcross                     = 8
	curvePoints                     = 300
	plotInnerWidth, plotInnerHeight = plotWidth - marginLeft - marginRight, plotHeight - marginTop - marginBottom
)

// Thin leaves at most most points of a curve, the first and the last among them.
func Thin(points [][2]float64, most int) [][2]float64 {
	if len(points) <= most || most < 2 {
		return points
	}
	thinned := make([][2]float64, most)
	for i := range thinned {
		thinned[i] = points[i*(len(points)-1)/(most-1)]
	}
	return thinned
}

// NewCurve is a curve of a bounded number of points.
func NewCurve(node string, points [][2]float64) Curve {
	return Curve{Node: node, Points: Thin(points, curvePoints)}
}

// plot draws the share of the content that each node has over time: a line for each node, in the colour of its
// contender, and the ideal as a dashed line across.
func plot(w Workload) template.HTML {
	end, ideal := 0.0, 0.0
	for _, run := range w.Runs {
		ideal = max(ideal, float64(run.Ideal))
		for _, c := range run.Curves {
			if len(c.Points) > 0 {
				end = max(end, c.Points[len(c.Points)-1][0])
			}
		}
	}
	if end == 0 {
		return ""
	}
	step := tickStep(end)
	end = math.Ceil(end/step) * step
	x := func(seconds float64) float64 { return marginLeft + seconds/end*plotInnerWidth }
	y := func(share float64) float64 { return marginTop + (1-min(share, 1))*plotInnerHeight }

	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %g %g" role="img" aria-label="share of the content each node has, over time">`,
		plotWidth, plotHeight)
	for _, share := range []float64{0, 0.25, 0.5, 0.75, 1} {
		fmt.Fprintf(&b, `<line class="grid" x1="%g" x2="%g" y1="%.1f" y2="%.1f"/>`, marginLeft, plotWidth-marginRight,
			y(share), y(share))
		fmt.Fprintf(&b, `<text class="tick" x="%g" y="%.1f" text-anchor="end">%.0f %%</text>`, marginLeft-6, y(share)+4,
			100*share)
	}
	for t := 0.0; t <= end+step/2; t += step {
		fmt.Fprintf(&b, `<text class="tick" x="%.1f" y="%g" text-anchor="middle">%s s</text>`, x(t),
			plotHeight-marginBottom+18, trim(t))
	}
	if ideal > 0 {
		fmt.Fprintf(&b, `<line class="ideal" x1="%.1f" x2="%.1f" y1="%g" y2="%g"><title>ideal: %.1f s</title></line>`,
			x(ideal), x(ideal), marginTop, plotHeight-marginBottom, ideal)
		fmt.Fprintf(&b, `<text class="tick" x="%.1f" y="%g">ideal</text>`, x(ideal)+4, marginTop+12)
	}
	for _, run := range w.Runs {
		for _, c := range run.Curves {
			fmt.Fprintf(&b, `<polyline class="%s" points="`, class(run.Contender))
			for _, p := range Thin(c.Points, curvePoints) {
				fmt.Fprintf(&b, "%.1f,%.1f ", x(p[0]), y(ratio(p[1], float64(run.Content))))
			}
			fmt.Fprintf(&b, `"><title>%s, %s: %.1f s</title></polyline>`,
				template.HTMLEscapeString(run.Contender), template.HTMLEscapeString(c.Node),
				c.Points[len(c.Points)-1][0])
		}
	}
	b.WriteString("</svg>")
	return template.HTML(b.String()) //nolint:gosec // names are escaped above, everything else is a number
}

// tickStep is a round distance (1, 2 or 5 times a power of ten) that gives about ticksAcross ticks up to end.
func tickStep(end float64) float64 {
	raw := end / ticksAcross
	power := math.Pow(10, math.Floor(math.Log10(raw)))
	for _, m := range []float64{1, 2, 5} {
		if raw <= m*power {
			return m * power
		}
	}
	return 10 * power
}

// trim writes a number without needless decimals.
func trim(f float64) string {
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.2f", f), "0"), ".")
}

// coloured are the contenders that have a colour of their own on the page.
var coloured = []string{shoal, direct, https, "pull-through", "spegel", "dragonfly", "kraken"}

// class is the style of a contender's lines.
func class(contender string) string {
	if slices.Contains(coloured, contender) {
		return "c-" + contender
	}
	return "c-other"
}
