package plugin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/operator/internal/survey"
)

// place is what one node holds of an image.
type place struct {
	Node     string `json:"node"`
	Complete bool   `json:"complete"`
	Held     int64  `json:"held"`
	Parts    int    `json:"parts"`
	Known    int    `json:"knownParts"`
	Digest   string `json:"digest,omitempty"`
	Problem  string `json:"problem,omitempty"`
}

// nodes are those that a verb asks.
type nodes struct {
	running []corev1.Pod // their agents
	absent  []string     // those that take part, and have no agent that runs
}

// errAbsent stands for the answer of a node without an agent.
var errAbsent = errors.New("no agent runs there")

// nodes are all of them, or one. It fails where no agent runs.
func (p *plugin) nodes(ctx context.Context, node string) (nodes, error) {
	c, err := p.look(ctx)
	if err != nil {
		return nodes{}, err
	}
	return nodesOf(c, node)
}

func nodesOf(c *survey.Cluster, node string) (nodes, error) {
	n := nodes{running: survey.Running(c.Agents, node)}
	switch {
	case len(n.running) > 0:
		if node == "" {
			n.absent = absent(c)
		}
		return n, nil
	case slices.Contains(c.Hidden, survey.HiddenPods):
		return n, &survey.NotAllowedError{What: fmt.Sprintf("you may not list pods in namespace %s, where Shoal's "+
			"agents are looked for; --agents-namespace names another", c.Namespace)}
	case node != "":
		return n, fmt.Errorf("no agent runs on node %q", node)
	}
	return n, fmt.Errorf("no agent runs in this cluster; see kubectl shoal check")
}

// absent are the nodes with a Peer or an agent's pod, and without an agent that runs.
func absent(c *survey.Cluster) []string {
	names := map[string]bool{}
	for _, peer := range c.Peers {
		names[peer.Name] = true
	}
	for _, pod := range c.Agents {
		names[pod.Spec.NodeName] = true
	}
	for _, pod := range survey.Running(c.Agents, "") {
		delete(names, pod.Spec.NodeName)
	}
	delete(names, "") // of a pod that waits for its node
	return slices.Sorted(maps.Keys(names))
}

func (p *plugin) whereCommand() *cobra.Command {
	return &cobra.Command{
		Use: "where IMAGE|DIGEST", Short: "Say which nodes hold an image, or a part of it", Args: view.Arguments(1, 1),
		Long: `where asks every agent what it holds of an image. A tag is what each agent was told last, so nodes may
name different digests after a tag has moved. Nodes that do not answer are counted and named. It exits with 1 where no
node holds all of it.`,
		Example: "  kubectl shoal where docker.io/library/debian:stable-slim\n  kubectl shoal where sha256:4b…",
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := view.Named(program, args[0])
			if err != nil {
				return err
			}
			nodes, err := p.nodes(cmd.Context(), "")
			if err != nil {
				return err
			}
			places, err := p.where(cmd.Context(), nodes, name)
			if err != nil {
				return err
			}
			err = p.print(places, func(t *view.Text) { p.writePlaces(t, name, places) })
			return well(err, slices.ContainsFunc(places, func(p place) bool { return p.Complete }))
		},
	}
}

func (p *plugin) where(ctx context.Context, nodes nodes, name string) ([]place, error) {
	answers, err := askNodes[view.Image](ctx, p, nodes, view.ImagePath, url.Values{"name": {name}})
	if err != nil {
		return nil, err
	}
	var all []place
	for _, a := range answers {
		at := place{Node: a.Node, Complete: a.Value.Complete, Held: a.Value.Held(), Known: len(a.Value.Parts),
			Digest: a.Value.Digest}
		for _, part := range a.Value.Parts {
			if part.Held {
				at.Parts++
			}
		}
		if a.Err != nil {
			at.Problem = survey.Short(a.Err)
		}
		all = append(all, at)
	}
	return all, nil
}

// writePlaces lists the nodes that hold something, or that could not be asked; -o wide lists all.
func (p *plugin) writePlaces(t *view.Text, name string, places []place) {
	rows := [][]string{{"NODE", "HOLDS", "BYTES", "PARTS", "DIGEST"}}
	holders, idle, silent := 0, 0, 0
	var below asides
	for _, at := range places {
		row := []string{at.Node, "nothing", "", "", at.Digest}
		if at.Known > 0 {
			row[2], row[3] = view.Bytes(at.Held), fmt.Sprintf("%d/%d", at.Parts, at.Known)
		}
		switch {
		case at.Problem != "":
			row[1] = below.cell(at.Node, "no answer", at.Problem)
			silent++
		case at.Complete:
			row[1] = "all"
			holders++
		case at.Parts > 0:
			row[1] = "a part"
		default:
			idle++
			if p.output != view.Wide {
				continue
			}
		}
		rows = append(rows, row)
	}
	t.Say("All of %s is on %d of %s.\n", name, holders, view.Count(len(places), "node"))
	if silent > 0 {
		t.Say("No answer came from %s, which may hold it too.\n", view.Count(silent, "node"))
	}
	if idle == len(places) {
		said := "No node holds a part of it."
		if !strings.Contains(name, "@") && digest.Digest(name).Validate() != nil { // then there is a tag
			said += " A node knows the tags that were asked of it."
		}
		t.Say("%s\n", said)
	}
	if len(rows) > 1 {
		t.Table(rows)
	}
	below.write(t)
}

// listed is a blob and the nodes that hold it.
type listed struct {
	view.Blob
	Nodes []string `json:"nodes"`
}

