// Command bench measures Shoal beside what one would use instead: hosts as network namespaces with shaped links, a
// registry that counts, real processes, and every figure a ratio from the same run. It needs root, iproute2 and Linux.
//
// Its packages, in the order in which a run meets them: workload says what happens and measures it, netns makes the
// network, origin is the registry, contender brings up what is compared, client pulls, proc reads what was used,
// and report makes figures and plots of it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/shoal-cache/shoal/test/bench/internal/client"
	"github.com/shoal-cache/shoal/test/bench/internal/contender"
	"github.com/shoal-cache/shoal/test/bench/internal/report"
	"github.com/shoal-cache/shoal/test/bench/internal/workload"
	"github.com/shoal-cache/shoal/test/hubtest"
	"github.com/shoal-cache/shoal/test/internal/netns"
	"github.com/shoal-cache/shoal/test/internal/origin"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := dispatch(ctx, os.Args[1:])
	cancel()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// dispatch runs the benchmark, or one of the processes that it starts on its hosts from its own executable.
func dispatch(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "client":
			return runClient(ctx)
		case "origin":
			return runOrigin(ctx, args[1:])
		case "hub":
			return runHub(ctx, args[1:])
		case "file":
			return runFile(ctx, args[1:])
		}
	}
	return runBenchmark(ctx, args)
}

// runClient reads one pull from standard input and writes how it went to standard output.
func runClient(ctx context.Context) error {
	var spec client.Spec
	if err := json.NewDecoder(os.Stdin).Decode(&spec); err != nil {
		return fmt.Errorf("read the pull to make: %w", err)
	}
	result, err := client.Run(ctx, spec)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		return fmt.Errorf("write how the pull went: %w", err)
	}
	return nil
}

func runOrigin(ctx context.Context, args []string) error {
	var o origin.Options
	flags := flag.NewFlagSet("bench origin", flag.ContinueOnError)
	flags.StringVar(&o.Dir, "dir", "", "directory of images")
	flags.StringVar(&o.Listen, "listen", "", "address of the registry")
	flags.StringVar(&o.Control, "control", "", "address of its counters")
	flags.StringVar(&o.CertFile, "cert", "", "certificate, for HTTPS")
	flags.StringVar(&o.KeyFile, "key", "", "its key")
	flags.StringVar((*string)(&o.Manner), "manner", "", "what is odd about the registry")
	if err := flags.Parse(args); err != nil {
		return err
	}
	return origin.Run(ctx, o)
}

// runHub is the origin of a model: a hub and its storage, with counters as a registry has them.
func runHub(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench hub", flag.ContinueOnError)
	listen := flags.String("listen", "", "address of the hub")
	control := flags.String("control", "", "address of its counters")
	model := flags.String("model", "", "name of the model")
	size := flags.Int64("size", 0, "bytes of its large files")
	if err := flags.Parse(args); err != nil {
		return err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", *listen)
	if err != nil {
		return err
	}
	hub := hubtest.NewOn(l)
	defer hub.Close()
	hub.Model(*model, *size)
	return serve(ctx, *control, func(w http.ResponseWriter, _ *http.Request) {
		requests, bytes := hub.Count()
		_ = json.NewEncoder(w).Encode(origin.Stats{Bytes: bytes, Requests: int64(requests)}) // else who asked has gone
	})
}

// runFile serves one file, as plainly as Go can.
func runFile(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench file", flag.ContinueOnError)
	listen := flags.String("listen", "", "address")
	file := flags.String("file", "", "the file")
	if err := flags.Parse(args); err != nil {
		return err
	}
	return serve(ctx, *listen, func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, *file) })
}

func serve(ctx context.Context, listen string, handler http.HandlerFunc) error {
	server := &http.Server{Addr: listen, Handler: handler, ReadHeaderTimeout: time.Minute}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.ListenAndServe(); ctx.Err() == nil {
		return fmt.Errorf("serve at %s: %w", listen, err)
	}
	return nil
}

// options are the command line.
type options struct {
	settings   workload.Settings
	workloads  []string
	peers      []string
	out        string
	strict     bool
	contenders []contender.Contender
}

