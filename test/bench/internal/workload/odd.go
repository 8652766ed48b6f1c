package workload

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shoal-cache/shoal/test/bench/internal/contender"
	"github.com/shoal-cache/shoal/test/bench/internal/report"
	"github.com/shoal-cache/shoal/test/internal/origin"
)

// sentPoll is how often the registry's counter is looked at while something waits for it.
const sentPoll = 50 * time.Millisecond

// odd are the workloads in which something is amiss: the registry, or a host.
func odd(s Settings) []Workload {
	even := layout{nodes: s.Nodes, rate: s.Rate}
	of := func(m origin.Manner) layout {
		l := even
		l.manner = m
		return l
	}
	image := split(s.Size, 6, 3, 1)
	timed, alone := []string{contender.Direct{}.Name(), contender.Shoal{}.Name()}, []string{contender.Shoal{}.Name()}
	return []Workload{
		{
			Name: "object-store", Title: "the cold burst from a registry that gives each connection 2 MiB/s",
			Text:   "As object stores do, each after 50 ms.",
			layout: of(origin.ObjectStore), only: timed, run: burst(image, 0),
		},
		{
			Name: "object-store-single", Title: "the same image from that registry on one node of them all",
			Text:   "Pulled by one connection for each layer, it takes as long as the largest one does at 2 MiB/s.",
			layout: of(origin.ObjectStore), only: timed, run: single(image),
		},
		{
			Name: "no-range", Title: "the cold burst from a registry that knows no Range",
			Text:   "It answers 200 with the whole. Shoal alone.",
			layout: of(origin.NoRange), only: alone, run: burst(image, 0),
		},
		{
			Name: "lying", Title: "the cold burst from a registry that lies at first",
			Text: "Each MiB that it sends as a range has a wrong byte the first time, and is right from then on. " +
				"Who pulled wrong bytes begins anew. Shoal alone.",
			layout: of(origin.Lying), only: alone, run: burst(image, 0),
		},
		{
			Name: "killed", Title: "the cold burst in which the coordinator of the largest layer is killed",
			Text: "Its agent is killed when the registry has sent half of the image, and the client on that host, " +
				"which does not count. Shoal alone.",
			layout: even, only: alone, run: killed(image),
		},
	}
}

// killed is a burst amid which the host dies whose agent coordinates the first layer.
func killed(sizes []int64) func(context.Context, *bed) (report.Run, error) {
	return func(ctx context.Context, b *bed) (report.Run, error) {
		image, err := b.publish("v1", 1, sizes)
		if err != nil {
			return report.Run{}, err
		}
		victim, err := b.contender.Coordinator(ctx, image.Manifest.Layers[0].Digest)
		if err != nil {
			return report.Run{}, err
		}
		life, die := context.WithCancel(ctx)
		defer die()
		orders := b.everyone(image, 0)
		orders[victim].life = life
		waiting, stop := context.WithCancel(ctx)
		defer stop()
		waited := make(chan error, 1)
		go func() {
			err := b.awaitSent(waiting, image.Size()/2)
			if err == nil {
				die()
			}
			waited <- err
		}()
		run, err := b.measure(ctx, image.Size(), transfer(image.Size(), b.layout.rate), orders)
		stop()
		if err = errors.Join(err, <-waited); err == nil && run.Killed == "" {
			err = fmt.Errorf("the pull on %s had ended before it was killed", b.hosts[victim].Name)
		}
		return run, err
	}
}

// awaitSent waits until the registry has sent so many bytes of blobs.
func (b *bed) awaitSent(ctx context.Context, n int64) error {
	for {
		stats, err := b.stats(ctx)
		if err != nil || stats.Bytes >= n {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the registry has sent %d bytes, and %d were awaited: %w", stats.Bytes, n, ctx.Err())
		case <-time.After(sentPoll):
		}
	}
}
