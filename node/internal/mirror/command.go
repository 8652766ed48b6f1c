package mirror

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// Command is `shoal-node mirror` with its sub-commands.
func Command() *cobra.Command {
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

  containerd     <host>/hosts.toml in the first directory of config_path (/etc/containerd/certs.d); all registries: _default
  microk8s       the same in /var/snap/microk8s/current/args/certs.d
  talos          the same in /etc/cri/conf.d/hosts
  cri-o          ` + dropIn + ` in /etc/containers/registries.conf.d, for podman too; registries have to be named
  k3s, rke2      /etc/rancher/<k3s or rke2>/registries.yaml; the service has to be restarted`,
		Args: cobra.NoArgs,
	}
	flags := mirror.PersistentFlags()
	flags.StringVar((*string)(&o.Runtime), "runtime", string(Containerd), "the node's `runtime`: "+strings.Join(runtimes, ", "))
	flags.StringVar(&o.Endpoint, "endpoint", "http://127.0.0.1:5050", "`URL` of the agent's registry front")
	flags.StringSliceVar(&o.Registries, "registry", nil, "`host` to mirror, as image references spell it; may be given again (default: all that have no configuration of their own)")
	flags.StringVar(&o.Root, "root", "/", "`directory` where the node's file system is mounted")
	flags.StringVar(&o.Path, "path", "", "`path` on the node of the runtime's mirror configuration (default: the runtime's)")
	flags.StringVar(&o.RuntimeConfig, "runtime-config", "", "`path` on the node of containerd's configuration file, which is only read (default: the runtime's)")
	flags.StringVar(&o.StateDir, "state-dir", "/var/lib/shoal/mirror", "`directory` of the originals that removal restores")

	run := func(use, short string, do func(Options) (Result, error), verb string) *cobra.Command {
		return &cobra.Command{
			Use:   use,
			Short: short,
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				result, err := do(o)
				return errors.Join(err, report(cmd.OutOrStdout(), result, verb))
			},
		}
	}
	mirror.AddCommand(
		run("install", "Put the agent before the other mirrors of the runtime", Install, "changed"),
		run("remove", "Restore what was there before install", Remove, "restored"),
		run("status", "Show what is installed and what somebody should look at", Status, "installed"),
	)
	return mirror
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