func parse(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	quick := flags.Bool("quick", false, "small sizes and few nodes, for under ten minutes in all")
	nodes := flags.Int("nodes", 0, "hosts that pull (8; quick: 4)")
	size := flags.Int64("size", 0, "size of the cold burst's image in MiB (132; quick: 32)")
	huge := flags.Int64("huge", 0, "size of the huge blob in MiB (512; quick: 64)")
	warm := flags.Int64("warm", 0, "size of the warm pull's blob in MiB (1024; quick: 256)")
	model := flags.Int64("model", 0, "size of the model's large files in MiB (600; quick: 64)")
	rate := flags.Float64("rate", 100, "rate of every host's link in Mbit/s each way")
	scales := flags.String("scales", "", "numbers of nodes to compare, by commas (2,4,8,16; quick: 2,4,8)")
	workloads := flags.String("workload", "", "only these workloads, by commas; a trailing * stands for any ending ("+
		strings.Join(workloadNames(workload.Settings{}), ", ")+", and nodes-N for each N of -scales)")
	peers := flags.String("peers", "", "only these contenders, by commas (https, https-kept, direct, pull-through, "+
		"shoal, shoal-store, spegel, dragonfly, kraken); a trailing * as above")
	shoal := flags.String("shoal", "bin/shoal-node", "the Shoal agent's executable")
	registry := flags.String("registry", "docker-registry", "the distribution registry's executable")
	spegel := flags.String("spegel", "", "Spegel's executable")
	dragonfly := flags.String("dragonfly", "", "program that runs Dragonfly on one host; see the README")
	kraken := flags.String("kraken", "", "program that runs Kraken on one host; see the README")
	flags.StringVar(&o.out, "out", "bench-results", "directory for report.json, report.html and report.txt")
	flags.StringVar(&o.settings.KeepLogs, "logs", "", "directory to keep the contenders' logs and metrics in")
	flags.DurationVar(&o.settings.Profile, "profile", 0,
		"length of the profiles (CPU, allocation, block, mutex) of first and last agent to keep in -logs")
	flags.BoolVar(&o.settings.Curl, "curl", false, "clients fetch blobs by curl, and not by their own hand")
	flags.BoolVar(&o.strict, "strict", false, "fail when a target is missed")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	pick := func(given, full, small int64) int64 {
		switch {
		case given > 0:
			return given
		case *quick:
			return small
		default:
			return full
		}
	}
	s := &o.settings
	s.Nodes = int(pick(int64(*nodes), 8, 4))
	s.Size = pick(*size, 132, 32) << 20
	s.Huge = pick(*huge, 512, 64) << 20
	s.Warm = pick(*warm, 1024, 256) << 20
	s.Model = pick(*model, 600, 64) << 20
	s.Rate = netns.Rate(*rate) * netns.Mbit
	if *scales == "" {
		*scales = "2,4,8,16"
		if *quick {
			*scales = "2,4,8"
		}
	}
	for field := range strings.SplitSeq(*scales, ",") {
		n, err := strconv.Atoi(field)
		if err != nil || n < 1 {
			return o, fmt.Errorf("-scales: %q is no number of nodes", field)
		}
		s.Scales = append(s.Scales, n)
	}
	if s.Nodes < 2 || s.Rate <= 0 {
		return o, errors.New("at least 2 nodes and a rate above 0 are needed")
	}
	o.workloads, o.peers = list(*workloads), list(*peers)
	o.contenders = []contender.Contender{
		contender.HTTPS{}, contender.HTTPS{Keep: true}, contender.Direct{}, contender.PullThrough{Binary: *registry},
		contender.Shoal{Binary: absolute(*shoal)},
		contender.Shoal{Binary: absolute(*shoal), StoreOnly: true},
		contender.Spegel{Binary: absolute(*spegel)}, contender.Launched{Peer: "dragonfly",
			Program: absolute(*dragonfly)},
		contender.Launched{Peer: "kraken", Program: absolute(*kraken)},
	}
	return o, o.check()
}

// check fails where something is named that there is not, or nothing would be measured.
func (o options) check() error {
	var contenders []string
	for _, c := range o.contenders {
		contenders = append(contenders, c.Name())
	}
	if err := errors.Join(exist("-workload", o.workloads, workloadNames(o.settings)),
		exist("-peers", o.peers, contenders)); err != nil {
		return err
	}
	for _, w := range workload.All(o.settings) {
		if chosen(w.Name, o.workloads) && slices.ContainsFunc(o.contenders, func(c contender.Contender) bool {
			return w.Has(c) && chosen(c.Name(), o.peers)
		}) {
			return nil
		}
	}
	return errors.New("none of these workloads is for any of these contenders")
}

// exist fails for the first pattern that chooses none of the names.
func exist(flagName string, patterns, names []string) error {
	for _, p := range patterns {
		if !slices.ContainsFunc(names, func(name string) bool { return chosen(name, []string{p}) }) {
			return fmt.Errorf("%s: there is no %q; those that there are: %s", flagName, p, strings.Join(names, ", "))
		}
	}
	return nil
}

func workloadNames(s workload.Settings) (names []string) {
	for _, w := range workload.All(s) {
		names = append(names, w.Name)
	}
	return names
}

