package mirror

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/shoal-cache/shoal/api/view"
)

// Command is `shoal-node mirror` with its sub-commands. More of them come from others, who get the options that the
// flags fill in.
func Command(more ...func(*Options) *cobra.Command) *cobra.Command {
	var o Options
	mirror := o.command()
	o.flags(mirror.PersistentFlags())
	// In the place of the agent's flag, for the error that says what to give instead.
	mirror.PersistentFlags().String(agentsFile, "", "")
	_ = mirror.PersistentFlags().MarkHidden(agentsFile) // it is there
	install := o.changing("install", "Put the agent before the other mirrors of the runtime", "changed", Install)
	install.Flags().BoolVar(&o.FixConfigPath, "fix-config-path", false,
		"make containerd read the directory of mirrors where its configuration keeps it from that")
	mirror.AddCommand(install, o.changing("remove", "Restore what was there before install", "restored", Remove),
		o.status())
	for _, command := range more {
		mirror.AddCommand(command(&o))
	}
	return mirror
}

// agentsFile is the flag of the agent that names its configuration.
const agentsFile = "config"

const long = `Make the container runtime pull through the agent, or undo it.

The agent's registry front becomes the first mirror of the given registries. Other mirrors, TLS files, headers and
comments stay as they are, and the registry itself stays the last resort: without a running agent the node pulls as
before. Removal restores every file byte for byte, keeps what somebody edited since, and does nothing where nothing
was installed.

Runtimes and what is written for them:

  containerd     <host>/hosts.toml in the first directory of config_path (/etc/containerd/certs.d); all registries:
                 _default, and what there is for single ones
  microk8s       the same in /var/snap/microk8s/current/args/certs.d
  talos          the same in /etc/cri/conf.d/hosts
  cri-o          ` + dropIn + ` in /etc/containers/registries.conf.d, for podman too; registries have to be named, and
                 CRI-O has to be reloaded
  k3s, rke2      /etc/rancher/<k3s or rke2>/registries.yaml; the service has to be restarted

Where containerd does not read the directory, install and status say so. With --fix-config-path install mends it: a
config_path that is a list, as it is by default since containerd 2.2, needs no restart; one that is not set is set in
containerd's configuration, and then containerd has to be restarted.

The exit code of status is 0 where the runtime asks the agent for the registries it was installed for, and 1 where it
does not, where what was installed is not what would be by now, or where the runtime was started before something was
written that it reads only then, as far as that shows. The exit code of remove is
1 where an entry could not be taken out, and where somebody's lines went with it. Those are kept in the state
directory.`

// command is the one that has the others.
func (o *Options) command() *cobra.Command {
	return &cobra.Command{
		Use:   "mirror",
		Short: "Make the container runtime pull through the agent, or undo it",
		Long:  long,
		Args:  cobra.ArbitraryArgs,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed(agentsFile) {
				return errors.New("mirror: --config is for the agent: give --endpoint where its registry.listen is " +
					"not 127.0.0.1:5050, --registry for its mirror.registries, --state-dir for its mirror.stateDir")
			}
			if cmd.Flags().Changed("registry") && len(o.Registries) == 0 { // an empty value, such as an unset variable
				return CheckRegistry("")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return view.UnknownCommand(cmd, args[0])
			}
			return cmd.Help()
		},
	}
}

// verb is a sub-command that does something and prints what came of it. done is said of each path.
func (o *Options) verb(use, short, done string, do func(context.Context) (Result, error)) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		Args:  view.Arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Ask(cmd.Context())
			o.AnyEndpoint = !cmd.Flags().Changed("endpoint")
			result, err := do(cmd.Context())
			return errors.Join(report(cmd.OutOrStdout(), result, done), err)
		},
	}
}

// changing is a verb that changes files, after which the runtime may have to be restarted.
func (o *Options) changing(use, short, done string, do func(Options) (Result, error)) *cobra.Command {
	var restart bool
	c := o.verb(use, short, done, func(ctx context.Context) (Result, error) {
		result, err := do(*o)
		if err == nil && restart {
			result.Findings, err = restarted(ctx, *o, result.Findings)
		}
		return result, err
	})
	c.Flags().BoolVar(&restart, "restart", false,
		"restart the runtime's service, or reload CRI-O's, with systemctl, where a change needs it")
	return c
}

func (o *Options) status() *cobra.Command {
	var to string
	c := o.verb("status", "Show what is installed and what somebody should look at", "installed",
		func(context.Context) (Result, error) {
			result, err := inForce(*o)
			if to != "" {
				err = errors.Join(err, reportTo(to, result))
			}
			return result, err
		})
	c.Flags().StringVar(&to, "report", "", "write what was found to a `file` too, as JSON")
	return c
}