func (p *plugin) lsCommand() *cobra.Command {
	var node string
	cmd := &cobra.Command{
		Use: "ls", Short: "List what the nodes hold",
		Args:    view.Arguments(0, 0, "ls --node NODE is of one node, and where IMAGE says which nodes hold an image"),
		Example: "  kubectl shoal ls\n  kubectl shoal ls --node node1 -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			nodes, err := p.nodes(cmd.Context(), node)
			if err != nil {
				return err
			}
			answers, err := askNodes[[]view.Blob](cmd.Context(), p, nodes, view.BlobsPath, nil)
			if err != nil {
				return err
			}
			by, silent := map[string]*listed{}, false
			for _, a := range answers {
				if a.Err != nil {
					silent = true
					p.say("%s: %s", a.Node, survey.Short(a.Err))
				}
				for _, b := range a.Value {
					l := by[b.Digest]
					if l == nil {
						l = &listed{Blob: b}
						by[b.Digest] = l
					}
					l.Nodes = append(l.Nodes, a.Node)
					l.Pinned = l.Pinned || b.Pinned
				}
			}
			all := make([]listed, 0, len(by))
			for _, l := range by {
				all = append(all, *l)
			}
			slices.SortFunc(all, func(a, b listed) int {
				return cmp.Or(cmp.Compare(len(b.Nodes), len(a.Nodes)), cmp.Compare(b.Size, a.Size),
					cmp.Compare(a.Digest, b.Digest))
			})
			return well(p.print(all, func(t *view.Text) { p.writeListed(t, all) }), !silent)
		},
	}
	p.nodeFlag(cmd, &node, "of this node only")
	return cmd
}

func (p *plugin) writeListed(t *view.Text, all []listed) {
	rows := [][]string{{"DIGEST", "SIZE", "NODES", "PINNED", "TYPE"}}
	if p.output == view.Wide {
		rows[0] = append(rows[0], "ON")
	}
	for _, l := range all {
		row := []string{l.Digest, view.Bytes(l.Size), fmt.Sprint(len(l.Nodes)),
			map[bool]string{true: "yes", false: "no"}[l.Pinned], l.MediaType}
		if p.output == view.Wide {
			row = append(row, strings.Join(l.Nodes, ","))
		}
		rows = append(rows, row)
	}
	t.Table(rows)
}

// reason is a pull of a node.
type reason struct {
	Node string   `json:"node"`
	Why  []string `json:"why"`
	view.Pull
}

func (p *plugin) whyCommand() *cobra.Command {
	var node string
	var most int
	cmd := &cobra.Command{
		Use: "why [IMAGE]", Short: "Say why pulls were slow, or did not come from the cache",
		Args: view.Arguments(0, 1),
		Long: `why asks agents for the pulls of the last two hours: how long the registry took to name the tag and to
let the caller in, how long it took to find other nodes and to get a plan, when the first byte went out, and what came
from where.`,
		Example: "  kubectl shoal why docker.io/library/debian:stable-slim\n  kubectl shoal why --node node1",
		RunE: func(cmd *cobra.Command, args []string) error {
			if most < 1 {
				return fmt.Errorf("--most %d: want 1 or more", most)
			}
			name, whole := "", "" // as he writes it, for that may be a repository of which any tag will do
			if len(args) > 0 {
				var err error
				if name = args[0]; name != "" {
					whole, err = view.Named(program, name)
				}
				if err != nil {
					return err
				}
			}
			all, silent, err := p.reasons(cmd.Context(), node, name)
			if err != nil {
				return err
			}
			return well(p.writeReasons(all[:min(len(all), most)], whole, silent), !silent)
		},
	}
	p.nodeFlag(cmd, &node, "of this node only")
	cmd.Flags().IntVar(&most, "most", 5, "how many pulls to show, the newest first")
	return cmd
}

// reasons are the pulls of a name that agents remember, the newest first. silent: some agents do not answer.
func (p *plugin) reasons(ctx context.Context, node, name string) (all []reason, silent bool, err error) {
	nodes, err := p.nodes(ctx, node)
	if err != nil {
		return nil, false, err
	}
	answers, err := askNodes[[]view.Pull](ctx, p, nodes, view.PullsPath, nil)
	if err != nil {
		return nil, false, err
	}
	all = []reason{}
	for _, a := range answers {
		if a.Err != nil {
			silent = true
			p.say("%s: %s", a.Node, survey.Short(a.Err))
		}
		for _, pull := range a.Value {
			if pull.Matches(name) {
				all = append(all, reason{Node: a.Node, Why: pull.Why(), Pull: pull})
			}
		}
	}
	slices.SortFunc(all, func(a, b reason) int { return b.Started.Compare(a.Started) })
	return all, silent, nil
}

func (p *plugin) writeReasons(all []reason, name string, silent bool) (err error) {
	if len(all) == 0 {
		if !p.output.ForPeople() {
			err = p.print(all, nil)
		}
		of, misspelt := "", ""
		if name != "" {
			of, misspelt = " of "+name, ", or the name is misspelt"
		}
		if silent {
			p.say("no agent that answers remembers a pull%s in the last two hours; the others may: "+
				"see kubectl shoal check", of)
		} else {
			p.say("no agent remembers a pull%s in the last two hours. Either it was longer ago, or the runtime did "+
				"not ask the agent: see kubectl shoal check%s. What a pin or a preheat brings is no pull", of, misspelt)
		}
		return cmp.Or(err, errNotWell)
	}
	return p.print(all, func(t *view.Text) {
		for _, r := range all {
			t.Pull(r.Node, r.Pull)
		}
	})
}
