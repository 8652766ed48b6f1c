// Command chaos lets everything fail that can, by a plan that a seed brings back, while clients pull through real
// agents and compare every byte. It needs root, iproute2, nftables, e2fsprogs and Linux.
//
//	chaos -seed 7 -rounds 20            twenty rounds
//	chaos -seed 7 -first 12 -rounds 1   one of them alone
//	chaos -soak -for 30m                as long as that, and whether the agents grow
//	chaos -seed 7 -rounds 20 -print     the plan, and no run
//	chaos mallory -peers MULTIADDRS     the hostile peer alone; with -liar the one that only lies
//
// Its packages, in the order in which a run meets them: plan says what happens, rig is the swarm and the hand that
// breaks it, puller the clients, storm carries out the plan and judges.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/test/chaos/internal/mallory"
	"github.com/shoal-cache/shoal/test/chaos/internal/plan"
	"github.com/shoal-cache/shoal/test/chaos/internal/rig"
	"github.com/shoal-cache/shoal/test/chaos/internal/storm"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	cancel()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

type options struct {
	settings      plan.Settings
	first, rounds int
	limit         time.Duration
	binary, out   string
	pin           string
	soak, print   bool
	verbose       bool
}

func parse(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("chaos", flag.ContinueOnError)
	flags.Uint64Var(&o.settings.Seed, "seed", 1, "what the plan is made from")
	flags.IntVar(&o.settings.Nodes, "nodes", 5, "agents")
	flags.IntVar(&o.settings.Pulls, "pulls", 12, "pulls in a round")
	flags.IntVar(&o.settings.Faults, "faults", 3, "what goes wrong in a round at most")
	only := flags.String("only", "", fmt.Sprintf("only these kinds of faults, by commas, of %v", plan.Kinds()))
	flags.IntVar(&o.first, "first", 0, "number of the first round")
	flags.IntVar(&o.rounds, "rounds", 20, "rounds")
	flags.DurationVar(&o.limit, "for", 0, "no round begins after this time; 0: no limit")
	flags.StringVar(&o.binary, "shoal", "bin/shoal-node", "the agent's executable")
	flags.StringVar(&o.pin, "pin", "bin/pin", "what pins an image on each node; empty: nothing is pinned")
	flags.StringVar(&o.out, "out", "bin/chaos-run", "directory for logs and figures")
	flags.BoolVar(&o.soak, "soak", false, "judge whether the agents grow over the run")
	flags.BoolVar(&o.print, "print", false, "print the plan and do nothing")
	flags.BoolVar(&o.verbose, "v", false, "say more")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if o.settings.Nodes < 2 {
		return o, errors.New("-nodes: a swarm has at least 2 agents")
	}
	for name := range strings.SplitSeq(*only, ",") {
		if name == "" {
			continue
		}
		if !slices.Contains(plan.Kinds(), plan.Kind(name)) {
			return o, fmt.Errorf("-only: no fault is called %q; there are %v", name, plan.Kinds())
		}
		o.settings.Only = append(o.settings.Only, plan.Kind(name))
	}
	return o, nil
}

func run(ctx context.Context, args []string, w io.Writer) error {
	if len(args) > 0 && args[0] == "mallory" {
		return runMallory(ctx, args[1:])
	}
	o, err := parse(args)
	if err != nil {
		return err
	}
	if o.print {
		return printPlan(w, o)
	}
	if os.Geteuid() != 0 {
		return errors.New("network namespaces and file systems need root")
	}
	for tool, debian := range map[string]string{"ip": "iproute2", "nft": "nftables", "mkfs.ext4": "e2fsprogs",
		"nsenter": "util-linux"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w (Debian: apt-get install %s)", err, debian)
		}
	}
	if o.binary, err = filepath.Abs(o.binary); err != nil {
		return fmt.Errorf("agent's executable: %w", err)
	}
	dir, err := scratch(o.out)
	if err != nil {
		return err
	}
	level := slog.LevelInfo
	if o.verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
	r, err := rig.New(ctx, dir, o.binary, o.settings.Nodes)
	if err != nil {
		return err
	}
	s := storm.New(r, o.settings, log)
	err = rounds(ctx, o, s)
	err = errors.Join(err, r.Close())
	return errors.Join(err, report(w, o, s))
}

