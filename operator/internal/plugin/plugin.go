// Package plugin is kubectl shoal. It reads the API server, and the agents' admin addresses by port-forwards of the API
// server, so that it needs no right but the user's own and no address of an agent is open.
//
// plugin.go is the command, its output and exit codes. The other files are the verbs. Package survey tells what a
// cluster and its agents say, and what is amiss.
package plugin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/operator/internal/survey"
)

// Exit codes.
const (
	ExitWell     = 0
	ExitNotWell  = 1 // something is wrong in the cluster, or what was asked for is not there
	ExitFailed   = 2 // the command could not be carried out
	ExitTimedOut = 3 // --wait waited for long enough
)

// errNotWell and errTimedOut end a command that has said already what is wrong.
var (
	errNotWell  = errors.New("not well")
	errTimedOut = errors.New("timed out")
)

// well ends a command that has said what there is to say.
func well(err error, isWell bool) error {
	if err == nil && !isWell {
		return errNotWell
	}
	return err
}

// program is what this command is called where somebody is told to run it.
const program = "kubectl shoal"

// plugin is what all verbs share.
type plugin struct {
	genericiooptions.IOStreams
	flags     *genericclioptions.ConfigFlags
	output    view.Output
	system    string // namespace of the agents; empty: wherever they are
	version   string
	timeout   time.Duration
	tolerance time.Duration // how long an agent may take to answer
	patience  time.Duration // how long the API server may

	config *rest.Config
	api    client.Client
	agents agents
	clock  survey.ServerClock
}

// Run runs the command, and returns its exit code.
func Run(ctx context.Context, version string, args []string, streams genericiooptions.IOStreams) int {
	p := &plugin{IOStreams: streams, version: version, flags: genericclioptions.NewConfigFlags(true)}
	return p.run(ctx, args)
}

func (p *plugin) run(ctx context.Context, args []string) int {
	p.ErrOut = view.ForTerminal(p.ErrOut)
	cmd := p.command() //nolint:contextcheck // each command takes the context that it is executed with
	cmd.SetArgs(args)
	cmd.SetIn(p.In)
	cmd.SetOut(p.Out)
	cmd.SetErr(p.ErrOut)
	view.Strict(cmd)
	ran, err := cmd.ExecuteContextC(ctx)
	switch {
	case err == nil:
		return ExitWell
	case errors.Is(err, errNotWell):
		return ExitNotWell
	case errors.Is(err, errTimedOut):
		return ExitTimedOut
	}
	_, _ = fmt.Fprintln(p.ErrOut, "kubectl shoal:", view.Unknown(ran, explain(err)))
	return ExitFailed
}

// unnamed is where client-go looks for an API server when it is told of none.
const unnamed = "http://localhost:8080"

// explain says what to do about errors of the API server.
func explain(err error) string {
	switch {
	case meta.IsNoMatchError(err), kruntime.IsNotRegisteredError(err):
		return "this cluster has no resource definitions of Shoal: " +
			"install the chart first (" + survey.InstallLink + "), or try kubectl shoal check --pre"
	case apierrors.IsUnauthorized(err):
		return "the API server does not take your credentials, which may be out of date; kubectl auth whoami shows " +
			"whether it takes them at all"
	case apierrors.IsForbidden(err), errors.As(err, new(*survey.NotAllowedError)):
		return err.Error() + "; which rights kubectl shoal takes, and how an administrator gives them: " +
			survey.RightsLink
	case errors.Is(err, context.Canceled):
		return "interrupted"
	}
	if dial, ok := errors.AsType[*url.Error](err); ok {
		return unreached(dial)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "it took longer than --timeout allows"
	}
	return err.Error()
}

// unreached says what to do where the API server has not answered.
func unreached(dial *url.Error) string {
	at, why := dial.URL, dial.Err.Error()
	if u, err := url.Parse(dial.URL); err == nil {
		at = u.Scheme + "://" + u.Host
	}
	switch {
	case at == unnamed:
		return fmt.Sprintf("no kubeconfig names a cluster%s, and none answers at %s, the default: set "+
			"KUBECONFIG, or give --kubeconfig or --server", misled(os.Getenv("KUBECONFIG")), at)
	case strings.HasPrefix(why, gettingCredentials):
		return "the program that your kubeconfig names to log in with fails: " +
			strings.TrimPrefix(why, gettingCredentials)
	case dial.Timeout():
		return fmt.Sprintf("the API server at %s gave no answer in time; --request-timeout gives it longer than %s",
			at, view.Duration(patience))
	}
	return fmt.Sprintf("the API server does not answer at %s: %s; is this the right cluster "+
		"(kubectl config current-context)?", at, why)
}

