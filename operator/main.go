// Shoal-operator tells the agents of a cluster whom to trust, where to start and what to keep.
//
// Its packages, in the order in which a change meets them:
//
//	membership  a Peer is judged: admitted or not, retired when its node is gone; the Swarm's status
//	bootstrap   which few peers new agents start from
//	policy      how CachePolicies fare, and which disagree
//	pin         ArtifactPins: resolved, planned, handed out to nodes, watched
//	resolve     tags to digests, by asking registries
//	upstream    where registries are reached
//	plan        who is to keep what: a pure function of everything
//	placement   which nodes keep one artifact: rendezvous hashing over domains
//	access      agents may read the pull secrets that pins name
//	release     what is left to do when the last operator has gone
//	debounce, apply, condition   many events into one, server-side apply, conditions
//
// Agents need none of this to serve what they have: see promise 6 of the design.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"
	_ "time/tzdata" // schedules name time zones, and a minimal image has none

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"github.com/spf13/viper"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/shoal-cache/shoal/api/registries"
	"github.com/shoal-cache/shoal/operator/internal/manager"
	"github.com/shoal-cache/shoal/operator/internal/release"
	"github.com/shoal-cache/shoal/operator/internal/upstream"
)

// version is set by the linker.
var version = "dev"

func main() {
	if err := command().ExecuteContext(ctrl.SetupSignalHandler()); err != nil {
		fmt.Fprintln(os.Stderr, "shoal-operator:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	v := viper.New()
	cmd := &cobra.Command{
		Use:           "shoal-operator",
		Short:         "Admits peers, publishes where to start, compiles policy and places pins",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return run(cmd.Context(), v)
		},
	}
	cmd.AddCommand(releaseCommand(v), versionCommand())
	all := cmd.PersistentFlags()
	all.String("namespace", "shoal-system", "namespace of the leader election lease")
	all.String("log-level", "info", "debug, info, warn or error")
	f := cmd.Flags()
	f.String("config", "", "`file` with the key upstreams, a list of how registries are reached, as in the agents' configuration")
	f.String("metrics-bind-address", ":8080", "address of /metrics; 0 for none")
	f.String("health-probe-bind-address", ":8081", "address of /healthz and /readyz; 0 for none")
	f.Bool("leader-elect", true, "let one of several replicas work at a time")
	f.String("agent-service-account", "shoal-agent", "service account of the agents, in --namespace")
	f.Float32("kube-api-qps", 500, "requests to the API server in a second")
	f.Int("kube-api-burst", 1000, "requests to the API server at once")
	if err := errors.Join(v.BindPFlags(all), v.BindPFlags(f)); err != nil {
		panic(err) // only a nil flag set fails
	}
	v.SetEnvPrefix("SHOAL_OPERATOR")
	v.SetEnvKeyReplacer(strings.NewReplacer("-", "_"))
	v.AutomaticEnv()
	return cmd
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), version)
			return err
		},
	}
}

func releaseCommand(v *viper.Viper) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "release",
		Short: "After an uninstallation: lets go of pins that wait for an operator to purge them, and takes the agents' rights to secrets",
		Long: "Takes Shoal's finalizer off every ArtifactPin, so that they can be deleted with no operator left, and deletes the Roles by which agents " +
			"read the pull secrets of pins. It waits until the last operator has given up its lease, and keeps the lease while it works. " +
			"What was to be purged stays in the nodes' caches.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runRelease(cmd.Context(), v)
		},
	}
	cmd.Flags().Duration("timeout", time.Minute, "time for all of it")
	if err := v.BindPFlags(cmd.Flags()); err != nil {
		panic(err) // only a nil flag set fails
	}
	return cmd
}

func run(ctx context.Context, v *viper.Viper) error {
	logger, err := newLogger(v)
	if err != nil {
		return err
	}
	upstreams, err := readUpstreams(v.GetString("config"), logger)
	if err != nil {
		return err
	}
	config, err := apiConfig()
	if err != nil {
		return err
	}
	config.QPS, config.Burst = float32(v.GetFloat64("kube-api-qps")), v.GetInt("kube-api-burst")

	mgr, err := manager.New(ctx, config, manager.Options{
		MetricsAddress:      v.GetString("metrics-bind-address"),
		HealthAddress:       v.GetString("health-probe-bind-address"),
		LeaderElection:      v.GetBool("leader-elect"),
		Namespace:           v.GetString("namespace"),
		AgentServiceAccount: types.NamespacedName{Namespace: v.GetString("namespace"), Name: v.GetString("agent-service-account")},
		Registries:          upstreams.For,
	})
	if err != nil {
		return err
	}
	logger.Info("Starting", "version", version)
	if err := mgr.Start(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("manager: %w", err)
	}
	return nil
}

func runRelease(ctx context.Context, v *viper.Viper) error {
	logger, err := newLogger(v)
	if err != nil {
		return err
	}
	config, err := apiConfig()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, v.GetDuration("timeout"))
	defer cancel()
	released, err := release.Run(ctx, config, v.GetString("namespace"), manager.LeaseName, logger)
	if err != nil {
		return fmt.Errorf("release: %w", err)
	}
	logger.Info("Released", "pins", released.Pins, "rights", released.Rights)
	return nil
}

func newLogger(v *viper.Viper) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(v.GetString("log-level"))); err != nil {
		return nil, fmt.Errorf("--log-level: %w", err)
	}
	logger := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	ctrl.SetLogger(logr.FromSlogHandler(logger.Handler()))
	return logger, nil
}

func apiConfig() (*rest.Config, error) {
	config, err := ctrl.GetConfig()
	if err != nil {
		return nil, fmt.Errorf("find the API server: %w", err)
	}
	config.UserAgent = "shoal-operator/" + version
	return config, nil
}

// readUpstreams are those of the file; where there is none, registries are reached at their own addresses.
func readUpstreams(path string, logger *slog.Logger) (*upstream.Upstreams, error) {
	var config struct{ Upstreams []registries.Upstream }
	if path != "" {
		file := viper.New()
		file.SetConfigFile(path)
		if err := file.ReadInConfig(); err != nil {
			return nil, fmt.Errorf("--config: %w", err)
		}
		if err := file.UnmarshalExact(&config); err != nil {
			return nil, fmt.Errorf("--config %s: %w", path, err)
		}
	}
	upstreams, err := upstream.New(config.Upstreams, logger)
	if err != nil {
		return nil, fmt.Errorf("--config %s: %w", path, err)
	}
	return upstreams, nil
}
