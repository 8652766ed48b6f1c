// Package workload holds the situations that the benchmark puts every contender in, and the test bed that measures
// them: each contender gets a fresh network, a fresh registry and nothing cached.
package workload

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-cache/shoal/test/bench/internal/client"
	"github.com/shoal-cache/shoal/test/bench/internal/containerd"
	"github.com/shoal-cache/shoal/test/bench/internal/contender"
	"github.com/shoal-cache/shoal/test/bench/internal/report"
	"github.com/shoal-cache/shoal/test/internal/netns"
	"github.com/shoal-cache/shoal/test/internal/origin"
)

const (
	mib = 1 << 20
	// staggerBy is the distance between starts in the staggered burst, one that lets a cache see the first pull before
	// the second comes.
	staggerBy = 200 * time.Millisecond
	// readSize is the size of a range read: a lazily loaded file system's request.
	readSize = 256 << 10
)

// Settings are what all workloads of a run share.
type Settings struct {
	// Dir is an empty directory for everything a run writes. KeepLogs, where set, is where contenders' logs
	// and metrics are kept.
	Dir, KeepLogs string
	// Profile is how long profiles are taken at the start of each measured pull, into KeepLogs. 0: not at all.
	Profile time.Duration
	// Program is the benchmark's own executable, which has the subcommands client and origin.
	Program string
	// Curl has the clients fetch blobs by curl.
	Curl  bool
	Nodes int
	// Rate is that of each host's link.
	Rate netns.Rate
	// Size is that of the cold burst's image in bytes; other workloads are in proportion.
	Size int64
	// Huge is the size of the one huge blob and Warm that of the warm pull's, in bytes.
	Huge, Warm int64
	// Model is that of a model's large files together, in bytes.
	Model int64
	// Scales are the numbers of nodes over which a burst's time is to stay flat.
	Scales []int
}

func (s Settings) images() string { return filepath.Join(s.Dir, "images") }

// layout is the network that a workload needs.
type layout struct {
	nodes int
	rate  netns.Rate
	// zones is the number of zones over which the hosts are spread, thin the rate of each zone's link. 0: none.
	zones int
	thin  netns.Rate
	// containerd makes the clients real containerds.
	containerd bool
	// hub makes the origin a model hub.
	hub bool
	// manner is what is odd about the registry.
	manner origin.Manner
}

// narrowest is the rate of the narrowest link on the way from the registry to a host.
func (l layout) narrowest() netns.Rate {
	if l.zones > 0 {
		return min(l.rate, l.thin)
	}
	return l.rate
}

// transfer is how long n bytes take over a link.
func transfer(n int64, rate netns.Rate) time.Duration {
	if rate <= 0 {
		return 0
	}
	return time.Duration(float64(n) * 8 / float64(rate) * float64(time.Second))
}

// Workload is a situation to be measured.
type Workload struct {
	Name, Title, Text string

	layout layout
	// only names the contenders that take part; empty: all but those that weigh one thing by itself.
	only []string
	// plain tells that containerd cannot do what the clients do here.
	plain bool
	run   func(context.Context, *bed) (report.Run, error)
}

// patience is how long a client waits for content until its pull counts as failed: several times what the registry's
// link takes to give every node a copy of its own.
func (b *bed) patience(content int64) time.Duration {
	return 30*time.Second + 3*time.Duration(len(b.hosts))*transfer(content, b.layout.narrowest())
}

// Has reports whether a contender takes part.
func (w Workload) Has(c contender.Contender) bool {
	if len(w.only) == 0 {
		switch c := c.(type) {
		case contender.HTTPS:
			return false
		case contender.Shoal:
			return !c.StoreOnly
		}
		return true
	}
	return slices.Contains(w.only, c.Name())
}

// Run measures one contender. What breaks it off is in the result, so that the others still have their turn.
func (w Workload) Run(ctx context.Context, s Settings, c contender.Contender) report.Run {
	if missing := c.Missing(); missing != "" {
		return report.Run{Contender: c.Name(), Skipped: missing}
	}
	if _, bound := c.(contender.RuntimeBound); bound && w.plain {
		return report.Run{Contender: c.Name(), Skipped: "its clients are containerd, which does not do this"}
	}
	if missing := containerd.Missing(); w.layout.containerd && missing != "" {
		return report.Run{Contender: c.Name(), Skipped: missing}
	}
	if s.KeepLogs != "" {
		s.KeepLogs = filepath.Join(s.KeepLogs, w.Name, c.Name())
	}
	run, err := w.measure(ctx, s, c)
	run.Contender = c.Name()
	if err != nil {
		run.Problem = err.Error()
	}
	return run
}

