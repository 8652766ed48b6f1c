// Command shoal-node is Shoal's node agent: the registry mirror of the node's container runtime, and a peer of the
// other agents.
//
// Its packages, in the order in which a request meets them:
//
//	internal/reply      what the fronts share of HTTP: ranges, headers at the latest moment, answers that run
//	internal/room       how much of documents all requests hold in memory together
//	internal/registry   the registry front: HTTP in, the OCI distribution pull API
//	internal/hub        the hub front: HTTP in, what clients of a model hub ask of it
//	internal/gate       who may read what: the word of the sources, remembered
//	internal/fetch      one fetch for each missing blob: from peers, else from upstream; streaming while it arrives
//	internal/store      blobs and unfinished ingests on disk; eviction, pins, scrub
//	internal/swarm      libp2p host, admission, DHT, coordinators, Bitswap
//	internal/bitswapnet the network under Bitswap, which copies no block
//	internal/schedule   who asks whom for which chunk: the coordinator's decisions, without I/O
//	internal/upstream   requests to the registries, with the callers' own credentials
//
// and beside that way:
//
//	internal/content    the vocabulary all of them share
//	internal/manifest   what a manifest refers to, and of which type it is
//	internal/policy     the policy in force: modes, time limits, bandwidth, capacity
//	internal/agent      the Kubernetes side: Peer, admission, CachePolicy, pins
//	internal/admin      health, metrics, profiles, a JSON view
//	internal/pulls      how the last pulls went, and a line in the log for each
//	internal/trace      spans of pulls for OpenTelemetry, where somebody wants them
//	internal/mirror     the runtime's mirror configuration: install, remove, is it in force
//	internal/bypass     whether the runtime pulls past the agent all the same
//	internal/guard      a process of its own: keeps the mirror installed, ends an agent that does not answer
//	internal/simulate   the schedule at work in thousands of virtual nodes, in virtual time
//	internal/config     file, environment and flags to one typed configuration
//
// Calls go down, bytes come up, and events travel sideways only from the store. This package only wires.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"syscall"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/node/internal/config"
	"github.com/shoal-cache/shoal/node/internal/guard"
	"github.com/shoal-cache/shoal/node/internal/mirror"
	"github.com/shoal-cache/shoal/node/internal/swarm"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ran, err := command().ExecuteContextC(ctx)
	stop()
	if err != nil {
		if !errors.Is(err, errNotWell) {
			_, _ = fmt.Fprintf(view.ForTerminal(os.Stderr), "shoal-node: %s\n", view.Unknown(ran, err.Error()))
		}
		os.Exit(1)
	}
}

// loader reads the configuration by the flags of a command.
type loader func(*cobra.Command) (*config.Config, error)

// command gives a command the flags of the configuration, and has it run with that.
func (load loader) command(cmd *cobra.Command,
	run func(*cobra.Command, *config.Config, []string) error) *cobra.Command {
	config.Flags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := load(cmd)
		if err != nil {
			return err
		}
		return run(cmd, c, args)
	}
	return cmd
}

// hideAllBut has the help of a command show none of the configuration's flags, which it takes all the same, but those
// that it makes use of.
func hideAllBut(cmd *cobra.Command, used ...string) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) { f.Hidden = !slices.Contains(used, f.Name) })
}

func command() *cobra.Command {
	var file string
	load := loader(func(cmd *cobra.Command) (*config.Config, error) {
		return config.Load(file, cmd.Flags(), os.Environ())
	})
	root := load.command(&cobra.Command{
		Use:   "shoal-node",
		Short: "Peer-to-peer content cache of a node: the container runtime's registry mirror",
		Long: `shoal-node serves the container runtime of this node as a registry mirror. What it does not hold it takes
from the other agents of the swarm, and what none of them holds from the registry, each byte once for all of them.

  shoal-node --config FILE          run the agent
  shoal-node id --config FILE       print its peer ID, for the swarm.bootstrap of others
  shoal-node config --config FILE   print the configuration in force
  shoal-node mirror install         make the runtime pull through it
  shoal-node mirror status          say whether it does
  shoal-node status                 say how the agent of this machine is; also ls, where, why, get, add`,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}, func(cmd *cobra.Command, c *config.Config, _ []string) error { return run(cmd.Context(), c) })
	root.PersistentFlags().StringVar(&file, "config", "", "YAML `file` with the configuration; see shoal-node config")
	root.AddCommand(idCommand(load), configCommand(load), mirror.Command(guard.Command), view.VersionCommand(version))
	root.AddCommand(lookCommands(load)...)
	root.AddCommand(contentsCommands(load)...)
	root.SetUsageTemplate(root.UsageTemplate() + "{{if not .HasParent}}" + config.WithoutFlag + "{{end}}")
	view.Strict(root)
	return root
}

func idCommand(load loader) *cobra.Command {
	return load.command(&cobra.Command{
		Use:   "id",
		Short: "Print the peer ID, and make the identity where there is none",
		Args:  view.Arguments(0, 0),
	}, func(cmd *cobra.Command, c *config.Config, _ []string) error {
		key, err := swarm.LoadIdentity(c.IdentityPath())
		if err != nil {
			return storePathProblem(c.Store.Path, err)
		}
		p, err := peer.IDFromPrivateKey(key)
		if err != nil {
			return fmt.Errorf("identity %s: %w", c.IdentityPath(), err)
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), p)
		return err
	})
}

func configCommand(load loader) *cobra.Command {
	return load.command(&cobra.Command{
		Use:   "config",
		Short: "Print the configuration in force as YAML",
		Args:  view.Arguments(0, 0),
	}, func(cmd *cobra.Command, c *config.Config, _ []string) error { return c.Write(cmd.OutOrStdout()) })
}

func newLogger(c config.Log) (*slog.Logger, error) {
	level, err := c.SlogLevel()
	if err != nil {
		return nil, err
	}
	opts := &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Value.Kind() == slog.KindDuration { // JSON would have a number of nanoseconds
			a.Value = slog.StringValue(view.Duration(a.Value.Duration()))
		}
		return a
	}}
	if c.Format == "text" {
		return slog.New(slog.NewTextHandler(os.Stderr, opts)), nil
	}
	return slog.New(slog.NewJSONHandler(os.Stderr, opts)), nil
}

// tuneMemory sets the garbage collector for what this process does: little lives long, and blocks of 1 MiB come and go.
// With the default the collector would run all the time on so small a heap. GOGC and GOMEMLIMIT are respected.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(192 << 20)
	}
}
