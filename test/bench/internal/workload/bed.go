package workload

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-cache/shoal/test/bench/internal/client"
	"github.com/shoal-cache/shoal/test/bench/internal/containerd"
	"github.com/shoal-cache/shoal/test/bench/internal/contender"
	"github.com/shoal-cache/shoal/test/bench/internal/report"
	"github.com/shoal-cache/shoal/test/internal/netns"
	"github.com/shoal-cache/shoal/test/internal/origin"
	"github.com/shoal-cache/shoal/test/internal/proc"
)

const (
	// headStart is the time that clients have to come up before a common start.
	headStart = time.Second
	// settle is how long after the last pull the counters are read, so that what a contender still does counts.
	settle         = 500 * time.Millisecond
	originControl  = "127.0.0.1:5001"
	cpuSampleEvery = 250 * time.Millisecond
	// restarts is how often a pull is begun anew that brought wrong bytes: the kubelet does it without end.
	restarts = 3
)

// bed is one contender on a fresh network, ready to be pulled through.
type bed struct {
	Settings
	layout    layout
	network   *netns.Network
	hosts     []*netns.Host
	registry  *netns.Host
	origin    *proc.Process
	runtimes  []*containerd.Daemon
	contender *contender.Running
	site      contender.Site
}

// order is one pull that a workload asks for.
type order struct {
	host  int
	image origin.Image
	// after is how long after the common start it begins.
	after time.Duration
	skip  []digest.Digest
	reads []client.Range
	// model, where set, is what is downloaded in place of an image.
	model string
	// life, where set, is the host's: with it the agent is killed, and the client, whose pull is nobody's then.
	life context.Context
}

// newBed makes the network, and starts registry and contender.
func newBed(ctx context.Context, s Settings, layout layout, c contender.Contender) (b *bed, err error) {
	b = &bed{Settings: s, layout: layout}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if b.network, err = netns.New(ctx); err != nil {
		return b, err
	}
	if b.registry, err = b.network.AddHost(ctx, "origin", "", layout.rate); err != nil {
		return b, err
	}
	for i := range layout.zones {
		if err := b.network.AddZone(ctx, zoneName(i), layout.thin); err != nil {
			return b, err
		}
	}
	for i := range layout.nodes {
		zone := ""
		if layout.zones > 0 {
			zone = zoneName(i % layout.zones)
		}
		host, err := b.network.AddHost(ctx, fmt.Sprintf("h%d", i), zone, layout.rate)
		if err != nil {
			return b, err
		}
		b.hosts = append(b.hosts, host)
	}
	if err := b.startOrigin(ctx); err != nil {
		return b, err
	}
	dir := filepath.Join(s.Dir, "contender")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return b, fmt.Errorf("contender's folder: %w", err)
	}
	b.site = contender.Site{
		Network: b.network, Hosts: b.hosts, Origin: b.registry, Rate: layout.rate, Dir: dir, Images: s.images(),
		Program: s.Program, Hub: layout.hub,
	}
	if err := os.MkdirAll(b.site.Images, 0o755); err != nil {
		return b, fmt.Errorf("image folder: %w", err)
	}
	if _, bound := c.(contender.RuntimeBound); bound || layout.containerd {
		if err := b.startRuntimes(ctx); err != nil {
			return b, err
		}
	}
	b.contender, err = c.Start(ctx, b.site)
	return b, err
}

func (b *bed) startRuntimes(ctx context.Context) error {
	for _, host := range b.hosts {
		daemon, err := containerd.Start(ctx, host, filepath.Join(b.Dir, "containerd", host.Name))
		if err != nil {
			return err
		}
		b.runtimes = append(b.runtimes, daemon)
	}
	b.site.Runtimes = b.runtimes
	return nil
}

func zoneName(i int) string { return "zone" + string(rune('a'+i)) }