func (w Workload) measure(ctx context.Context, s Settings, c contender.Contender) (run report.Run, err error) {
	b, err := newBed(ctx, s, w.layout, c)
	if err != nil {
		return report.Run{}, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	return w.run(ctx, b)
}

// All are the workloads in the order in which they run.
func All(s Settings) []Workload {
	even := layout{nodes: s.Nodes, rate: s.Rate}
	all := []Workload{
		{
			Name: "cold", Title: fmt.Sprintf("%d nodes pull one cold image of %s at once", s.Nodes, sizeName(s.Size)),
			Text:   "Three layers of 60, 30 and 10 % of the image; nobody has any of it.",
			layout: even, run: burst(split(s.Size, 6, 3, 1), 0),
		},
		{
			Name: "cold-double", Title: fmt.Sprintf("the same with an image of %s", sizeName(doubled(s.Size))),
			Text:   "Three layers of 60, 30 and 10 % of the image.",
			layout: even, run: burst(split(doubled(s.Size), 6, 3, 1), 0),
		},
		{
			Name: "uneven", Title: fmt.Sprintf("the same with layers of %s", layerNames(split(s.Size, 1, 8, 24))),
			Text: "A small layer has few chunks, and shares every link with large ones. " +
				"Its first byte is what shows whether it starves.",
			layout: even, run: burst(split(s.Size, 1, 8, 24), 0),
		},
		{
			Name: "containerd", Title: "the cold burst with real containerd clients",
			Text: "Half the nodes, a containerd on each, its mirrors in hosts.toml; ctr content fetch pulls. " +
				"containerd fetches all layers at once and writes them to its disk.",
			layout: layout{nodes: max(2, s.Nodes/2), rate: s.Rate, containerd: true},
			run:    burst(split(s.Size, 6, 3, 1), 0),
		},
		{
			Name: "staggered", Title: fmt.Sprintf("the nodes start %d ms apart", staggerBy.Milliseconds()),
			Text:   "The image of the cold burst. The ideal counts from the first start to the last node's ideal end.",
			layout: even, run: burst(split(s.Size, 6, 3, 1), staggerBy),
		},
		{
			Name: "rolling", Title: "rolling update: 20 % of the image changed, a quarter of the nodes at a time",
			Text:   "All nodes hold the first image. The second shares four of its five equal layers.",
			layout: even, run: rolling(s.Size),
		},
		{
			Name: "layers", Title: "many small layers",
			Text:   "64 layers of equal size, as large together as the cold burst's image.",
			layout: even, run: burst(equal(s.Size, 64), 0),
		},
		{
			Name: "huge", Title: fmt.Sprintf("one huge blob of %s (model weights)", sizeName(s.Huge)),
			Text:   "One layer. Half the nodes of the cold burst, for the direct pull's sake.",
			layout: layout{nodes: max(2, s.Nodes/2), rate: s.Rate}, run: burst(equal(s.Huge, 1), 0),
		},
		{
			Name: "ranges", Title: "range reads (lazy loading)",
			Text: fmt.Sprintf("Every node reads the same tenth of a cold layer in %d KiB pieces, "+
				"in an order of its own, %s.",
				readSize>>10, "four at a time"),
			layout: even, plain: true, run: ranges(s.Size),
		},
		{
			Name: "zones", Title: "two zones, each behind a link of half a host's rate",
			Text:   "The registry stands in neither. The ideal is the image over a zone's link.",
			layout: layout{nodes: s.Nodes, rate: s.Rate, zones: 2, thin: s.Rate / 2},
			run:    burst(split(s.Size, 6, 3, 1), 0),
		},
		{
			Name: "outage", Title: "the registry is unreachable, half of the nodes hold the image",
			Text:   "The other half pulls it while the registry's link is down.",
			layout: even, run: outage(s.Size),
		},
		{
			Name: "small", Title: "a cold image of 10 MB on all nodes at once", Text: "One layer.",
			layout: even, run: burst(equal(10e6, 1), 0),
		},
		{
			Name: "small-4", Title: "a cold image of 10 MB in four layers on all nodes at once",
			Text:   "Four equal layers.",
			layout: even, run: burst(equal(10e6, 4), 0),
		},
		{
			Name: "small-single", Title: "a cold image of 10 MB on one node of them all",
			Text:   "What a cache costs where it cannot help.",
			layout: even, run: single(equal(10e6, 1)),
		},
		{
			Name: "warm", Title: fmt.Sprintf("one node pulls %s from the one other that holds it, links unshaped",
				sizeName(s.Warm)),
			Text: "Beside plain HTTPS with SHA-256 between the same two hosts, the bytes thrown away (https) or " +
				"written to a file. Agents verify and store " +
				"them, and send them to a client on the host (shoal), whose CPU stands apart, " +
				"or to nobody (shoal-store).",
			layout: layout{nodes: 2}, run: warm(s.Warm),
			only: []string{
				contender.HTTPS{}.Name(), contender.HTTPS{Keep: true}.Name(), contender.Shoal{}.Name(),
				contender.Shoal{StoreOnly: true}.Name(),
			},
		},
	}
	all = append(all, odd(s)...)
	all = append(all, model(s))
	for _, n := range s.Scales {
		all = append(all, Workload{
			Name: fmt.Sprintf("nodes-%d", n), Title: fmt.Sprintf("the cold burst with %d nodes", n),
			Text:   "Shoal alone.",
			layout: layout{nodes: n, rate: s.Rate}, only: []string{contender.Shoal{}.Name()},
			run: burst(split(s.Size, 6, 3, 1), 0),
		})
	}
	return all
}

// doubled is the larger of the two image sizes for which targets are set: 256 MiB beside 132 MiB.
func doubled(size int64) int64 {
	if size == 132*mib {
		return 256 * mib
	}
	return 2 * size
}

func sizeName(n int64) string {
	if n%mib == 0 {
		return fmt.Sprintf("%d MiB", n/mib)
	}
	return fmt.Sprintf("%d MB", n/1e6)
}

func layerNames(sizes []int64) string {
	var names []string
	for _, n := range sizes {
		names = append(names, sizeName(n))
	}
	return strings.Join(names, ", ")
}

// split cuts size into parts in the given proportion.
func split(size int64, parts ...int64) []int64 {
	total := int64(0)
	for _, p := range parts {
		total += p
	}
	sizes := make([]int64, len(parts))
	left := size
	for i, p := range parts[1:] {
		sizes[i+1] = size * p / total
		left -= sizes[i+1]
	}
	sizes[0] = left
	return sizes
}

// equal cuts size into n equal parts.
func equal(size int64, n int) []int64 {
	parts := make([]int64, n)
	for i := range parts {
		parts[i] = 1
	}
	return split(size, parts...)
}

// publish makes an image whose layers are seeded with the numbers from seed on.
func (b *bed) publish(tag string, seed uint64, sizes []int64) (origin.Image, error) {
	layers := make([]origin.Layer, len(sizes))
	for i, size := range sizes {
		layers[i] = origin.Layer{Seed: seed + uint64(i), Size: size}
	}
	return origin.Write(b.Settings.images(), "bench/image", tag, layers)
}

// everyone orders an image for all hosts, each the given time after the one before.
func (b *bed) everyone(image origin.Image, apart time.Duration) []order {
	orders := make([]order, len(b.hosts))
	for i := range orders {
		orders[i] = order{host: i, image: image, after: time.Duration(i) * apart}
	}
	return orders
}

func burst(sizes []int64, apart time.Duration) func(context.Context, *bed) (report.Run, error) {
	return func(ctx context.Context, b *bed) (report.Run, error) {
		image, err := b.publish("v1", 1, sizes)
		if err != nil {
			return report.Run{}, err
		}
		ideal := transfer(image.Size(), b.layout.narrowest()) + time.Duration(len(b.hosts)-1)*apart
		return b.measure(ctx, image.Size(), ideal, b.everyone(image, apart))
	}
}

func single(sizes []int64) func(context.Context, *bed) (report.Run, error) {
	return func(ctx context.Context, b *bed) (report.Run, error) {
		image, err := b.publish("v1", 1, sizes)
		if err != nil {
			return report.Run{}, err
		}
		return b.measure(ctx, image.Size(), transfer(image.Size(), b.layout.rate),
			[]order{{host: len(b.hosts) - 1, image: image}})
	}
}

func rolling(size int64) func(context.Context, *bed) (report.Run, error) {
	return func(ctx context.Context, b *bed) (report.Run, error) {
		const layers = 5
		sizes := slices.Repeat([]int64{size / layers}, layers) // equal to the byte, so that shifted seeds share layers
		first, err := b.publish("v1", 1, sizes)
		if err != nil {
			return report.Run{}, err
		}
		second, err := b.publish("v2", 2, sizes) // shares the layers seeded 2 to 5, and adds the one seeded 6
		if err != nil {
			return report.Run{}, err
		}
		if err := b.prepare(ctx, b.everyone(first, 0)...); err != nil {
			return report.Run{}, err
		}
		held := blobs(first)
		batch := max(1, len(b.hosts)/4)
		var waves [][]order
		for from := 0; from < len(b.hosts); from += batch {
			var wave []order
			for host := from; host < min(from+batch, len(b.hosts)); host++ {
				wave = append(wave, order{host: host, image: second, skip: held})
			}
			waves = append(waves, wave)
		}
		changed := second.Manifest.Config.Size + second.Manifest.Layers[layers-1].Size
		return b.measure(ctx, changed, time.Duration(len(waves))*transfer(changed, b.layout.rate), waves...)
	}
}

// blobs are the digests of an image's config and layers.
func blobs(image origin.Image) []digest.Digest {
	var digests []digest.Digest
	for _, blob := range append([]v1.Descriptor{image.Manifest.Config}, image.Manifest.Layers...) {
		digests = append(digests, blob.Digest)
	}
	return digests
}

func ranges(size int64) func(context.Context, *bed) (report.Run, error) {
	return func(ctx context.Context, b *bed) (report.Run, error) {
		image, err := b.publish("v1", 1, equal(size, 1))
		if err != nil {
			return report.Run{}, err
		}
		pieces := int(size / readSize)
		random := rand.New(rand.NewPCG(1, 2)) // the same reads for every contender
		chosen := random.Perm(pieces)[:max(1, pieces/10)]
		orders := b.everyone(image, 0)
		for i := range orders {
			random.Shuffle(len(chosen), func(i, j int) { chosen[i], chosen[j] = chosen[j], chosen[i] })
			for _, piece := range chosen {
				orders[i].reads = append(orders[i].reads, client.Range{
					Digest: image.Manifest.Layers[0].Digest, Offset: int64(piece) * readSize, Length: readSize,
				})
			}
		}
		content := int64(len(chosen)) * readSize
		return b.measure(ctx, content, transfer(content, b.layout.rate), orders)
	}
}

func outage(size int64) func(context.Context, *bed) (report.Run, error) {
	return func(ctx context.Context, b *bed) (report.Run, error) {
		image, err := b.publish("v1", 1, split(size, 6, 3, 1))
		if err != nil {
			return report.Run{}, err
		}
		orders := b.everyone(image, 0)
		half := len(orders) / 2
		if err := b.prepare(ctx, orders[:half]...); err != nil {
			return report.Run{}, err
		}
		if err := b.network.SetLink(ctx, b.registry, false); err != nil {
			return report.Run{}, err
		}
		return b.measure(ctx, image.Size(), transfer(image.Size(), b.layout.rate), orders[half:])
	}
}

func warm(size int64) func(context.Context, *bed) (report.Run, error) {
	return func(ctx context.Context, b *bed) (report.Run, error) {
		image, err := b.publish("v1", 1, equal(size, 1))
		if err != nil {
			return report.Run{}, err
		}
		if err := b.prepare(ctx, order{host: 0, image: image}); err != nil {
			return report.Run{}, err
		}
		return b.measure(ctx, image.Size(), 0, []order{{host: 1, image: image}})
	}
}
