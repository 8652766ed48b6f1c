package guard

import (
	"errors"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/node/internal/mirror"
)

// Command is `shoal-node mirror guard`. m is filled from the flags of `shoal-node mirror`.
func Command(m *mirror.Options) *cobra.Command {
	o := Options{}
	cmd := &cobra.Command{
		Use:   "guard",
		Short: "Keep the mirror installed while the agent answers, and end an agent that does not",
		Long: `Keep the mirror installed while the agent answers, and end an agent that does not.

It runs beside the agent, as a process of its own, until it is told to end. While the agent answers, the guard keeps the
mirror installed. An agent whose port accepts connections and does not answer holds up every pull of the node: the guard
ends such an agent after --patience, so that pulls go on from the registry, and removes the mirror if that does not
help. While the agent says itself that it cannot serve, the mirror is removed as well. Whatever started the agent has to
start it again. When the guard ends it removes the mirror.`,
		Args: view.Arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Patience == 0 {
				return errors.New("guard: patience 0s: want how long an agent may be silent, such as 5s")
			}
			o.Mirror = *m
			o.Mirror.Ask(cmd.Context())
			o.Logger = slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), nil)).With("part", "guard")
			return Run(cmd.Context(), o)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Health, "health", "http://127.0.0.1:5051/healthz",
		"`URL` of the agent's liveness; an answer of 503 says that the agent cannot serve")
	flags.BoolVar(&m.FixConfigPath, "fix-config-path", false,
		"make containerd read the directory of mirrors where its configuration keeps it from that")
	flags.DurationVar(&o.Patience, "patience", 5*time.Second,
		"`time` for which an agent may be silent before it is ended")
	return cmd
}