func (b *bed) startOrigin(ctx context.Context) error {
	args := []string{"origin", "-dir", b.Settings.images()}
	if b.layout.hub {
		args = []string{"hub", "-model", modelName, "-size", fmt.Sprint(b.Model)}
	}
	if b.layout.manner != origin.Plain {
		args = append(args, "-manner", string(b.layout.manner))
	}
	args = append(args, "-listen", fmt.Sprintf("%s:%d", b.registry.Addr, contender.OriginPort), "-control",
		originControl)
	cmd := b.registry.Command(ctx, b.Program, args...)
	process, err := proc.Start(cmd, filepath.Join(b.Dir, "origin.log"))
	if err != nil {
		return err
	}
	b.origin = process
	return b.await(ctx, func() error { _, err := b.stats(ctx); return err }, process)
}

// await tries until attempt succeeds, p ends, or a minute has passed: a hub takes the digests of its files first.
func (b *bed) await(ctx context.Context, attempt func() error, p *proc.Process) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := attempt()
		if err == nil {
			return nil
		}
		if ended := p.Exited(); ended != nil {
			return ended
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("registry did not come up: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stats reads the registry's counters.
func (b *bed) stats(ctx context.Context) (origin.Stats, error) {
	web := http.Client{Transport: &http.Transport{DialContext: b.registry.DialContext, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+originControl, nil)
	if err != nil {
		return origin.Stats{}, fmt.Errorf("registry's counters: %w", err)
	}
	response, err := web.Do(request)
	if err != nil {
		return origin.Stats{}, fmt.Errorf("registry's counters: %w", err)
	}
	defer response.Body.Close()
	var s origin.Stats
	if err := json.NewDecoder(response.Body).Decode(&s); err != nil {
		return origin.Stats{}, fmt.Errorf("registry's counters: %w", err)
	}
	return s, nil
}

// close ends everything that newBed started and removes what the contender has stored.
func (b *bed) close() error {
	errs := []error{b.keepEvidence()}
	if b.contender != nil {
		b.contender.Stop()
	}
	for _, daemon := range b.runtimes {
		daemon.Process.Stop()
	}
	if b.origin != nil {
		b.origin.Kill()
	}
	if b.network != nil {
		errs = append(errs, b.network.Close())
	}
	for _, dir := range []string{"contender", "containerd"} {
		errs = append(errs, os.RemoveAll(filepath.Join(b.Dir, dir)))
	}
	return errors.Join(errs...)
}

// pulled is what came of an order.
type pulled struct {
	client.Result
	host int
	// common is the start that the whole wave counts from.
	common time.Time
	cpu    time.Duration
	// died tells that the host was killed before the pull had ended.
	died bool
}

// pull runs orders side by side, one client process for each, and returns when all have ended.
func (b *bed) pull(ctx context.Context, orders ...order) ([]pulled, error) {
	common := time.Now().Add(headStart)
	results := make([]pulled, len(orders))
	group, ctx := errgroup.WithContext(ctx)
	for i, o := range orders {
		group.Go(func() error {
			r, err := b.runClient(ctx, o, common)
			results[i] = r
			return err
		})
	}
	return results, group.Wait()
}

func (b *bed) runClient(ctx context.Context, o order, common time.Time) (pulled, error) {
	spec := client.Spec{
		Endpoints: []string{b.site.OriginURL()}, Namespace: contender.Registry,
		Repository: o.image.Repository, Tag: o.image.Tag, Start: common.Add(o.after),
		Timeout: b.patience(o.image.Size()),
		Skip:    o.skip, Ranges: o.reads, Truth: b.Settings.images(),
		Unverified: b.contender.Verifies && b.layout.rate == 0, CAFile: b.contender.CAFile, Keep: b.contender.Keep,
		Curl: b.Curl,
	}
	if b.layout.manner == origin.Lying {
		spec.Again = restarts
	}
	if b.contender.StoreOnly {
		for _, layer := range o.image.Manifest.Layers {
			spec.Ranges = append(spec.Ranges, client.Range{Digest: layer.Digest, Offset: layer.Size - 1, Length: 1})
		}
	}
	if len(b.contender.Mirrors) > 0 {
		spec.Endpoints = append([]string{b.contender.Mirrors[o.host]}, spec.Endpoints...)
	}
	if o.model != "" {
		spec.Model, spec.Timeout = o.model, b.patience(b.Model)
		if len(b.contender.Hubs) > 0 {
			spec.Endpoints = []string{b.contender.Hubs[o.host]}
		}
	}
	if len(b.runtimes) > 0 {
		result, cpu, err := b.runtimes[o.host].Pull(ctx, spec)
		return pulled{Result: result, host: o.host, common: common, cpu: cpu}, err
	}
	input, err := json.Marshal(spec)
	if err != nil {
		return pulled{}, fmt.Errorf("order for %s: %w", b.hosts[o.host].Name, err)
	}
	life, die := context.WithCancel(ctx)
	defer die()
	if o.life != nil {
		defer context.AfterFunc(o.life, die)()
	}
	var output, problem bytes.Buffer
	cmd := b.hosts[o.host].Command(life, b.Program, "client")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &output, &problem
	cmd.Cancel = func() error {
		if o.life != nil {
			// Stopped, the client tells the agent nothing before that dies, and does not go to the registry after.
			_ = cmd.Process.Signal(syscall.SIGSTOP) // it may have ended
			b.contender.Processes[o.host].Kill()
		}
		return cmd.Process.Kill()
	}
	if err := cmd.Run(); err != nil {
		if o.life != nil && o.life.Err() != nil && ctx.Err() == nil {
			return pulled{host: o.host, common: common, died: true}, nil
		}
		return pulled{}, fmt.Errorf("client on %s: %w: %s", b.hosts[o.host].Name, err, bytes.TrimSpace(problem.Bytes()))
	}
	p := pulled{host: o.host, common: common, cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}
	if err := json.Unmarshal(output.Bytes(), &p.Result); err != nil {
		return pulled{}, fmt.Errorf("client on %s answered: %w", b.hosts[o.host].Name, err)
	}
	return p, nil
}

// prepare pulls without measuring, and fails where a pull does.
func (b *bed) prepare(ctx context.Context, orders ...order) error {
	results, err := b.pull(ctx, orders...)
	if err != nil {
		return err
	}
	for _, r := range results {
		if r.Err != "" {
			return fmt.Errorf("preparing pull on %s: %s", b.hosts[r.host].Name, r.Err)
		}
	}
	return nil
}

// snapshot is a reading of every counter.
type snapshot struct {
	stats       origin.Stats
	traffic     map[string]netns.Traffic
	usage       proc.Usage
	originUsage proc.Usage
}

func (b *bed) snapshot(ctx context.Context) (s snapshot, err error) {
	if s.stats, err = b.stats(ctx); err != nil {
		return s, err
	}
	if s.traffic, err = b.network.Traffic(ctx); err != nil {
		return s, err
	}
	if s.usage, err = b.contender.Usage(); err != nil {
		return s, err
	}
	s.originUsage, err = b.origin.Usage()
	return s, err
}

// measure runs waves of pulls and takes every figure over them. Content is what each node has to get, ideal how long
// that takes at best.
func (b *bed) measure(ctx context.Context, content int64, ideal time.Duration,
	waves ...[]order) (run report.Run, err error) {
	// What the nodes may keep, and half as much again for the processes.
	memory, err := proc.HoldMemory(int64(len(b.hosts)) * content * 3 / 2)
	if err != nil {
		return report.Run{}, err
	}
	defer func() { err = errors.Join(err, memory.Close()) }()
	before, err := b.snapshot(ctx)
	if err != nil {
		return report.Run{}, err
	}
	stop, err := proc.Watch(ctx, cpuSampleEvery)
	if err != nil {
		return report.Run{}, err
	}
	profiled := b.profile(ctx)
	began := time.Now()
	var results []pulled
	var offset time.Duration // the time that earlier waves took, without the head starts between them
	var shifts []time.Duration
	for _, wave := range waves {
		rs, err := b.pull(ctx, wave...)
		if err != nil {
			stop()
			return report.Run{}, err
		}
		end := time.Duration(0)
		for _, r := range rs {
			if !r.died {
				end = max(end, r.Done.Sub(r.common))
			}
			shifts = append(shifts, offset)
		}
		offset += end
		results = append(results, rs...)
	}
	busy, saturated := stop()
	span := time.Since(began)
	select {
	case <-time.After(settle):
	case <-ctx.Done():
		return report.Run{}, context.Cause(ctx)
	}
	after, err := b.snapshot(ctx)
	if err != nil {
		return report.Run{}, err
	}
	if err := profiled(); err != nil {
		return report.Run{}, err
	}
	run = report.Run{
		Nodes: len(b.hosts), Content: content, Ideal: report.ToSeconds(ideal), Busy: busy, Saturated: saturated,
		Span: report.ToSeconds(span), CPUs: runtime.NumCPU(),
	}
	b.fillTimes(&run, results, shifts)
	b.fillCosts(&run, before, after)
	return run, nil
}

func (b *bed) fillTimes(run *report.Run, results []pulled, shifts []time.Duration) {
	var done, first, reads []report.Seconds
	for i, r := range results {
		if r.died {
			run.Killed = b.hosts[r.host].Name
			continue
		}
		run.Pulls++
		run.Fallbacks += r.Fallbacks
		run.Resumed += r.Resumed
		run.Again += r.Again
		run.ClientCPU += report.ToSeconds(r.cpu)
		began := shifts[i] + r.Started.Sub(r.common)
		points := [][2]float64{{began.Seconds(), 0}}
		for _, p := range r.Curve {
			points = append(points, [2]float64{(began + p.At).Seconds(), float64(p.Bytes)})
		}
		run.Curves = append(run.Curves, report.NewCurve(b.hosts[r.host].Name, points))
		if r.Err != "" {
			run.Failed++
			if !slices.Contains(run.Failures, r.Err) {
				run.Failures = append(run.Failures, r.Err)
			}
			continue
		}
		done = append(done, report.ToSeconds(shifts[i]+r.Done.Sub(r.common)))
		first = append(first, report.ToSeconds(r.FirstByte))
		for _, blob := range r.Blobs {
			run.Wait(blob.Size, report.ToSeconds(blob.FirstByte))
		}
		for _, l := range r.Latencies {
			reads = append(reads, report.ToSeconds(l))
		}
	}
	if len(done) == 0 {
		return
	}
	run.First, run.Median, run.Last = slices.Min(done), report.Median(done), slices.Max(done)
	run.FirstByte, run.SlowestFirstByte = report.Median(first), slices.Max(first)
	run.ReadMedian = report.Median(reads)
}

func (b *bed) fillCosts(run *report.Run, before, after snapshot) {
	served := after.stats.Sub(before.stats)
	// Each count may only be too high. The registry counts what it hands to the kernel, also what stays there of an
	// answer that is cut short. The link counts packets, also those that are sent anew.
	left := after.traffic[b.registry.Name].Sub(before.traffic[b.registry.Name]).Sent
	run.RegistryBytes, run.RegistryRequests = min(served.Bytes, left), served.Requests
	for _, h := range b.hosts {
		moved := after.traffic[h.Name].Sub(before.traffic[h.Name])
		run.Busiest = max(run.Busiest, moved.Sent)
		if h.Zone != "" {
			run.ThinLink = max(run.ThinLink, after.traffic[h.Zone].Sub(before.traffic[h.Zone]).Received)
		}
	}
	run.ContenderCPU = report.ToSeconds(after.usage.CPU - before.usage.CPU)
	run.RegistryCPU = report.ToSeconds(after.originUsage.CPU - before.originUsage.CPU)
	run.PeakMemory = after.usage.PeakRSS
}
