package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/opencontainers/go-digest"
)

// maxUpstream is how much Shoal promises that the registry sends in a burst, in images.
const maxUpstream = 1.05

// report prints who moved what, and returns what is wrong: a pull that failed, a digest, a promise.
func report(ctx context.Context, agents []*agent, results []result, registryBytes int64, img image, o options) error {
	var problems []error
	size := float64(img.size())
	want := digest.FromBytes(img.manifest).String()

	fmt.Println()
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "agent\tclient\ttime\tfrom registry\tfrom peers\tto peers\tsent/image\tresult\t")
	busiest := 0.0
	for _, r := range results {
		verdict := "right"
		switch {
		case r.err != nil && r.agent.killed.Load():
			verdict = "killed"
		case r.err != nil:
			verdict = "FAILED"
			problems = append(problems, fmt.Errorf("pull through %s by %s: %w", r.agent.name, r.kind, r.err))
		case r.Digest != want || r.Bytes != img.size():
			verdict = "WRONG"
			problems = append(problems, fmt.Errorf("pull through %s by %s: got %s of %d bytes, want %s of %d",
				r.agent.name, r.kind, r.Digest, r.Bytes, want, img.size()))
		}
		figures := "\t\t\t\t"
		if r.agent.killed.Load() {
			figures = "?\t?\t?\t?\t"
		} else if r.kind != "containerd" { // whose agent has a line already
			t, err := r.agent.traffic(ctx)
			if err != nil {
				problems = append(problems, fmt.Errorf("metrics of %s: %w", r.agent.name, err))
			}
			sent := float64(t.toPeers) / size
			busiest = max(busiest, sent)
			figures = fmt.Sprintf("%s\t%s\t%s\t%.2f\t", mebibytes(t.upstream), mebibytes(t.fromPeers),
				mebibytes(t.toPeers), sent)
		}
		fmt.Fprintf(table, "%s\t%s\t%.1f s\t%s%s\t\n", r.agent.name, r.kind, r.took.Seconds(), figures, verdict)
	}
	if err := table.Flush(); err != nil {
		return err
	}

	upstream := float64(registryBytes) / size
	fmt.Printf("\nimage %s, %d agents: the registry sent %s of blobs, %.3f images (promise: at most %.2f; "+
		"without a cache: %d)\n",
		mebibytes(img.size()), len(agents), mebibytes(registryBytes), upstream, maxUpstream, len(agents))
	fmt.Printf("the busiest agent sent %.2f images (promise: at most %.1f)\n", busiest, o.maxSent)
	if o.killOne {
		if !anyKilled(agents) {
			problems = append(problems,
				errors.New("all pulls were done before an agent could be killed in the middle; use a larger --mib"))
		}
		fmt.Println("an agent was killed, so what it alone had taken from the registry was taken again: " +
			"only the other pulls are judged")
		return errors.Join(problems...)
	}
	if upstream > maxUpstream {
		problems = append(problems, fmt.Errorf("promise broken: the registry sent %.3f images", upstream))
	}
	if busiest > o.maxSent {
		problems = append(problems, fmt.Errorf("promise broken: an agent sent %.2f images", busiest))
	}
	return errors.Join(problems...)
}

func anyKilled(agents []*agent) bool {
	for _, a := range agents {
		if a.killed.Load() {
			return true
		}
	}
	return false
}
