package page

import (
	"cmp"
	"embed"
	"fmt"
	"html/template"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/shoal-cache/shoal/api/view"
)

//go:embed assets
var assets embed.FS

// pages are the templates: "page" is all of it, "main" what is drawn again and again.
var pages = template.Must(template.New("").Funcs(template.FuncMap{
	"bytes": view.Bytes, "duration": view.Duration, "ratio": view.Ratio, "count": view.Count[int], "short": view.Short,
	"many": func(n int64, one string) string { return view.Count(int(n), one) },
	"ago":  view.Ago, "clip": clip, "dash": func(s string) string { return cmp.Or(s, "–") },
	"zone": func(s string) string { return cmp.Or(s, "no zone") },
	"time": func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
	"hour": func(t time.Time) string { return t.UTC().Format("15:04") },
	"grid": grid, "cells": cells, "streams": streams, "charts": charts,
}).ParseFS(assets, "assets/page.html"))

// clip shortens a name that has no room, in its middle: names of one kind differ at their ends.
func clip(most int, s string) string {
	r := []rune(s)
	if len(r) <= most {
		return s
	}
	head := (most - 1) / 2
	return string(r[:head]) + "…" + string(r[len(r)-(most-1-head):])
}

// mark is a node's place in the picture of its zone.
type mark struct {
	Dot
	X, Y float64
}

// marks are a zone's nodes in rows.
type marks struct {
	All           []mark
	Width, Height float64
}

func grid(dots []Dot) marks {
	const step = 14.0
	across := int(max(6, min(20, math.Ceil(math.Sqrt(float64(len(dots))*2)))))
	m := marks{Width: step * float64(across), Height: step * math.Ceil(float64(len(dots))/float64(across))}
	for i, d := range dots {
		m.All = append(m.All, mark{d, step * (float64(i%across) + 0.5), step * (float64(i/across) + 0.5)})
	}
	return m
}

// fill is the map of a blob as two paths: cells that are all here, and cells of which a part is.
type fill struct {
	Width       int
	Full, Parts string
}

func cells(tenths []int) fill {
	f := fill{Width: max(1, len(tenths))}
	var full, parts strings.Builder
	for i, t := range tenths {
		switch {
		case t >= 10:
			fmt.Fprintf(&full, "M%d 0h1v10h-1z", i)
		case t > 0:
			fmt.Fprintf(&parts, "M%d %dh1V10h-1z", i, 10-t)
		}
	}
	f.Full, f.Parts = full.String(), parts.String()
	return f
}

// stream is a flow between two names in the picture.
type stream struct {
	Flow
	FromY, ToY, Width float64
	Path              string
}

// end is a name at one side of the picture.
type end struct {
	Name string
	Y    float64
}

// network is the picture of flows: who sends at the left, who receives at the right.
type network struct {
	Streams     []stream
	Left, Right []end
	Height      float64
}

// streams draws the strongest flows.
func streams(flows []Flow) network {
	const most, row, left, right = 12, 34.0, 200.0, 440.0
	var n network
	place := func(ends *[]end, name string) float64 {
		for _, e := range *ends {
			if e.Name == name {
				return e.Y
			}
		}
		y := row * (float64(len(*ends)) + 0.7)
		*ends = append(*ends, end{name, y})
		n.Height = max(n.Height, y+row/2)
		return y
	}
	var strongest int64 = 1
	for _, f := range flows[:min(len(flows), most)] {
		strongest = max(strongest, f.Rate)
	}
	for _, f := range flows[:min(len(flows), most)] {
		from := cmp.Or(f.From, "no zone")
		if f.Registry {
			from = "registries"
		}
		s := stream{Flow: f, FromY: place(&n.Left, from), ToY: place(&n.Right, cmp.Or(f.To, "no zone")),
			Width: 1.5 + 12.5*float64(f.Rate)/float64(strongest)}
		middle := (left + right) / 2
		s.Path = fmt.Sprintf("M%.0f %.1fC%.0f %.1f %.0f %.1f %.0f %.1f", left, s.FromY, middle, s.FromY, middle, s.ToY,
			right, s.ToY)
		n.Streams = append(n.Streams, s)
	}
	return n
}

// bar is a step in a chart.
type bar struct {
	Step
	X, Width                float64
	SavedHeight, ReadHeight float64
}

// chart draws what happened over time, 600 wide and 120 high.
type chart struct {
	Bars []bar
	// Line is the hit ratio, from 0 at the bottom to 1 at the top, with a gap where nothing was asked for.
	Line  string
	Most  int64 // bytes of the highest bar
	Since time.Time
	Until time.Time
}

func charts(points []Point) chart {
	const wide, high = 600.0, 120.0
	var c chart
	all := steps(points)
	if len(all) == 0 {
		return c
	}
	c.Since, c.Until = all[0].From, all[len(all)-1].To
	for _, s := range all {
		c.Most = max(c.Most, s.Saved+s.Upstream)
	}
	span := max(1, c.Until.Sub(c.Since).Seconds())
	x := func(t time.Time) float64 { return wide * t.Sub(c.Since).Seconds() / span }
	var line strings.Builder
	drawing := false
	for _, s := range all {
		b := bar{Step: s, X: x(s.From)}
		b.Width = max(0.5, x(s.To)-b.X-0.5)
		if c.Most > 0 {
			b.SavedHeight = high * float64(s.Saved) / float64(c.Most)
			b.ReadHeight = high * float64(s.Upstream) / float64(c.Most)
		}
		c.Bars = append(c.Bars, b)
		if s.Requests == 0 {
			drawing = false
			continue
		}
		move := "L"
		if !drawing {
			move = "M"
		}
		y := high * (1 - float64(s.Hits)/float64(s.Requests))
		fmt.Fprintf(&line, "%s%.1f %.1fH%.1f", move, b.X, y, x(s.To))
		drawing = true
	}
	c.Line = line.String()
	return c
}

// Newest are the steps, the newest first.
func (c chart) Newest() []Step {
	all := make([]Step, 0, len(c.Bars))
	for _, b := range slices.Backward(c.Bars) {
		all = append(all, b.Step)
	}
	return all
}

// Top is where the bar of what was saved begins, and Mid that of what was read from registries, above it.
func (b bar) Top() float64 { return 120 - b.SavedHeight }

// Mid is the top of both.
func (b bar) Mid() float64 { return 120 - b.SavedHeight - b.ReadHeight }