// misled says which files of a KUBECONFIG there are not, over which client-go passes in silence.
func misled(kubeconfig string) string {
	missing := slices.DeleteFunc(filepath.SplitList(kubeconfig), func(file string) bool {
		_, err := os.Stat(file)
		return file == "" || !errors.Is(err, fs.ErrNotExist)
	})
	if len(missing) == 0 {
		return ""
	}
	return " (KUBECONFIG says " + strings.Join(missing, ", ") + ", and there is no such file)"
}

// gettingCredentials begins the errors of client-go where no request was made for want of credentials.
const gettingCredentials = "getting credentials: "

// patience is how long an answer of the API server may take where --request-timeout does not say.
const patience = time.Minute

func (p *plugin) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "kubectl-shoal",
		Short: "See whether the cache of this cluster works, and why not",
		Long: `kubectl shoal says whether the cache of this cluster works, and why not.

Exit codes: 0 nothing grave (✗) is wrong; 1 something grave is wrong, or what was asked for is not there; 2 the command
could not be carried out; 3 --wait has waited for long enough.

The flags by which kubectl finds its cluster (--context, --kubeconfig, --namespace, --as, --token and so on) work here
too.`,
		Example: `  kubectl shoal status --wait
  kubectl shoal check
  kubectl shoal where docker.io/library/debian:stable-slim
  kubectl shoal why docker.io/library/debian:stable-slim --node node1`,
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: program},
		Version:       p.version,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			return p.checkFlags()
		},
	}
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	f := root.PersistentFlags()
	p.flags.AddFlags(f)
	hideMost(f)
	f.StringVarP((*string)(&p.output), "output", "o", "", "json, yaml or wide")
	completeFlag(root, "output", cobra.FixedCompletions([]string{string(view.JSON), string(view.YAML),
		string(view.Wide)}, cobra.ShellCompDirectiveNoFileComp))
	f.StringVar(&p.system, "agents-namespace", "", "`namespace` of Shoal's agents; default: wherever they are")
	f.DurationVar(&p.timeout, "timeout", 5*time.Minute,
		"how long a command that waits, such as --wait and test, may take in all")
	f.DurationVar(&p.tolerance, "agent-timeout", 10*time.Second, "how long an agent may take to answer")
	root.AddCommand(p.statusCommand(), p.checkCommand(), p.topCommand(), p.whereCommand(), p.lsCommand(),
		p.whyCommand(),
		p.pinCommand(), p.unpinCommand(), p.pinsCommand(), p.preheatCommand(), p.reportCommand(), p.testCommand(),
		p.getCommand(), p.addCommand(), p.versionCommand())
	return root
}

// checkFlags refuses flags that make no sense.
func (p *plugin) checkFlags() error {
	for name, d := range map[string]time.Duration{"timeout": p.timeout, "agent-timeout": p.tolerance} {
		if d <= 0 {
			return fmt.Errorf("--%s %s: want more than 0, such as 30s", name, d)
		}
	}
	return p.output.Check(view.JSON, view.YAML, view.Wide)
}

func (p *plugin) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version of this command", Args: view.Arguments(0, 0),
		Long:    "version prints the version of this command. kubectl shoal status -o wide prints those of the agents.",
		Example: "  kubectl shoal version",
		RunE: func(*cobra.Command, []string) error {
			return p.print(map[string]string{"version": p.version}, func(t *view.Text) { t.Say("%s\n", p.version) })
		},
	}
}

// hideMost keeps kubectl's own flags out of the help, but for those that everybody uses: kubectl options lists them.
func hideMost(f *pflag.FlagSet) {
	f.VisitAll(func(flag *pflag.Flag) {
		switch flag.Name {
		case "namespace", "context", "kubeconfig":
		default:
			flag.Hidden = true
		}
	})
}

// agents reaches the agents' pods.
type agents interface {
	survey.Agents
	runner
}