// runMallory is the hostile peer, which a run starts on a host of its own.
func runMallory(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("chaos mallory", flag.ContinueOnError)
	listen := flags.String("listen", "/ip4/127.0.0.1/tcp/0", "multiaddr to listen on")
	to := flags.String("peers", "", "multiaddrs of the agents to attack, by commas")
	blobs := flags.String("digests", "", "blobs to claim, by commas")
	liar := flags.Bool("liar", false, "attack nobody, and answer with lies")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var peers []peer.AddrInfo
	for address := range strings.SplitSeq(*to, ",") {
		p, err := peer.AddrInfoFromString(address)
		if err != nil {
			return fmt.Errorf("-peers: %w", err)
		}
		peers = append(peers, *p)
	}
	var digests []digest.Digest
	for name := range strings.SplitSeq(*blobs, ",") {
		if d, err := digest.Parse(name); err == nil {
			digests = append(digests, d)
		}
	}
	return mallory.Run(ctx, *listen, peers, digests, *liar)
}

// rounds carries out the plan.
func rounds(ctx context.Context, o options, s *storm.Storm) error {
	began := time.Now()
	if o.pin != "" {
		if err := s.Pin(ctx, o.pin); err != nil {
			return err
		}
	}
	before, err := s.Calm(ctx)
	if err != nil {
		return err
	}
	var soak storm.Soak
	for number := o.first; (o.soak || number < o.first+o.rounds) && (o.limit == 0 ||
		time.Since(began) < o.limit); number++ {
		if err := s.Round(ctx, plan.MakeRound(o.settings, number)); err != nil {
			return err
		}
		states, err := s.Calm(ctx)
		if err != nil {
			return err
		}
		s.JudgeMemory(number, states)
		soak.Add(time.Since(began), states)
	}
	s.JudgeRest(ctx, before)
	s.JudgeCopies()
	s.Figures.Soak = soak.Summary()
	if o.soak {
		s.JudgeGrowth(soak)
	}
	return nil
}

func report(w io.Writer, o options, s *storm.Storm) error {
	f := &s.Figures
	slices.Sort(f.Took)
	b, err := json.MarshalIndent(map[string]any{"settings": o.settings, "figures": f, "violations": s.Violations}, "",
		"  ")
	if err != nil {
		return fmt.Errorf("figures: %w", err)
	}
	if err := os.WriteFile(filepath.Join(o.out, "figures.json"), b, 0o644); err != nil {
		return fmt.Errorf("figures: %w", err)
	}
	if err := f.Write(w, o.settings.Seed); err != nil {
		return err
	}
	if len(s.Violations) == 0 {
		return nil
	}
	return fmt.Errorf("%d violations, and again with -seed %d -first %d -rounds %d -nodes %d -pulls %d -faults %d; "+
		"logs are in %s:\n%s",
		len(s.Violations), o.settings.Seed, o.first, f.Rounds, o.settings.Nodes, o.settings.Pulls, o.settings.Faults,
		o.out,
		strings.Join(s.Violations, "\n"))
}

func printPlan(w io.Writer, o options) error {
	for number := o.first; number < o.first+o.rounds; number++ {
		r := plan.MakeRound(o.settings, number)
		if _, err := fmt.Fprintf(w, "round %d: %d pulls of %d bytes, %v\n", number, len(r.Pulls), r.Image.Size(),
			r.Faults); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	}
	return nil
}

// scratch empties the directory for what a run leaves.
func scratch(out string) (string, error) {
	dir, err := filepath.Abs(filepath.Join(out, "nodes"))
	if err != nil {
		return "", fmt.Errorf("directory of the run: %w", err)
	}
	if err := detach(dir); err != nil {
		return "", err
	}
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		return "", fmt.Errorf("directory of the run: %w", err)
	}
	return dir, nil
}

// detach unmounts what a killed run has left mounted.
func detach(dir string) error {
	mounts, err := filepath.Glob(filepath.Join(dir, "node??"))
	if err != nil {
		return fmt.Errorf("look for leftovers: %w", err)
	}
	for _, mount := range append(mounts, dir) {
		if err := syscall.Unmount(mount, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) &&
			!errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("unmount %s: %w", mount, err)
		}
	}
	return nil
}
