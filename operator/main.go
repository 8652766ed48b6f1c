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
//	survey      what the API server and the agents say together: how the cache is, and what is amiss
//	page        the status page, which shows that
//	share       how namespaces share what the resolver has for all
//	debounce, apply, condition   many events into one, server-side apply, conditions
//
// Agents need none of this to serve what they have.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"runtime"
	"strings"
	_ "time/tzdata" // schedules name time zones, and a minimal image has none

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"github.com/spf13/viper"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/yaml"

	"github.com/shoal-cache/shoal/api/files"
	"github.com/shoal-cache/shoal/api/registries"
	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/operator/internal/access"
	"github.com/shoal-cache/shoal/operator/internal/manager"
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
		Short:         "Admits peers, publishes where to start, shows how policies fare and places pins",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return run(cmd.Context(), v)
		},
	}
	cmd.AddCommand(view.VersionCommand(version))
	view.Strict(cmd)
	all := cmd.PersistentFlags()
	all.String("namespace", "shoal-system", "namespace of the leader election lease")
	all.String("log-level", "info", "debug, info, warn or error")
	f := cmd.Flags()
	f.String("config", "",
		"`file` with the keys upstreams, a list of how registries are reached, as in the agents' configuration, "+
			"allowAddresses, as upstream.allowAddresses there, and ownPin, the spec of the pin of Shoal's own images")
	f.String("own-pin-name", "shoal", "`name` in --namespace of the pin that the configuration's ownPin describes")
	f.String("owner", "",
		"`name` of the ClusterRole that owns the rights and pins that the operator makes, so that they go with it; "+
			"none: they stay")
	f.String("pull-secrets", string(pullSecretsAll),
		"where pins may name pull secrets: All, Off, or Namespaces, those of --pull-secret-namespaces")
	f.StringSlice("pull-secret-namespaces", nil, "`namespaces` where pins may name pull secrets")
	f.String("hub-endpoint", "",
		"base `URL` of the model hub whose files pins may name, as in the agents' hub.endpoint; none: no pin may")
	f.String("metrics-bind-address", ":8080", "address of /metrics; 0 for none")
	f.String("health-probe-bind-address", ":8081", "address of /healthz and /readyz; 0 for none")
	f.String("status-page-bind-address", "",
		"`address` of the status page, such as :8082, which anybody who reaches it may read; none: there is no page")
	f.Bool("status-page-live", false,
		"let the status page ask the agents in --namespace what moves now, which takes the right to forward ports "+
			"there")
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

// buildInfo tells which operator runs, beside the metrics of what it does.
func buildInfo() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "shoal_operator_build_info", Help: "1, with the version of the operator and of Go that built it.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	}, func() float64 { return 1 })
}

func run(ctx context.Context, v *viper.Viper) error {
	logger, err := newLogger(v)
	if err != nil {
		return err
	}
	file, upstreams, err := readFile(v.GetString("config"), logger)
	if err != nil {
		return err
	}
	secrets, err := pullSecrets(v.GetString("pull-secrets"), v.GetStringSlice("pull-secret-namespaces"))
	if err != nil {
		return err
	}
	hub, err := hubEndpoint(v.GetString("hub-endpoint"))
	if err != nil {
		return err
	}
	config, err := apiConfig()
	if err != nil {
		return err
	}
	config.QPS, config.Burst = float32(v.GetFloat64("kube-api-qps")), v.GetInt("kube-api-burst")

	if err := metrics.Registry.Register(buildInfo()); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	mgr, err := manager.New(ctx, config, manager.Options{
		MetricsAddress: v.GetString("metrics-bind-address"),
		HealthAddress:  v.GetString("health-probe-bind-address"),
		LeaderElection: v.GetBool("leader-elect"),
		Namespace:      v.GetString("namespace"),
		AgentServiceAccount: types.NamespacedName{Namespace: v.GetString("namespace"),
			Name: v.GetString("agent-service-account")},
		Owner:       v.GetString("owner"),
		PullSecrets: secrets,
		OwnPin:      file.OwnPin,
		OwnPinName:  v.GetString("own-pin-name"),
		Registries:  upstreams.For,
		Hub:         hub,
		StatusPage:  v.GetString("status-page-bind-address"), StatusPageLive: v.GetBool("status-page-live"),
		Version: version,
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

func newLogger(v *viper.Viper) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(v.GetString("log-level"))); err != nil {
		return nil, fmt.Errorf("--log-level: %w", err)
	}
	logger := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	ctrl.SetLogger(logr.FromSlogHandler(logger.Handler()))
	return logger, nil
}

// hubEndpoint reads a base URL; nil for "".
func hubEndpoint(s string) (*url.URL, error) {
	if s == "" {
		return nil, nil //nolint:nilnil // there may be none
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("--hub-endpoint %q: want a URL such as https://huggingface.co", s)
	}
	return u, nil
}

func apiConfig() (*rest.Config, error) {
	config, err := ctrl.GetConfig()
	if err != nil {
		return nil, fmt.Errorf("find the API server: %w", err)
	}
	config.UserAgent = "shoal-operator/" + version
	return config, nil
}

// configuration is what the file says.
type configuration struct {
	Upstreams      []registries.Upstream     `json:"upstreams"`
	AllowAddresses []netip.Prefix            `json:"allowAddresses"`
	OwnPin         *v1alpha1.ArtifactPinSpec `json:"ownPin"`
}

// readFile reads the configuration. Without a file registries are reached at their own addresses, and there is no own
// pin. A key that is unknown is an error.
func readFile(path string, logger *slog.Logger) (configuration, *upstream.Upstreams, error) {
	var c configuration
	if path != "" {
		data, err := files.Read(path)
		if err != nil {
			return c, nil, fmt.Errorf("--config: %w", err)
		}
		if err := yaml.UnmarshalStrict(data, &c); err != nil {
			return c, nil, fmt.Errorf("--config %s: %w", path, err)
		}
	}
	upstreams, err := upstream.New(c.Upstreams, c.AllowAddresses, logger)
	if err != nil {
		return c, nil, fmt.Errorf("--config %s: %w", path, err)
	}
	return c, upstreams, nil
}

// pullSecretsMode is a value of --pull-secrets.
type pullSecretsMode string

const (
	pullSecretsAll        pullSecretsMode = "All"
	pullSecretsOff        pullSecretsMode = "Off"
	pullSecretsNamespaces pullSecretsMode = "Namespaces"
)

func pullSecrets(mode string, namespaces []string) (access.Scope, error) {
	switch m := pullSecretsMode(mode); {
	case m == pullSecretsNamespaces && len(namespaces) == 0:
		return access.Scope{},
			errors.New("--pull-secrets=Namespaces: name the namespaces with --pull-secret-namespaces")
	case m != pullSecretsNamespaces && len(namespaces) > 0:
		return access.Scope{}, fmt.Errorf("--pull-secret-namespaces: only with --pull-secrets=Namespaces, not %s", mode)
	case m == pullSecretsAll, m == pullSecretsNamespaces:
		return access.Scope{Namespaces: namespaces}, nil
	case m == pullSecretsOff:
		return access.Scope{Off: true}, nil
	}
	return access.Scope{}, fmt.Errorf("--pull-secrets=%s: want All, Off or Namespaces", mode)
}
