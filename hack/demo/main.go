// Command demo shows on one machine what Shoal is for: it starts a registry and several agents as separate processes,
// pulls one image through all agents at once, and prints who sent what to whom. It fails when a digest is wrong or when
// a promise does not hold: the registry sends at most 1.05 images in all, no agent more than 1.6.
//
// Its files in the order of a run: image.go makes an image of random bytes, registry.go serves and counts them,
// agent.go runs the agents, pull.go and ctr.go the clients, watch.go shows progress, report.go the result. The registry
// and the clients are processes too, of this same program.
//
// With --model it is a model of a hub in place of an image: model.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

type options struct {
	agents  int
	size    int64
	stagger time.Duration
	killOne bool
	ctr     string
	node    string
	keep    bool
	maxSent float64
	timeout time.Duration
	model   bool
	hub     string // base URL; "": there is none
	room    int64  // bytes that each agent may keep of models; 0: as many as it gets
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := dispatch(ctx, os.Args[1:])
	if err != nil && ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func dispatch(ctx context.Context, args []string) error {
	if len(args) == 3 && args[0] == "registry" {
		return serveRegistry(ctx, args[1], args[2])
	}
	if len(args) == 3 && args[0] == "pull" {
		return pull(ctx, args[1], args[2])
	}
	if len(args) == 3 && args[0] == "snapshot" {
		return snapshot(ctx, args[1], args[2])
	}

	var o options
	mib, room := int64(0), int64(0)
	fs := flag.NewFlagSet("demo", flag.ContinueOnError)
	fs.IntVar(&o.agents, "agents", 8, "number of agents, at least 2")
	fs.Int64Var(&mib, "mib", 0,
		"size of the image or model in MiB, at least 16 (default: an image of 256, a model of 600)")
	fs.BoolVar(&o.model, "model", false, "download a model as huggingface_hub does, from a hub, in place of an image")
	fs.Int64Var(&room, "room", 0,
		"with --model, how many MiB each agent may keep, at least 128 (default: all). The files that have no room "+
			"are shared through windows, and kept nowhere: at most 1.3 copies")
	fs.DurationVar(&o.stagger, "stagger", 0, "time between the starts of two pulls, such as 200ms")
	fs.BoolVar(&o.killOne, "kill-one", false, "kill an agent in the middle; all other pulls have to complete")
	fs.StringVar(&o.ctr, "ctr", "auto",
		"also pull with a containerd of its own through the last agent: "+
			"auto (as root, where it is installed), yes or no")
	fs.StringVar(&o.node, "node", "", "shoal-node program (default: build it)")
	fs.BoolVar(&o.keep, "keep", false, "keep the working directory with configurations and logs")
	fs.Float64Var(&o.maxSent, "max-sent", 1.6,
		"the most an agent may send, in images; on a machine without processors to spare the sharing is less even")
	fs.DurationVar(&o.timeout, "timeout", 5*time.Minute, "bound on the pulls")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if mib == 0 {
		if mib = 256; o.model {
			mib = 600
		}
	}
	o.size, o.room = mib<<20, room<<20
	if o.agents < 2 || mib < 16 || fs.NArg() > 0 {
		return errors.New("want at least 2 agents, at least 16 MiB, and flags only; see --help")
	}
	if room != 0 && (room < 128 || !o.model) {
		return errors.New("--room wants --model, and at least 128 MiB: four windows of 16 MiB, and as much again")
	}
	return demonstrate(ctx, o)
}

func demonstrate(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "shoal-demo-")
	if err != nil {
		return err
	}
	defer func() {
		if o.keep {
			fmt.Println("\nConfigurations and logs are in", dir)
			return
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	// Children end with this context, whatever way this function is left, and are waited for.
	ctx, stop := context.WithCancel(ctx)
	children := &processes{}
	defer children.wait()
	defer stop()

	if o.node == "" {
		say("building shoal-node")
		if o.node, err = buildNode(ctx, dir); err != nil {
			return err
		}
	}
	if o.model {
		return demonstrateModel(ctx, children, o, dir)
	}
	say("making an image of %s in %d layers", mebibytes(o.size), len(layerShares))
	img, err := makeImage(filepath.Join(dir, "blobs"), o.size)
	if err != nil {
		return err
	}
	reg, err := startRegistry(ctx, children, dir, img)
	if err != nil {
		return err
	}
	say("starting %d agents", o.agents)
	agents, err := startAgents(ctx, children, o, dir, reg.url)
	if err != nil {
		return err
	}
	clients, err := newClients(ctx, children, o, dir, agents, img)
	if err != nil {
		return err
	}

	how := "all at once"
	if o.stagger > 0 {
		how = fmt.Sprintf("%s apart", o.stagger)
	}
	say("pulling through all agents, %s\n", how)
	watching, stopWatching := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	watcher.Go(func() { watch(watching, agents, img) })
	if o.killOne {
		watcher.Go(func() { killInTheMiddle(watching, agents[len(agents)/2], img) })
	}
	pulling, cancel := context.WithTimeout(ctx, o.timeout)
	results := runClients(pulling, clients, o.stagger)
	cancel()
	stopWatching()
	watcher.Wait()
	if err := ctx.Err(); err != nil {
		return err
	}

	counted, err := reg.count(ctx)
	if err != nil {
		return err
	}
	if err := report(ctx, agents, results, counted, img, o); err != nil {
		for _, a := range agents {
			a.explain(ctx)
		}
		return err
	}
	return nil
}

func buildNode(ctx context.Context, dir string) (string, error) {
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/shoal-cache/shoal").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w (run this inside of the repository, or give --node)", err)
	}
	path := filepath.Join(dir, "shoal-node")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", path, "./node")
	build.Dir = strings.TrimSpace(string(root))
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return "", fmt.Errorf("build shoal-node: %w", err)
	}
	return path, nil
}

func say(format string, args ...any) { fmt.Printf("• "+format+"\n", args...) }
