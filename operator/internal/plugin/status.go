package plugin

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	apimeta "k8s.io/apimachinery/pkg/api/meta"

	"github.com/spf13/cobra"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/api/view"
)

// state is what status prints.
type state struct {
	Agents   int       `json:"agents"`
	Ready    int       `json:"ready"`
	Admitted int       `json:"admitted"`
	Zones    []string  `json:"zones"`
	Sums     sums      `json:"sums"`
	Pins     int       `json:"pins"`
	Whole    int       `json:"pinsReady"`
	Nodes    []nodeRow `json:"nodes"`
	Findings []finding `json:"findings"`
	Hidden   []string  `json:"notReadable,omitempty"`
}

type nodeRow struct {
	Name     string `json:"name"`
	Zone     string `json:"zone,omitempty"`
	Admitted bool   `json:"admitted"`
	Mirror   string `json:"mirror"`
	Used     int64  `json:"used"`
	Capacity int64  `json:"capacity"`
	Hits     int64  `json:"hits"`
	Requests int64  `json:"requests"`
	Peers    int64  `json:"fromPeers"`
	Upstream int64  `json:"fromUpstream"`
	Saved    int64  `json:"saved"`
	Version  string `json:"version,omitempty"`
	// Reported is how long ago the agent reported, by the API server's clock; -1: never.
	Reported time.Duration `json:"reported"`
}

func stateOf(c *cluster, found []finding, now time.Time) state {
	s := state{Agents: len(running(c.Agents, "")), Sums: c.sums(), Pins: len(c.Pins), Findings: found, Hidden: c.Hidden}
	for _, p := range running(c.Agents, "") {
		whole := true
		for _, container := range p.Status.ContainerStatuses {
			whole = whole && container.Ready
		}
		if whole {
			s.Ready++
		}
	}
	for i := range c.Pins {
		if apimeta.IsStatusConditionTrue(c.Pins[i].Status.Conditions, v1alpha1.ConditionReady) {
			s.Whole++
		}
	}
	caches := map[string]*v1alpha1.NodeCache{}
	for i := range c.Caches {
		caches[c.Caches[i].Name] = &c.Caches[i]
	}
	for i := range c.Peers {
		p := &c.Peers[i]
		r := nodeRow{Name: p.Name, Zone: p.Spec.Zone, Admitted: p.IsAdmitted(), Reported: -1}
		if r.Admitted {
			s.Admitted++
		}
		if !slices.Contains(s.Zones, r.Zone) {
			s.Zones = append(s.Zones, r.Zone)
		}
		if n := caches[p.Name]; n != nil {
			st := n.Status
			r.Used, r.Capacity, r.Version = sizeOf(st.Usage.Bytes), sizeOf(st.Usage.Capacity), st.Version
			r.Hits, r.Requests = st.Counters.Hits, st.Counters.Hits+st.Counters.Misses
			r.Peers, r.Upstream, r.Saved = sizeOf(st.Counters.PeerBytes), sizeOf(st.Counters.UpstreamBytes),
				sizeOf(st.Counters.SavedBytes)
			if cond := apimeta.FindStatusCondition(st.Conditions, v1alpha1.ConditionMirrorConfigured); cond != nil {
				r.Mirror = cond.Reason
			}
			if st.ReportedAt != nil {
				r.Reported = max(0, now.Sub(st.ReportedAt.Time))
			}
		}
		s.Nodes = append(s.Nodes, r)
	}
	slices.Sort(s.Zones)
	slices.SortFunc(s.Nodes, func(a, b nodeRow) int { return compare(a.Name, b.Name) })
	return s
}

func (p *plugin) statusCommand() *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use: "status", Short: "Say how the cache is: agents, hits, bytes saved, pins, and what is wrong",
		Args: arguments(0, 0),
		Example: "  kubectl shoal status\n  kubectl shoal status --wait --timeout 10m\n" +
			"  kubectl shoal status -o json | jq .sums.saved",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := p.status(cmd.Context())
			if wait && err == nil && (s.Agents == 0 || grave(s.Findings)) {
				p.say("waiting until nothing is wrong, for %s at most", view.Duration(p.timeout))
				told := ""
				err = p.until(cmd.Context(), func(ctx context.Context) (bool, error) {
					var err error
					s, err = p.status(ctx)
					if now := s.wrong(); err == nil && now != told {
						told = now
						p.say("  still wrong: %s", now)
					}
					return err == nil && s.Agents > 0 && !grave(s.Findings), err
				})
			}
			if err != nil && !isTimeout(err) {
				return err
			}
			if printed := p.print(s, func(w io.Writer) error { return p.writeState(w, s) }); printed != nil {
				return printed
			}
			if err == nil && grave(s.Findings) {
				return errNotWell
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until nothing is wrong")
	return cmd
}

// wrong names in one line what is wrong.
func (s state) wrong() string {
	var said []string
	for _, g := range together(s.Findings) {
		if g.Grave {
			said = append(said, g.Reason+" ("+g.on()+")")
		}
	}
	if s.Agents == 0 {
		said = append(said, "no agent runs")
	}
	return cmp.Or(strings.Join(said, ", "), "nothing")
}

