package report

import (
	"fmt"
	"strings"
)

// The contenders that targets speak of, by name.
const (
	shoal  = "shoal"
	direct = "direct"
	https  = "https"
	// kept is plain HTTPS whose client keeps the bytes, as the agents do.
	kept = "https-kept"
	// moved is a warm pull that ends in the agent's store.
	moved = "shoal-store"
)

// Target is a figure that Shoal is to reach, with the one it did reach in this run.
type Target struct {
	Workload, Name string
	// Limit is the most, or where AtLeast is set the least, that Got may be.
	Limit, Got float64
	AtLeast    bool
	// CPUBound tells that the machine's CPUs may have set the figure.
	CPUBound bool
}

// Met reports whether the target was reached.
func (t Target) Met() bool {
	if t.AtLeast {
		return t.Got >= t.Limit
	}
	return t.Got <= t.Limit
}

// Workload names that have targets of their own. A burst's name ends in its number of nodes where that varies.
const (
	coldBurst   = "cold"
	flatness    = "nodes-"
	warmPull    = "warm"
	smallSingle = "small-single"
	zones       = "zones"
	model       = "model"
	objectStore = "object-store"
	storeSingle = "object-store-single"
	coldDouble  = "cold-double"
	uneven      = "uneven"
	ranges      = "ranges"
	noRange     = "no-range"
	lying       = "lying"
	killed      = "killed"
)

// overIdeal is how many times the ideal the last node may take.
var overIdeal = map[string]float64{
	coldBurst: 1.2, coldDouble: 1.15, uneven: 1.25, "layers": 1.3, "small": 1.5, "small-4": 1.5, ranges: 2,
	zones: 1.25, "outage": 1.2, model: 1.3, objectStore: 1.22, storeSingle: 1.27,
}

// copies is how many times the image the registry may send.
var copies = map[string]float64{
	coldBurst: 1.05, coldDouble: 1.05, objectStore: 1.05, uneven: 1.05, ranges: 1.1, noRange: 1.02, lying: 2.1,
	killed: 1.1,
}

// Judge fills in the targets that this run has figures for.
func (r *Report) Judge() {
	r.Targets = nil
	for _, w := range r.Workloads {
		run := r.Find(w.Name, shoal)
		if run == nil {
			continue
		}
		add := func(name string, got, limit float64) {
			r.Targets = append(r.Targets, Target{Workload: w.Name, Name: name, Got: got, Limit: limit,
				CPUBound: run.CPUBound()})
		}
		addFloor := func(name string, got, limit float64) {
			r.Targets = append(r.Targets,
				Target{Workload: w.Name, Name: name, Got: got, Limit: limit, AtLeast: true, CPUBound: run.CPUBound()})
		}
		add("pulls that failed", float64(run.Failed), 0)
		if limit, judged := overIdeal[w.Name]; judged {
			add("last node over ideal", run.OverIdeal(), limit)
		}
		if limit, judged := copies[w.Name]; judged {
			add("registry bytes over image", run.RegistryCopies(), limit)
		}
		switch {
		case strings.HasPrefix(w.Name, coldBurst):
			add("sent by the busiest node over image", run.BusiestCopies(), 1.3)
		case w.Name == model:
			add("hub's bytes over model", run.RegistryCopies(), 1.05)
			if run.Late != nil {
				add("bytes of late nodes from the hub", float64(run.Late.Bytes), 0)
			}
			if run.WarmRatio > 0 {
				addFloor("warm throughput over http.ServeFile", run.WarmRatio, 0.9)
			}
			if plain := r.Find(w.Name, direct); plain != nil && plain.Failed == 0 {
				one := ratio(float64(plain.RegistryRequests), float64(plain.Pulls))
				add("hub's requests over those of one node", ratio(float64(run.RegistryRequests), one), 1.5)
			}
		case w.Name == zones:
			add("bytes into a zone over image", run.ThinLinkCopies(), 1.1)
		case w.Name == warmPull:
			if plain := r.Find(w.Name, https); plain != nil {
				addFloor("throughput over plain HTTPS", ratio(run.Throughput(), plain.Throughput()), 0.85)
				// Reading the agent's answer is the runtime's work with or without a cache, so the agents alone are
				// weighed against sender and receiver.
				add("CPU over plain HTTPS", ratio(float64(run.ContenderCPU),
					float64(plain.ContenderCPU+plain.ClientCPU)), 1.3)
			}
			for _, from := range []string{https, kept} {
				stored, plain := r.Find(w.Name, moved), r.Find(w.Name, from)
				if stored != nil && plain != nil {
					add("CPU agent to agent over "+from,
						ratio(float64(stored.ContenderCPU), float64(plain.ContenderCPU+plain.ClientCPU)), 1.5)
				}
			}
		}
		if plain := r.Find(w.Name, direct); plain != nil && plain.Failed == 0 {
			if w.Name == smallSingle {
				add("seconds more than direct", float64(run.Last-plain.Last), 0.05)
			} else {
				add("last node over direct", ratio(float64(run.Last), float64(plain.Last)), 1.05)
			}
		}
	}
	r.judgeFlatness()
}

// judgeFlatness compares the slowest with the fastest number of nodes.
func (r *Report) judgeFlatness() {
	var times []float64
	var names []string
	bound := false
	for _, w := range r.Workloads {
		if run := r.Find(w.Name, shoal); run != nil && strings.HasPrefix(w.Name, flatness) {
			times = append(times, float64(run.Last))
			names = append(names, fmt.Sprint(run.Nodes))
			bound = bound || run.CPUBound()
		}
	}
	if len(times) < 2 {
		return
	}
	low, high := times[0], times[0]
	for _, t := range times[1:] {
		low, high = min(low, t), max(high, t)
	}
	r.Targets = append(r.Targets, Target{
		Workload: strings.TrimSuffix(flatness, "-"),
		Name:     "slowest over fastest of " + strings.Join(names, ", ") + " nodes",
		Got:      ratio(high, low), Limit: 1.4, CPUBound: bound,
	})
}
