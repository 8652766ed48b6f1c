package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// watch shows how far every agent is until ctx ends: a screen that is drawn again on a terminal, a line each second
// elsewhere.
func watch(ctx context.Context, agents []*agent, img image) {
	live := term.IsTerminal(int(os.Stdout.Fd()))
	every := time.Second
	if live {
		every = 150 * time.Millisecond
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	start := time.Now()
	drawn := false
	last := make([]traffic, len(agents))
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		observe(ctx, agents, last)
		if !live {
			fmt.Println(summary(agents, last, img, time.Since(start)))
			continue
		}
		if drawn {
			fmt.Printf("\x1b[%dA", len(agents)) // back to the first of our lines
		}
		drawn = true
		for i, a := range agents {
			fmt.Printf("\x1b[2K%s\n", bar(a, last[i], img))
		}
	}
}

// observe reads the metrics of all agents side by side; one that does not answer keeps its last figures.
func observe(ctx context.Context, agents []*agent, last []traffic) {
	var reading sync.WaitGroup
	for i, a := range agents {
		reading.Go(func() {
			if t, err := a.traffic(ctx); err == nil {
				last[i] = t
			}
		})
	}
	reading.Wait()
}

const barWidth = 30

func bar(a *agent, t traffic, img image) string {
	have := min(1, float64(t.upstream+t.fromPeers)/float64(img.size()))
	filled := int(have * barWidth)
	note := ""
	if a.killed.Load() {
		note = "  killed"
	}
	return fmt.Sprintf("%-9s %s%s %3.0f %%  upstream %9s  from peers %9s  to peers %9s%s", a.name,
		strings.Repeat("█", filled), strings.Repeat("·", barWidth-filled), have*100,
		mebibytes(t.upstream), mebibytes(t.fromPeers), mebibytes(t.toPeers), note)
}

func summary(agents []*agent, last []traffic, img image, since time.Duration) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%5.1f s ", since.Seconds())
	var upstream int64
	for i, a := range agents {
		upstream += last[i].upstream
		if a.killed.Load() {
			b.WriteString("  killed")
			continue
		}
		fmt.Fprintf(&b, "  %4.0f %%", 100*min(1, float64(last[i].upstream+last[i].fromPeers)/float64(img.size())))
	}
	fmt.Fprintf(&b, "   upstream %s", mebibytes(upstream))
	return b.String()
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