// askAll asks every agent the same, each for as long as --agent-timeout says. It fails where the user may not ask.
func askAll[T any](ctx context.Context, p *plugin, pods []corev1.Pod,
	ask func(context.Context, *view.Client) (T, error)) ([]survey.Answer[T], error) {
	answers := survey.AskAll(ctx, p.agents, p.tolerance, pods, ask)
	if errors.Is(ctx.Err(), context.Canceled) {
		return nil, ctx.Err() // that no agent answers any more is the user's doing
	}
	if err := survey.NotAllowed(answers); err != nil {
		return nil, err
	}
	return answers, nil
}

// askNodes asks the agents of nodes for a view. A node without one is among the answers too: what it holds nobody
// knows.
func askNodes[T any](ctx context.Context, p *plugin, of nodes, path string,
	query url.Values) ([]survey.Answer[T], error) {
	answers, err := askAll(ctx, p, of.running, func(ctx context.Context, c *view.Client) (T, error) {
		return view.Get[T](ctx, c, path, query)
	})
	if err != nil {
		return nil, err
	}
	for _, node := range of.absent {
		answers = append(answers, survey.Answer[T]{Node: node, Err: errAbsent})
	}
	slices.SortFunc(answers, func(a, b survey.Answer[T]) int { return strings.Compare(a.Node, b.Node) })
	return answers, nil
}

// look reads what the API server knows.
func (p *plugin) look(ctx context.Context) (*survey.Cluster, error) {
	if err := p.connect(); err != nil {
		return nil, err
	}
	return survey.Look(ctx, p.api, p.system)
}

// connect makes the clients, once the flags are known.
func (p *plugin) connect() error {
	if p.api != nil {
		return nil
	}
	config, err := p.flags.ToRESTConfig()
	if err != nil {
		return err
	}
	config.UserAgent = "kubectl-shoal/" + p.version
	if config.Timeout == 0 { // an API server that takes connections and is silent keeps nobody for ever
		config.Timeout = cmp.Or(p.patience, patience)
	}
	config.Wrap(p.clock.Wrap)
	config.QPS = -1 // a command asks little, and the API server has its own bounds
	scheme := kruntime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return err
	}
	p.config = config
	if p.api, err = client.New(config, client.Options{Scheme: scheme}); err != nil {
		return fmt.Errorf("reach the API server: %w", err)
	}
	if p.agents == nil {
		core, err := kubernetes.NewForConfig(config)
		if err != nil {
			return err
		}
		p.agents = forwarded{&survey.Forwarded{Config: config, Core: core}}
	}
	return nil
}

// namespace is where pins are made.
func (p *plugin) namespace() (string, error) {
	ns, _, err := p.flags.ToRawKubeConfigLoader().Namespace()
	return ns, err
}

// print writes a value as -o asks, or else by human.
func (p *plugin) print(value any, human func(t *view.Text)) error {
	return p.output.Print(p.Out, value, human)
}

// Colours of a terminal.
const (
	red    = "31"
	yellow = "33"
	green  = "32"
)

// colour writes text in a colour where a terminal shows it and nobody has set NO_COLOR.
func (p *plugin) colour(code, text string) string {
	if os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" || !view.IsTerminal(p.Out) {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// say writes a line for people only.
func (p *plugin) say(format string, args ...any) {
	_, _ = fmt.Fprintln(p.ErrOut, view.Line(fmt.Sprintf(format, args...)))
}

// within bounds all of a command that waits, its first look too, by --timeout.
func (p *plugin) within(ctx context.Context, wait bool) (context.Context, context.CancelFunc) {
	if !wait {
		return ctx, func() {}
	}
	// A client that finds out what an API server has is bounded by this alone.
	p.patience = min(patience, p.timeout+time.Second)
	return context.WithTimeout(ctx, p.timeout)
}

// late is errTimedOut where --timeout has cut off the request that failed, once it is said.
func (p *plugin) late(ctx context.Context, err error) error {
	if err == nil || errors.Is(err, errTimedOut) || !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return err
	}
	p.say("the API server gave no answer within %s", view.Duration(p.timeout))
	return errTimedOut
}

// until calls look until it says that it is done, or --timeout has passed.
func (p *plugin) until(ctx context.Context, look func(ctx context.Context) (done bool, err error)) error {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		done, err := look(ctx)
		if done || err != nil && ctx.Err() == nil && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return errTimedOut
			}
			return ctx.Err()
		case <-tick.C:
		}
	}
}