func list(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

// absolute makes a path with a slash in it independent of the working directory; a bare name is looked up in PATH.
func absolute(path string) string {
	if full, err := filepath.Abs(path); err == nil && strings.Contains(path, "/") {
		return full
	}
	return path
}

// chosen reports whether a name is among patterns; no pattern chooses all.
func chosen(name string, patterns []string) bool {
	return len(patterns) == 0 || slices.ContainsFunc(patterns, func(pattern string) bool {
		start, open := strings.CutSuffix(pattern, "*")
		return pattern == name || open && strings.HasPrefix(name, start)
	})
}

func runBenchmark(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root")
	}
	for _, tool := range []string{"ip", "tc"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w (Debian: apt-get install iproute2)", err)
		}
	}
	if o.settings.Program, err = os.Executable(); err != nil {
		return fmt.Errorf("own executable: %w", err)
	}
	if o.settings.Dir, err = scratch(); err != nil {
		return err
	}
	defer os.RemoveAll(o.settings.Dir)

	r := &report.Report{Command: strings.Join(append([]string{"bench"}, args...), " "), Machine: machine(),
		Began: time.Now()}
	for _, w := range workload.All(o.settings) {
		if chosen(w.Name, o.workloads) && ctx.Err() == nil {
			r.Workloads = append(r.Workloads, measure(ctx, o, w))
		}
	}
	r.Took = report.ToSeconds(time.Since(r.Began))
	r.Judge()
	if err := errors.Join(r.WriteTable(os.Stdout), save(r, o.out)); err != nil {
		return err
	}
	return verdict(ctx, r, o.strict)
}

// measure gives every contender its turn at a workload.
func measure(ctx context.Context, o options, w workload.Workload) report.Workload {
	measured := report.Workload{Name: w.Name, Title: w.Title, Text: w.Text}
	for _, c := range o.contenders {
		if !w.Has(c) || !chosen(c.Name(), o.peers) || ctx.Err() != nil {
			continue
		}
		slog.Info("measuring", "workload", w.Name, "contender", c.Name())
		run := w.Run(ctx, o.settings, c)
		logRun(w.Name, run)
		measured.Runs = append(measured.Runs, run)
	}
	return measured
}

func logRun(name string, run report.Run) {
	switch {
	case run.Skipped != "":
		slog.Info("skipped", "workload", name, "contender", run.Contender, "why", run.Skipped)
	case run.Problem != "":
		slog.Error("broke off", "workload", name, "contender", run.Contender, "cause", run.Problem)
	default:
		slog.Info("measured", "workload", name, "contender", run.Contender, "last_s", float64(run.Last),
			"over_ideal", run.OverIdeal(), "registry_copies", run.RegistryCopies(), "failed", run.Failed)
	}
}

// verdict is an error when the run is not to be taken as good.
func verdict(ctx context.Context, r *report.Report, strict bool) error {
	if ctx.Err() != nil {
		return fmt.Errorf("run was broken off: %w", context.Cause(ctx))
	}
	for _, w := range r.Workloads {
		for _, run := range w.Runs {
			if run.Problem != "" {
				return fmt.Errorf("%s with %s broke off: %s", w.Name, run.Contender, run.Problem)
			}
		}
	}
	for _, t := range r.Targets {
		if strict && !t.Met() {
			return fmt.Errorf("%s: %s is %.2f; see the table", t.Workload, t.Name, t.Got)
		}
	}
	return nil
}

func save(r *report.Report, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("report's directory: %w", err)
	}
	for name, write := range map[string]func(*os.File) error{
		"report.json": func(f *os.File) error { return r.WriteJSON(f) },
		"report.html": func(f *os.File) error { return r.WriteHTML(f) },
		"report.txt":  func(f *os.File) error { return r.WriteTable(f) },
	} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return fmt.Errorf("report: %w", err)
		}
		if err := errors.Join(write(f), f.Close()); err != nil {
			return err
		}
	}
	slog.Info("report written", "dir", dir)
	return nil
}

const scratchPrefix = "shoal-bench-"

// scratch makes the run's own directory, and removes those that killed runs have left behind.
func scratch() (string, error) {
	old, err := filepath.Glob(filepath.Join(os.TempDir(), scratchPrefix+"*"))
	if err != nil {
		return "", fmt.Errorf("look for leftovers: %w", err)
	}
	own := filepath.Join(os.TempDir(), scratchPrefix+strconv.Itoa(os.Getpid()))
	for _, dir := range old {
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(dir), scratchPrefix))
		if err != nil || dir != own && syscall.Kill(pid, 0) == nil {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			return "", fmt.Errorf("remove leftovers of a run: %w", err)
		}
	}
	if err := os.Mkdir(own, 0o755); err != nil {
		return "", fmt.Errorf("run's directory: %w", err)
	}
	return own, nil
}

// machine describes what the benchmark runs on.
func machine() string {
	kernel := "unknown kernel"
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		kernel = "Linux " + strings.TrimSpace(string(b))
	}
	return fmt.Sprintf("%d CPUs, %s, %s, %s", runtime.NumCPU(), runtime.GOARCH, kernel, runtime.Version())
}
