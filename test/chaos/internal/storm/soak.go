package storm

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/shoal-cache/shoal/test/chaos/internal/plan"
	"github.com/shoal-cache/shoal/test/chaos/internal/rig"
)

// Soak is what the agents used after each round.
type Soak struct{ samples []sample }

type sample struct {
	at     time.Duration
	states []rig.State
}

// Add adds a reading.
func (k *Soak) Add(at time.Duration, states []rig.State) {
	k.samples = append(k.samples, sample{at, states})
}

// Quarter is the median over agents and rounds of a quarter of a run.
type Quarter struct {
	Until                    time.Duration
	RSS, Heap, MaxRSS        int64
	Goroutines, Files, Peers int
}

// Summary is the run in four quarters.
func (k *Soak) Summary() (quarters []Quarter) {
	if len(k.samples) < 4 {
		return nil
	}
	for i := range 4 {
		part := k.samples[len(k.samples)*i/4 : len(k.samples)*(i+1)/4]
		q := Quarter{Until: part[len(part)-1].at}
		var all []rig.State
		for _, s := range part {
			all = append(all, s.states...)
		}
		q.RSS = median(all, func(s rig.State) int64 { return s.RSS })
		q.Heap = median(all, func(s rig.State) int64 { return s.Heap })
		q.Goroutines = int(median(all, func(s rig.State) int64 { return int64(s.Goroutines) }))
		q.Files = int(median(all, func(s rig.State) int64 { return int64(s.Files) }))
		q.Peers = int(median(all, func(s rig.State) int64 { return int64(s.Peers) }))
		for _, s := range all {
			q.MaxRSS = max(q.MaxRSS, s.RSS)
		}
		quarters = append(quarters, q)
	}
	return quarters
}

func median(states []rig.State, of func(rig.State) int64) int64 {
	var values []int64
	for _, s := range states {
		values = append(values, of(s))
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// JudgeGrowth compares the last quarter of a run with the second; in the first caches fill.
func (s *Storm) JudgeGrowth(k Soak) {
	quarters := k.Summary()
	if len(quarters) < 4 {
		s.violate(-1, "%d rounds are too few to tell whether the agents grow", len(k.samples))
		return
	}
	second, last := quarters[1], quarters[3]
	for _, c := range []struct {
		what          string
		then, now     int64
		more, percent int64
	}{
		{"bytes of memory", second.RSS, last.RSS, 24 << 20, 20},
		{"bytes of heap", second.Heap, last.Heap, 24 << 20, 20},
		{"goroutines", int64(second.Goroutines), int64(last.Goroutines), 50, 20},
		{"open files", int64(second.Files), int64(last.Files), 20, 20},
	} {
		if c.now > c.then*(100+c.percent)/100+c.more {
			s.violate(-1, "agents had %d %s in the second quarter of the run, and %d in the last", c.then, c.what,
				c.now)
		}
	}
}

// Write writes the figures for a reader.
func (f *Figures) Write(w io.Writer, seed uint64) error {
	var faults []string
	total := 0
	for _, kind := range plan.Kinds() {
		if n := f.Faults[kind]; n > 0 {
			faults = append(faults, fmt.Sprintf("%s %d", kind, n))
			total += n
		}
	}
	at := func(share float64) time.Duration {
		if len(f.Took) == 0 {
			return 0
		}
		return f.Took[int(share*float64(len(f.Took)-1))].Round(time.Millisecond)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\nseed %d: %d rounds, %d faults (%s)\n", seed, f.Rounds, total, strings.Join(faults, ", "))
	fmt.Fprintf(&b, "pulls          %d; %d failed while the registry failed too; %d begun again\n", f.Pulls, f.Failed,
		f.Again)
	fmt.Fprintf(&b, "time of a pull %s median, %s for 99 of 100, %s at most\n", at(0.5), at(0.99), at(1))
	fmt.Fprintf(&b, "requests       %d went on to the registry, %d bodies were resumed\n", f.Fallbacks, f.Resumed)
	fmt.Fprintf(&b, "wrong bytes    %d answers broken off, %d ended cleanly\n", f.Aborted, f.Clean)
	fmt.Fprintf(&b, "thefts         %d attempts\n", f.Thefts)
	fmt.Fprintf(&b, "copies         %.3f in %d rounds without faults\n", f.Alone.PerImage(), f.Alone.Rounds)
	fmt.Fprintf(&b, "with deaths    %.3f copies in %d rounds with %d deaths, %.2f in one at most; %.3f were allowed\n",
		f.Bounded.PerImage(), f.Bounded.Rounds, f.Bounded.Deaths, f.Bounded.Most,
		f.Bounded.Allowed/float64(max(1, f.Bounded.Size)))
	fmt.Fprintf(&b, "when healed    %.3f copies in %d bursts\n", f.Healed.PerImage(), f.Healed.Rounds)
	fmt.Fprintf(&b, "agents         %d MiB of memory at any time at most; %.0f %% of a core when all was over\n",
		f.Peak>>20, 100*f.Idle)
	for _, q := range f.Soak {
		fmt.Fprintf(&b, "until %-8s memory %d MiB (at most %d), heap %d MiB, %d goroutines, %d open files, %d peers\n",
			q.Until.Round(time.Second), q.RSS>>20, q.MaxRSS>>20, q.Heap>>20, q.Goroutines, q.Files, q.Peers)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write figures: %w", err)
	}
	return nil
}