func (p *plugin) status(ctx context.Context) (state, error) {
	c, err := p.look(ctx)
	if err != nil {
		return state{}, err
	}
	return stateOf(c, diagnose(c, nil, time.Now()), time.Now()), nil
}

func (p *plugin) writeState(w io.Writer, s state) error {
	zones := fmt.Sprintf("%d zones", len(s.Zones))
	if len(s.Zones) == 1 {
		zones = "one zone"
	}
	for _, line := range [][2]string{
		{"Agents", fmt.Sprintf("%d running, %d ready, %d admitted, in %s", s.Agents, s.Ready, s.Admitted, zones)},
		{"Hits", fmt.Sprintf("%s of %d requests were answered from the node's own disk",
			view.Ratio(s.Sums.Hits, s.Sums.Requests), s.Sums.Requests)},
		{"Saved", fmt.Sprintf("%s need not be read from registries; %s were, %s came from peers",
			view.Bytes(s.Sums.Saved),
			view.Bytes(s.Sums.Upstream), view.Bytes(s.Sums.Peers))},
		{"Disk", fmt.Sprintf("%s of %s used, %s pinned", view.Bytes(s.Sums.Bytes), view.Bytes(s.Sums.Capacity),
			view.Bytes(s.Sums.Pinned))},
		{"Pins", fmt.Sprintf("%d/%d ready", s.Whole, s.Pins)},
	} {
		if _, err := fmt.Fprintf(w, "%-8s %s\n", line[0]+":", line[1]); err != nil {
			return err
		}
	}
	for _, what := range s.Hidden {
		if _, err := fmt.Fprintf(w, "%s you may not list %s, so nothing is said about them\n", p.colour(yellow, "!"),
			what); err != nil {
			return err
		}
	}
	if len(s.Nodes) > 0 && (len(s.Nodes) <= 20 || p.output == view.Wide) {
		_, _ = fmt.Fprintln(w)
		rows := [][]string{{"NODE", "ZONE", "ADMITTED", "MIRROR", "USED", "HITS", "FROM PEERS", "FROM REGISTRY",
			"SAVED", "REPORTED"}}
		if p.output == view.Wide {
			rows[0] = append(rows[0], "CAPACITY", "VERSION")
		}
		for _, n := range s.Nodes {
			reported := "never"
			if n.Reported >= 0 {
				reported = view.Ago(n.Reported)
			}
			row := []string{n.Name, n.Zone, strconv.FormatBool(n.Admitted), n.Mirror, view.Bytes(n.Used),
				view.Ratio(n.Hits, n.Requests),
				view.Bytes(n.Peers), view.Bytes(n.Upstream), view.Bytes(n.Saved), reported}
			if p.output == view.Wide {
				row = append(row, view.Bytes(n.Capacity), n.Version)
			}
			rows = append(rows, row)
		}
		if err := view.Table(w, rows); err != nil {
			return err
		}
	}
	if len(s.Findings) > 0 {
		_, _ = fmt.Fprintln(w)
	}
	return p.writeFindings(w, s.Findings)
}

func (p *plugin) writeFindings(w io.Writer, all []finding) error {
	for _, g := range together(all) {
		mark := p.colour(yellow, "!")
		if g.Grave {
			mark = p.colour(red, "✗")
		}
		where := ""
		if len(g.nodes) > 0 {
			where = g.on() + ": "
		}
		if _, err := fmt.Fprintf(w, "%s %s: %s%s\n    mend: %s\n    more: %s\n", mark, g.Reason, where,
			strings.TrimSpace(g.Message), g.Mend, g.Link); err != nil {
			return err
		}
	}
	return nil
}

// group is a finding that several nodes have in common.
type group struct {
	finding
	nodes []string
}

// together joins findings that differ by the node alone.
func together(all []finding) []group {
	var groups []group
	for _, f := range all {
		i := slices.IndexFunc(groups, func(g group) bool {
			return g.Reason == f.Reason && g.Grave == f.Grave && g.Message == f.Message &&
				g.general() == f.general() && len(g.nodes) > 0 && f.Node != ""
		})
		if i < 0 {
			groups = append(groups, group{finding: f})
			i = len(groups) - 1
		}
		if f.Node != "" {
			groups[i].nodes = append(groups[i].nodes, f.Node)
		}
	}
	return groups
}

// general is a mend without the names of its node and pod: what it is for any of them.
func (f finding) general() string {
	if f.Node == "" {
		return f.Mend
	}
	return cmp.Or(mends[f.Reason], f.Mend)
}

// on names the nodes of a group, the first of them where they are many.
func (g group) on() string {
	const most = 5
	if n := len(g.nodes); n > most {
		return fmt.Sprintf("%s and %d more", strings.Join(g.nodes[:most], ", "), n-most)
	}
	return cmp.Or(strings.Join(g.nodes, ", "), "cluster")
}
