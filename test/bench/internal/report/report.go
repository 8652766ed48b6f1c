// Package report turns what the benchmark measured into figures: ratios within one run, targets met and missed, a
// table, JSON, and a page of plots.
package report

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"
)

// Report is one run of the benchmark.
type Report struct {
	// Command made the report, Machine is what it ran on.
	Command, Machine string
	Began            time.Time
	Took             Seconds
	Workloads        []Workload
	Targets          []Target
}

// Workload is one workload with what each contender made of it.
type Workload struct {
	Name, Title, Text string
	Runs              []Run
}

// Run is one contender at one workload. Sizes are in bytes.
type Run struct {
	Contender string
	// Skipped says why there is nothing else here, where set; Problem what broke the run off.
	Skipped string `json:",omitempty"`
	Problem string `json:",omitempty"`

	Nodes int
	// Content is the image's size, or of what a node had to get of it.
	Content int64
	// Ideal is the time that Content takes over the narrowest link. 0: no link was shaped.
	Ideal Seconds `json:",omitempty"`
	// First, Median and Last are the times from the common start until that many nodes were done.
	First, Median, Last Seconds
	// FirstByte is the median and SlowestFirstByte the largest time from a node's start to the first byte of a blob.
	FirstByte, SlowestFirstByte Seconds
	// Layers are the sizes of blobs that were read whole, smallest first, with the longest that a first byte took from
	// its request.
	Layers []Layer `json:",omitempty"`
	// ReadMedian is the median latency of a range read, where the workload has such.
	ReadMedian Seconds `json:",omitempty"`

	Pulls, Failed int
	// Failures are the distinct errors of failed pulls.
	Failures []string `json:",omitempty"`
	// Fallbacks are requests that a client took to the registry since its mirror refused; Resumed are broken bodies;
	// Again are blobs that broke off, were wrong at their end, and were read once more from their start.
	Fallbacks, Resumed int64
	Again              int64 `json:",omitempty"`
	// Killed is the host whose agent and client were killed, where one was. Its pull does not count.
	Killed string `json:",omitempty"`

	// RegistryBytes and RegistryRequests are what the origin registry served.
	RegistryBytes, RegistryRequests int64
	// Busiest are the payload bytes sent by the client host that sent most, ThinLink those that entered the zone into
	// which most came over its thin link.
	Busiest  int64
	ThinLink int64 `json:",omitempty"`

	// Late is what nodes that began after all others took from the origin, and WarmRatio how fast a node gives a file
	// that it has, in what http.ServeFile makes of it. Both are of a model alone.
	Late      *Late   `json:",omitempty"`
	WarmRatio float64 `json:",omitempty"`

	// ContenderCPU, ClientCPU and RegistryCPU are CPU time by whose processes used it.
	ContenderCPU, ClientCPU, RegistryCPU Seconds
	// PeakMemory is the largest resident set of any of the contender's processes.
	PeakMemory int64
	// Busy is the mean share of the machine's CPUs in use, Saturated the share of the time in which nearly all were.
	Busy, Saturated float64
	// Span is the time over which the costs were counted.
	Span Seconds
	// CPUs is the number of the machine's CPUs.
	CPUs int

	Curves []Curve `json:",omitempty"`
}

// Late is what nodes took from the origin that began when all others were done.
type Late struct {
	Nodes           int
	Bytes, Requests int64
}

// Layer is how long the first byte of the blobs of one size took at the most.
type Layer struct {
	Size      int64
	FirstByte Seconds
}

// Wait notes how long the first byte of a blob took.
func (r *Run) Wait(size int64, took Seconds) {
	i, known := slices.BinarySearchFunc(r.Layers, size, func(l Layer, size int64) int {
		return cmp.Compare(l.Size, size)
	})
	if !known {
		r.Layers = slices.Insert(r.Layers, i, Layer{Size: size})
	}
	r.Layers[i].FirstByte = max(r.Layers[i].FirstByte, took)
}

// Curve is the progress of one node, beginning at its own start.
type Curve struct {
	Node string
	// Points are pairs of seconds since the common start and bytes.
	Points [][2]float64
}

// Seconds is a duration that JSON shows in seconds.
type Seconds float64

// ToSeconds converts.
func ToSeconds(d time.Duration) Seconds { return Seconds(d.Seconds()) }

// saturation is the share of CPU in use from which on the machine, not the links, is taken to have set the pace.
const saturation = 0.9

// CPUBound reports whether the machine's CPUs, rather than its links, may have been the limit of the run.
func (r Run) CPUBound() bool { return r.Busy > saturation || r.Saturated > 0.5 }

// Others is the share of the machine's CPUs, 0 to 1, that was in use by something other than the run's own processes:
// the kernel's packet handling, and whatever else the machine was doing.
func (r Run) Others() float64 {
	own := ratio(float64(r.ContenderCPU+r.ClientCPU+r.RegistryCPU), float64(r.Span)*float64(r.CPUs))
	return max(0, r.Busy-own)
}

// Measured reports whether the run came to an end and can be compared.
func (r Run) Measured() bool { return r.Skipped == "" && r.Problem == "" }

// OverIdeal is the last node's time over the ideal, 0 where there is none.
func (r Run) OverIdeal() float64 { return ratio(float64(r.Last), float64(r.Ideal)) }

// RegistryCopies is the registry's bytes over the content.
func (r Run) RegistryCopies() float64 { return ratio(float64(r.RegistryBytes), float64(r.Content)) }

// BusiestCopies is what the busiest node sent over the content.
func (r Run) BusiestCopies() float64 { return ratio(float64(r.Busiest), float64(r.Content)) }

// ThinLinkCopies is what entered the busiest zone over the content.
func (r Run) ThinLinkCopies() float64 { return ratio(float64(r.ThinLink), float64(r.Content)) }

// CPUPerGiB is the CPU time in seconds of contender, clients and registry for each GiB of content that a node got.
func (r Run) CPUPerGiB() float64 {
	got := float64(r.Content) * float64(r.Pulls-r.Failed)
	return ratio(float64(r.ContenderCPU+r.ClientCPU+r.RegistryCPU), got/(1<<30))
}

// Throughput is content over the last node's time, in bytes per second.
func (r Run) Throughput() float64 { return ratio(float64(r.Content), float64(r.Last)) }

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// Median is the middle of values, of the two middle ones the lower: so a median of nodes is a node. It is the zero
// value where there are none.
func Median[T cmp.Ordered](values []T) T {
	if len(values) == 0 {
		var none T
		return none
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[(len(sorted)-1)/2]
}

// Find returns the contender's run of a workload, nil where there is none that can be compared.
func (r *Report) Find(workload, contender string) *Run {
	for i := range r.Workloads {
		if r.Workloads[i].Name != workload {
			continue
		}
		for j := range r.Workloads[i].Runs {
			if run := &r.Workloads[i].Runs[j]; run.Contender == contender && run.Measured() {
				return run
			}
		}
	}
	return nil
}

// WriteJSON writes the whole report.
func (r *Report) WriteJSON(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", " ")
	if err := encoder.Encode(r); err != nil {
		return fmt.Errorf("report as JSON: %w", err)
	}
	return nil
}