// flags are those that all sub-commands have.
func (o *Options) flags(flags *pflag.FlagSet) {
	var runtimes []string
	for _, r := range Runtimes {
		runtimes = append(runtimes, string(r))
	}
	flags.StringVar((*string)(&o.Runtime), "runtime", string(Containerd),
		"the node's `runtime`: "+strings.Join(runtimes, ", "))
	flags.StringVar(&o.Endpoint, "endpoint", "http://127.0.0.1:5050", "`URL` of the agent's registry front")
	flags.StringSliceVar(&o.Registries, "registry", nil,
		"`host` to mirror, as image references spell it; may be given again (default: all)")
	flags.StringVar(&o.Root, "root", "/", "`directory` where the node's file system is mounted")
	flags.StringVar(&o.Path, "path", "",
		"`path` on the node of the runtime's mirror configuration (default: the runtime's)")
	flags.StringVar(&o.RuntimeConfig, "runtime-config", "",
		"`path` on the node of containerd's configuration file, which --fix-config-path alone changes "+
			"(default: the runtime's)")
	flags.StringVar(&o.Release, "runtime-version", "",
		"containerd's `version`, such as 2.4.2 (default: what it says itself, with --root /)")
	flags.StringVar(&o.StateDir, "state-dir", "/var/lib/shoal/mirror",
		"`directory` of the originals that removal restores; on this machine, not below --root")
}

// inForce is Status, with an error where the runtime does not ask the agent.
func inForce(o Options) (Result, error) {
	result, err := Status(o)
	switch {
	case err != nil || result.InForce():
		return result, err
	case len(result.Changed) == 0:
		return result, errors.New("mirror status: not in force: nothing is installed")
	}
	return result, errors.New("mirror status: not in force, see the notes")
}

// restarted restarts the runtime where a finding says that it is needed, and drops those findings.
func restarted(ctx context.Context, o Options, findings []Finding) ([]Finding, error) {
	needs := func(f Finding) bool { return f.Kind == RestartNeeded }
	if !slices.ContainsFunc(findings, needs) {
		return findings, nil
	}
	if filepath.Clean(o.Root) != "/" {
		return findings, fmt.Errorf("--restart works on the node itself, with --root /; not with %s", o.Root)
	}
	var problems []error
	for _, unit := range o.Runtime.units() {
		out, err := exec.CommandContext(ctx, "systemctl", o.Runtime.renewal(), unit).CombinedOutput()
		if err != nil {
			problems = append(problems, fmt.Errorf("%s %s: %w: %s", o.Runtime.renewal(), unit, err,
				strings.TrimSpace(string(out))))
		}
	}
	if len(problems) > 0 {
		return findings, errors.Join(problems...)
	}
	return slices.DeleteFunc(findings, needs), nil
}

// answersWithin is how long containerd may take to say its version. Nobody who asks is held up by one that hangs.
const answersWithin = 5 * time.Second

// Ask fills in what the containerd of this machine says of itself, where it is this machine's configuration that is
// meant.
func (o *Options) Ask(ctx context.Context) {
	if filepath.Clean(o.Root) != "/" {
		return
	}
	o.reloaded = func(since time.Time) bool { return crioReloaded(ctx, since) }
	if o.Runtime != Containerd {
		return
	}
	config := cmp.Or(o.RuntimeConfig, paths[o.Runtime].config)
	asked := *o
	asked.RuntimeConfig = config
	p, runs := asked.process(o.Runtime) // the one in the PATH may be another
	if !runs || p.program == "" {
		program, err := exec.LookPath("containerd")
		if err != nil {
			return
		}
		p = process{program: program, dir: "/"}
	}
	within, cancel := context.WithTimeout(ctx, answersWithin)
	defer cancel()
	version := exec.CommandContext(within, p.program, "--version")
	version.WaitDelay = time.Second
	out, err := version.Output()
	if err != nil || !releasePattern.Match(out) {
		return
	}
	says, _ := parseRelease(string(out))
	if given, _ := o.release(); o.Release != "" && given != says {
		return // it is of another that the question is, or of none
	}
	o.Release = string(out)
	o.dump = func() ([]byte, error) {
		dump := exec.CommandContext(ctx, p.program, "--config", config, "config", "dump")
		dump.Dir = p.dir // where old releases look for what a relative pattern imports
		return dump.Output()
	}
}

// reportTo writes what was found to a file that is there, such as a container's last words.
func reportTo(path string, r Result) error {
	text, err := json.Marshal(map[string]any{"inForce": r.InForce(), "installed": r.Changed, "findings": r.Findings})
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), newFileMode)
}

func report(w io.Writer, r Result, verb string) error {
	var b strings.Builder
	for _, path := range r.Changed {
		fmt.Fprintf(&b, "%s %s\n", verb, path)
	}
	if len(r.Changed) == 0 {
		fmt.Fprintf(&b, "nothing %s\n", verb)
	}
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "note: %s\n", f)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
