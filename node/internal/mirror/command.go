package mirror

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// Command is `shoal-node mirror` with its sub-commands. More of them come from others, who get the options that the
// flags fill in.
func Command(more ...func(*Options) *cobra.Command) *cobra.Command {
	var o Options
	var runtimes []string
	for _, r := range Runtimes {
		runtimes = append(runtimes, string(r))
	}
	mirror := &cobra.Command{
		Use:   "mirror",
		Short: "Make the container runtime pull through the agent, or undo it",
		Long: `Make the container runtime pull through the agent, or undo it.

The agent's registry front becomes the first mirror of the given registries. Other mirrors, TLS files, headers and
comments stay as they are, and the registry itself stays the last resort: without a running agent the node pulls as
before. Removal restores every file byte for byte, keeps what somebody edited since, and does nothing where nothing
was installed.

Runtimes and what is written for them:

  containerd     <host>/hosts.toml in the first directory of config_path (/etc/containerd/certs.d); all registries:
                 _default, and what there is for single ones
  microk8s       the same in /var/snap/microk8s/current/args/certs.d
  talos          the same in /etc/cri/conf.d/hosts
  cri-o          ` + dropIn + ` in /etc/containers/registries.conf.d, for podman too; registries have to be named
  k3s, rke2      /etc/rancher/<k3s or rke2>/registries.yaml; the service has to be restarted

Where containerd does not read the directory, install and status say so. With --fix-config-path install mends it: a
config_path that is a list, as it is by default since containerd 2.2, needs no restart; one that is not set is set in
containerd's configuration, and then containerd has to be restarted.

The exit code of status is 0 where the runtime asks the agent for the registries it was installed for, and 1 where it
does not, as far as the files show. The exit code of remove is 1 where an entry could not be taken out.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknown(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	flags := mirror.PersistentFlags()
	flags.StringVar((*string)(&o.Runtime), "runtime", string(Containerd),
		"the node's `runtime`: "+strings.Join(runtimes, ", "))
	flags.StringVar(&o.Endpoint, "endpoint", "http://127.0.0.1:5050", "`URL` of the agent's registry front")
	flags.StringSliceVar(&o.Registries, "registry", nil,
		"`host` to mirror, as image references spell it; may be given again (default: "+
			"all that have no configuration of their own)")
	flags.StringVar(&o.Root, "root", "/", "`directory` where the node's file system is mounted")
	flags.StringVar(&o.Path, "path", "",
		"`path` on the node of the runtime's mirror configuration (default: the runtime's)")
	flags.StringVar(&o.RuntimeConfig, "runtime-config", "",
		"`path` on the node of containerd's configuration file, which is only read (default: the runtime's)")
	flags.StringVar(&o.Release, "runtime-version", "",
		"containerd's `version`, such as 2.4.2 (default: what it says itself, with --root /)")
	flags.StringVar(&o.StateDir, "state-dir", "/var/lib/shoal/mirror",
		"`directory` of the originals that removal restores")

	run := func(use, short string, do func(context.Context, Options) (Result, error), verb string) *cobra.Command {
		return &cobra.Command{
			Use:   use,
			Short: short,
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				o.ask(cmd.Context())
				result, err := do(cmd.Context(), o)
				return errors.Join(report(cmd.OutOrStdout(), result, verb), err)
			},
		}
	}
	var restart bool
	restarting := func(do func(Options) (Result, error)) func(context.Context, Options) (Result, error) {
		return func(ctx context.Context, o Options) (Result, error) {
			result, err := do(o)
			if err == nil && restart {
				result.Findings, err = restarted(ctx, o, result.Findings)
			}
			return result, err
		}
	}
	install := run("install", "Put the agent before the other mirrors of the runtime", restarting(Install), "changed")
	remove := run("remove", "Restore what was there before install", restarting(Remove), "restored")
	install.Flags().BoolVar(&o.FixConfigPath, "fix-config-path", false,
		"make containerd read the directory of mirrors where its configuration keeps it from that")
	for _, c := range []*cobra.Command{install, remove} {
		c.Flags().BoolVar(&restart, "restart", false,
			"restart the runtime's service, with systemctl, where a change needs it")
	}
	mirror.AddCommand(install, remove, run("status", "Show what is installed and what somebody should look at", inForce,
		"installed"))
	for _, command := range more {
		mirror.AddCommand(command(&o))
	}
	return mirror
}

// unknown is the error about a sub-command that there is none of.
func unknown(cmd *cobra.Command, name string) error {
	hint := ""
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		hint = "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return fmt.Errorf("unknown command %q for %q%s", name, cmd.CommandPath(), hint)
}

// inForce is Status, with an error where the runtime does not ask the agent.
func inForce(_ context.Context, o Options) (Result, error) {
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
		out, err := exec.CommandContext(ctx, "systemctl", "try-restart", unit).CombinedOutput()
		if err != nil {
			problems = append(problems, fmt.Errorf("restart %s: %w: %s", unit, err, strings.TrimSpace(string(out))))
		}
	}
	if len(problems) > 0 {
		return findings, errors.Join(problems...)
	}
	return slices.DeleteFunc(findings, needs), nil
}

// ask fills in what the containerd of this machine says of itself, where it is this machine's configuration that is
// meant.
func (o *Options) ask(ctx context.Context) {
	if o.Runtime != Containerd || filepath.Clean(o.Root) != "/" {
		return
	}
	program, err := exec.LookPath("containerd")
	if err != nil {
		return
	}
	if o.Release == "" {
		out, err := exec.CommandContext(ctx, program, "--version").Output()
		if err == nil && releasePattern.Match(out) {
			o.Release = string(out)
		}
	}
	config := cmp.Or(o.RuntimeConfig, paths[o.Runtime].config)
	o.dump = func() ([]byte, error) {
		return exec.CommandContext(ctx, program, "--config", config, "config", "dump").Output()
	}
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
