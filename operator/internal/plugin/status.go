package plugin

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/operator/internal/survey"
)

func (p *plugin) statusCommand() *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use: "status", Short: "Say how the cache is: agents, hits, bytes saved, pins, and what is wrong",
		Args: view.Arguments(0, 0),
		Example: "  kubectl shoal status\n  kubectl shoal status --wait --timeout 10m\n" +
			"  kubectl shoal status -o json | jq .sums.saved",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := p.within(cmd.Context(), wait)
			defer cancel()
			s, err := p.status(ctx)
			if err != nil {
				return p.late(ctx, err)
			}
			if wait && !settled(s) {
				p.say("waiting until nothing is wrong, for %s at most", view.Duration(p.timeout))
				told := ""
				err = p.until(ctx, func(ctx context.Context) (bool, error) {
					now, err := p.status(ctx)
					if err != nil {
						return false, err // what is known from before is said at the end
					}
					s = now
					if wrong := s.Wrong(); wrong != told {
						told = wrong
						p.say("  still wrong: %s", wrong)
					}
					return settled(s), nil
				})
			}
			if err != nil && !isTimeout(err) {
				return err
			}
			printed := p.print(s, func(t *view.Text) { p.writeState(t, s) })
			return well(cmp.Or(printed, err), !survey.Grave(s.Findings))
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until nothing is wrong")
	return cmd
}

// settled reports whether agents run, as far as the user may know, and nothing is wrong.
func settled(s survey.State) bool {
	return (s.Agents > 0 || unseen(s) && s.Admitted > 0) && !survey.Grave(s.Findings)
}

// unseen reports whether the user may not see the agents' pods.
func unseen(s survey.State) bool { return slices.Contains(s.Hidden, survey.HiddenPods) }

func (p *plugin) status(ctx context.Context) (survey.State, error) {
	c, err := p.look(ctx)
	if err != nil {
		return survey.State{}, err
	}
	now := p.clock.Now()
	return survey.StateOf(c, survey.Diagnose(c, nil, now), now), nil
}

func (p *plugin) writeState(t *view.Text, s survey.State) {
	zones := fmt.Sprintf("%d zones", len(s.Zones))
	if len(s.Zones) == 1 {
		zones = "one zone"
	}
	agents := fmt.Sprintf("%d running, %d ready, %d admitted, in %s", s.Agents, s.Ready, s.Admitted, zones)
	switch {
	case unseen(s):
		agents = fmt.Sprintf("%d admitted, in %s", s.Admitted, zones)
	case s.Agents == 0:
		agents = "none runs"
	}
	for _, line := range [][2]string{
		{"Agents", agents},
		{"Hits", fmt.Sprintf("%s of %d requests were answered from the node's own disk",
			view.Ratio(s.Sums.Hits, s.Sums.Requests), s.Sums.Requests)},
		{"Saved", fmt.Sprintf("%s did not have to be read from registries or the hub; %s were, and %s came from peers",
			view.Bytes(s.Sums.Saved), view.Bytes(s.Sums.Upstream), view.Bytes(s.Sums.Peers))},
		{"Disk", fmt.Sprintf("%s of %s used, %s pinned", view.Bytes(s.Sums.Bytes), view.Bytes(s.Sums.Capacity),
			view.Bytes(s.Sums.Pinned))},
		{"Pins", fmt.Sprintf("%d/%d ready", s.Whole, s.Pins)},
	} {
		t.Say("%-8s %s\n", line[0]+":", line[1])
	}
	for _, what := range s.Hidden {
		t.Say("%s you may not list %s, so nothing is said about them\n", p.colour(yellow, "!"), what)
	}
	if len(s.Nodes) > 0 && (len(s.Nodes) <= 20 || p.output == view.Wide) {
		t.Say("\n")
		rows := [][]string{{"NODE", "ZONE", "ADMITTED", "MIRROR", "USED", "HITS", "FROM PEERS", "FROM REGISTRY",
			"SAVED", "REPORTED"}}
		if p.output == view.Wide {
			rows[0] = append(rows[0], "CAPACITY", "VERSION")
		}
		for _, n := range s.Nodes {
			reported, bytes := "never", func(int64) string { return "-" } // of which nothing is known
			if n.Reported >= 0 {
				reported, bytes = view.Ago(n.Reported), view.Bytes
			}
			admitted, mirror := strconv.FormatBool(n.Admitted), n.Mirror
			if s.Agents == 0 && !unseen(s) { // what the API server holds of them is from before
				admitted, mirror = "", ""
			}
			row := []string{n.Name, n.Zone, admitted, mirror, bytes(n.Used),
				view.Ratio(n.Hits, n.Requests), bytes(n.Peers), bytes(n.Upstream), bytes(n.Saved), reported}
			if p.output == view.Wide {
				row = append(row, bytes(n.Capacity), n.Version)
			}
			rows = append(rows, row)
		}
		t.Table(rows)
	}
	if len(s.Findings) > 0 {
		t.Say("\n")
	}
	p.writeFindings(t, s.Findings)
}

func (p *plugin) writeFindings(t *view.Text, all []survey.Finding) {
	for _, g := range survey.Together(all) {
		mark := p.colour(yellow, "!")
		if g.Grave {
			mark = p.colour(red, "✗")
		}
		where := ""
		if len(g.Nodes) > 0 {
			where = g.On() + ": "
		}
		t.Say("%s %s\n    mend: %s\n    more: %s\n", mark, view.Line(g.Reason+": "+where+g.Message), view.Line(g.Mend),
			view.Line(g.Link))
	}
}
