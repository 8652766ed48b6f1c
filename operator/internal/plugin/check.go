package plugin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/operator/internal/survey"
)

func isTimeout(err error) bool { return errors.Is(err, errTimedOut) }

// checked is what check prints.
type checked struct {
	Looked   []looked         `json:"lookedAt"`
	Findings []survey.Finding `json:"findings"`
}

// looked is something that was looked at. Well: nothing is amiss with it.
type looked struct {
	What string `json:"what"`
	Well bool   `json:"well"`
}

func (r *checked) looked(well bool, format string, args ...any) {
	r.Looked = append(r.Looked, looked{fmt.Sprintf(format, args...), well})
}

func (p *plugin) checkCommand() *cobra.Command {
	var pre, wait bool
	nodes := &preflight{}
	cmd := &cobra.Command{
		Use: "check", Short: "Look for all that keeps the cache from working, and say how to mend it",
		Args: view.Arguments(0, 0),
		Long: `check asks the API server and every agent, and prints a line for each thing that is amiss, with its mend
and a link. It exits with 1 where pulls suffer. With --pre it looks at what an installation needs before there is one.

With --pre --image it also looks at every node from within: a pod of that image, which is shoal-node's, reads how the
node's containerd is configured. The pod may read /etc/containerd and nothing else, lives for two minutes at most, and
is removed, whatever happens here. That also shows whether the node gets the image.`,
		Example: "  kubectl shoal check\n  kubectl shoal check --pre\n" +
			"  kubectl shoal check --pre --image registry.example/shoal/shoal-node:1.0\n" +
			"  kubectl shoal check -o json | jq '.findings[] | select(.grave)'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			look := p.check
			switch {
			case pre && wait && nodes.image != "":
				return errors.New("--image looks once: leave --wait out")
			case pre:
				look = func(ctx context.Context) (checked, error) { return p.checkBefore(ctx, nodes) }
			case nodes.image != "":
				return errors.New("--image is for --pre: agents that run look at their nodes themselves")
			}
			return p.runCheck(cmd.Context(), look, wait)
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until nothing is wrong")
	cmd.Flags().BoolVar(&pre, "pre", false, "before an installation: what the cluster lacks for one")
	cmd.Flags().StringVar(&nodes.image, "image", "",
		"with --pre: `name` of shoal-node's image, of which a pod looks at each node")
	cmd.Flags().StringSliceVar(&nodes.secrets, "pull-secret", nil,
		"with --image: `secret` that the image is pulled with")
	return cmd
}

// runCheck looks, again and again where it is to wait until nothing is wrong, and prints what was found last.
func (p *plugin) runCheck(whole context.Context, look func(context.Context) (checked, error), wait bool) error {
	ctx, cancel := p.within(whole, wait)
	defer cancel()
	r, err := look(ctx)
	if err == nil {
		err = whole.Err() // what is broken off finds fault with everything
	}
	if err != nil {
		return p.late(ctx, err)
	}
	if wait && survey.Grave(r.Findings) {
		p.say("waiting until nothing is wrong, for %s at most", view.Duration(p.timeout))
		err = p.until(ctx, func(ctx context.Context) (bool, error) {
			now, err := look(ctx)
			if err == nil { // what is known last is said, also where the time was over in the middle of a look
				r = now
			}
			return err == nil && !survey.Grave(r.Findings), err
		})
	}
	if err != nil && !isTimeout(err) {
		return err
	}
	printed := p.print(r, func(t *view.Text) { p.writeChecked(t, r) })
	return well(cmp.Or(printed, err), !survey.Grave(r.Findings))
}

func (p *plugin) writeChecked(t *view.Text, r checked) {
	for _, l := range r.Looked {
		mark := p.colour(green, "✓")
		if !l.Well {
			mark = p.colour(yellow, "!")
		}
		t.Say("%s %s\n", mark, view.Line(l.What))
	}
	p.writeFindings(t, r.Findings)
	if len(r.Findings) == 0 {
		t.Say("Nothing is amiss.\n")
	}
}

// check looks at all.
func (p *plugin) check(ctx context.Context) (checked, error) {
	c, err := p.look(ctx)
	if err != nil {
		return checked{}, err
	}
	pods := survey.Running(c.Agents, "")
	answers, shut := askAll(ctx, p, pods, survey.AskHealth)
	r := checked{Findings: survey.Diagnose(c, answers, p.clock.Now())}
	r.looked(true, "API server: %s, %s, %s", view.Count(len(c.Peers), "peer"), view.Count(len(c.Caches), "node cache"),
		view.Count(len(c.Pins), "pin"))
	if ready, all, seen := c.ReadyOperators(); seen {
		r.looked(ready == all && all > 0, "Operators that are ready: %d of %d", ready, all)
	}
	r.areas(answers)
	r.runtimes(c)
	r.registries(answers)
	for _, what := range c.Hidden {
		r.looked(false, "You may not list %s, so nothing is said about them", what)
	}
	if shut != nil {
		r.looked(false, "Agents: not asked: %s", explain(shut))
	}
	return r, nil
}

// areas says of each thing that keeps a cache from working on how many nodes it is well.
func (r *checked) areas(answers []survey.Answer[survey.Shown]) {
	nodes, silent := len(answers), map[string]bool{}
	if nodes == 0 {
		return
	}
	for _, a := range answers { // also those of nodes that are down, of which no finding says that they are silent
		if a.Err != nil && !errors.Is(a.Err, view.ErrNotShown) {
			silent[a.Node] = true
		}
	}
	for i, area := range []struct {
		what    string
		reasons []string
	}{
		{"run and answer", []string{survey.ReasonAgentSilent, survey.ReasonAgentNotReady}},
		{"are admitted and connected to the others",
			[]string{survey.ReasonNotAdmitted, survey.ReasonNotRegistered, survey.ReasonNoPeers}},
		{"have reported lately, by a clock that is right", []string{survey.ReasonNotReported, survey.ReasonClockOff}},
		{"write to their disks", []string{survey.ReasonDiskFull, v1alpha1.ReasonDiskFails}},
	} {
		bad := r.nodesWith(area.reasons)
		if i == 0 {
			maps.Copy(bad, silent)
		}
		r.looked(len(bad) == 0, "Agents that %s: %d of %d", area.what, max(0, nodes-len(bad)), nodes)
	}
}

// registries names those that every agent reaches.
func (r *checked) registries(answers []survey.Answer[survey.Shown]) {
	reached := map[string]bool{}
	for _, a := range answers {
		for _, registry := range a.Value.Registries {
			reached[registry.Host] = reached[registry.Host] || registry.Problem != ""
		}
	}
	for _, host := range slices.Sorted(maps.Keys(reached)) {
		if !reached[host] {
			r.looked(true, "Registry %s: every agent reaches it", host)
		}
	}
}

// runtimes says how many runtimes ask their agents, as the agents have reported. Where none runs none is asked.
func (r *checked) runtimes(c *survey.Cluster) {
	if !c.Runs() {
		return
	}
	asking, known := 0, 0
	for i := range c.Caches {
		cond := apimeta.FindStatusCondition(c.Caches[i].Status.Conditions, v1alpha1.ConditionMirrorConfigured)
		if cond == nil || cond.Status == metav1.ConditionUnknown {
			continue
		}
		known++
		if cond.Status == metav1.ConditionTrue {
			asking++
		}
	}
	if known > 0 {
		r.looked(asking == known, "Runtimes that are set up to ask their agent: %d of %d", asking, known)
	}
}

// nodesWith are the nodes that have a finding of one of the reasons.
func (r *checked) nodesWith(reasons []string) map[string]bool {
	nodes := map[string]bool{}
	for _, f := range r.Findings {
		if f.Node != "" && slices.Contains(reasons, f.Reason) {
			nodes[f.Node] = true
		}
	}
	return nodes
}

// agentsNamespace is where the agents are, or will be.
func (p *plugin) agentsNamespace() string { return cmp.Or(p.system, survey.DefaultNamespace) }

// minVersion is the oldest minor version of Kubernetes 1 that the chart takes.
const minVersion = 32

// checkBefore looks at what an installation needs.
func (p *plugin) checkBefore(ctx context.Context, within *preflight) (checked, error) {
	if err := p.connect(); err != nil {
		return checked{}, err
	}
	var r checked
	d := &diagnosis{found: []survey.Finding{}} // a list also where nothing is amiss, for those who read JSON
	api, err := discovery.NewDiscoveryClientForConfig(p.config)
	if err != nil {
		return r, err
	}
	version, err := api.ServerVersion()
	if err != nil {
		return r, fmt.Errorf("reach the API server: %w", err)
	}
	minor, _ := strconv.Atoi(strings.TrimRight(version.Minor, "+"))
	r.looked(minor >= minVersion, "API server: Kubernetes %s", version.GitVersion)
	if minor < minVersion {
		d.before(true, "KubernetesTooOld", "", fmt.Sprintf("this is Kubernetes %s, and the chart needs 1.%d",
			version.GitVersion, minVersion), "upgrade the cluster")
	}
	if err := p.rights(ctx, d, &r); err != nil {
		return r, err
	}
	var nodes corev1.NodeList
	switch err := p.api.List(ctx, &nodes); {
	case apierrors.IsForbidden(err):
		r.looked(false, "You may not list nodes, so nothing is said about them")
	case err != nil:
		return r, err
	}
	namespace := p.agentsNamespace()
	within.api, within.namespace, within.timeout = p.api, namespace, p.timeout
	var ns corev1.Namespace
	switch err := p.api.Get(ctx, types.NamespacedName{Name: namespace}, &ns); {
	case apierrors.IsNotFound(err):
		within.namespace = ""
		d.before(false, "NamespaceMissing", "", fmt.Sprintf("there is no namespace %s yet", namespace),
			"kubectl create namespace "+namespace)
	case apierrors.IsForbidden(err):
		r.looked(false, "You may not get namespace %s, so nothing is said about its labels", namespace)
	case err != nil:
		return r, err
	case ns.Labels["pod-security.kubernetes.io/enforce"] != "privileged":
		d.before(false, "NamespaceNotPrivileged", "",
			"where pod security is enforced by default, agents are refused: they use the node's network and folders",
			"kubectl label namespace "+namespace+" pod-security.kubernetes.io/enforce=privileged")
	}
	d.asks = p.asking(ctx)
	d.nodesBefore(ctx, nodes.Items, within, &r)
	r.Findings = d.found
	return r, nil
}

// nodesBefore looks at the nodes: from within, where there is an image and a namespace for that, and else by what they
// say of themselves.
func (d *diagnosis) nodesBefore(ctx context.Context, nodes []corev1.Node, within *preflight, r *checked) {
	seen, read := map[string]nodeLook{}, 0
	if inside := preflightNodes(nodes); within.image != "" && len(inside) > 0 {
		var err error
		if within.namespace == "" {
			err = errors.New("the namespace for their pods is not there")
		} else {
			seen, err = within.look(ctx, inside)
		}
		for _, look := range seen {
			if look.err == nil {
				read++
			}
		}
		if err != nil {
			r.looked(false, "Nodes: not looked at from within: %v", err)
		} else {
			r.looked(read == len(inside), "Nodes that were looked at from within: %d of %d", read, len(inside))
		}
	}
	for i := range nodes {
		n := &nodes[i]
		look, ok := seen[n.Name]
		if ok && look.err != nil {
			d.before(true, "NodeNotLookedAt", n.Name, "its pod could not look: "+look.err.Error(), toLook(look.err))
		}
		if !ok || look.err != nil {
			d.nodeBefore(n)
			continue
		}
		for _, f := range look.findings {
			d.before(true, f.Reason, n.Name, f.Message, survey.Mend(f.Reason))
		}
		d.pressed(n)
	}
	if rest := len(nodes) - read; rest > 0 {
		r.looked(true, "Nodes: %d, by what they say of their runtimes", rest)
	}
}

// toLook is what to do where a node's pod could not look.
func toLook(err error) string {
	if _, ok := errors.AsType[*imageError](err); ok {
		return "see that the image's name and tag are right, and that the node may pull it (--pull-secret)"
	}
	return "agents will need the same folder: mend that, or see the node's events"
}

// asking are the nodes whose agents run and say that their runtimes are set up to ask them: of those no more is to be
// guessed. Before an installation, and for who may not look, there are none.
func (p *plugin) asking(ctx context.Context) map[string]bool {
	c, err := survey.Look(ctx, p.api, p.system)
	if err != nil {
		return nil
	}
	runs := map[string]bool{}
	for _, pod := range survey.Running(c.Agents, "") {
		runs[pod.Spec.NodeName] = true
	}
	asks := map[string]bool{}
	for i := range c.Caches {
		n := &c.Caches[i]
		asks[n.Name] = runs[n.Name] &&
			apimeta.IsStatusConditionTrue(n.Status.Conditions, v1alpha1.ConditionMirrorConfigured)
	}
	return asks
}

// diagnosis gathers what is amiss before an installation.
type diagnosis struct {
	found []survey.Finding
	asks  map[string]bool // nodes whose runtimes are known to ask their agents
}

func (d *diagnosis) before(grave bool, reason, node, message, mend string) {
	d.found = append(d.found, survey.Finding{Reason: reason, Grave: grave, Node: node, Message: message, Mend: mend,
		Link: survey.Link(reason)})
}

// rights looks whether the user may install the chart.
func (p *plugin) rights(ctx context.Context, d *diagnosis, r *checked) error {
	asked, allowed := 0, 0
	for _, a := range []authorizationv1.ResourceAttributes{
		{Group: "apiextensions.k8s.io", Resource: "customresourcedefinitions", Verb: "create"},
		{Group: "rbac.authorization.k8s.io", Resource: "clusterroles", Verb: "create"},
		{Group: "rbac.authorization.k8s.io", Resource: "clusterrolebindings", Verb: "create"},
		{Group: "admissionregistration.k8s.io", Resource: "validatingadmissionpolicies", Verb: "create"},
		{Group: "apps", Resource: "daemonsets", Verb: "create", Namespace: p.agentsNamespace()},
	} {
		spec := authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &a}
		review := &authorizationv1.SelfSubjectAccessReview{Spec: spec}
		if err := p.api.Create(ctx, review); err != nil {
			return fmt.Errorf("ask what you may do: %w", err)
		}
		asked++
		if review.Status.Allowed {
			allowed++
		} else {
			d.before(true, "NotAllowed", "", fmt.Sprintf("you may not create %s", a.Resource),
				"install as somebody who may, such as cluster-admin")
		}
	}
	r.looked(allowed == asked, "Rights: you have %d of %d that helm install needs", allowed, asked)
	return nil
}

// nodeBefore looks at what a node says of itself.
func (d *diagnosis) nodeBefore(n *corev1.Node) {
	info := n.Status.NodeInfo
	runtime, release, _ := strings.Cut(info.ContainerRuntimeVersion, "://")
	major, rest, _ := strings.Cut(release, ".")
	minor, _, _ := strings.Cut(rest, ".")
	number, _ := strconv.Atoi(minor)
	switch {
	case d.asks[n.Name]:
	case info.OperatingSystem != "" && info.OperatingSystem != "linux":
		d.before(false, "NotLinux", n.Name, "agents run on Linux only; pods of this node pull as without a cache",
			"nothing is to be done")
	case runtime == "docker":
		d.before(true, "DockerRuntime", n.Name, "Docker's daemon mirrors Docker Hub only",
			"move the node to containerd")
	case runtime == "cri-o":
		d.before(false, "CRIO", n.Name, "CRI-O reads mirrors when it is reloaded, and has none for all registries",
			"--set runtime.flavour=crio, and name mirror.registries")
	case runtime == "containerd" && major == "2" && number >= 2:
		d.before(false, "ConfigPathList", n.Name,
			fmt.Sprintf("containerd %s reads no mirrors where its config.toml names no config_path, because it takes "+
				"its own default, a list, for the name of one folder; the API does not tell what is set", release),
			"see that config_path = \"/etc/containerd/certs.d\" is set there, or install with --set "+
				"mirror.fixConfigPath=true")
	case runtime == "containerd":
		d.before(false, "ConfigPathUnset", n.Name,
			fmt.Sprintf("containerd %s reads no mirrors where its config.toml names no config_path; "+
				"the API does not tell what is set", release),
			"see that it is set; kubectl shoal check names the nodes where it is not, once the chart is installed")
	}
	d.pressed(n)
}

// pressed looks whether a node lacks room.
func (d *diagnosis) pressed(n *corev1.Node) {
	for _, cond := range n.Status.Conditions {
		if cond.Type == corev1.NodeDiskPressure && cond.Status == corev1.ConditionTrue {
			d.before(false, survey.ReasonDiskFull, n.Name, "the node is under disk pressure: "+cond.Message,
				"make room, or set agent.store.capacity")
		}
	}
}

// topRow is what top shows of a node.
type topRow struct {
	Node    string       `json:"node"`
	Fetches []view.Fetch `json:"fetches"`
	Problem string       `json:"problem,omitempty"`
}

func (p *plugin) topCommand() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use: "top", Short: "Show what arrives at the nodes now, and from where", Args: view.Arguments(0, 0),
		Example: "  kubectl shoal top\n  kubectl shoal top --watch",
		RunE: func(cmd *cobra.Command, _ []string) error {
			for {
				rows, err := p.top(cmd.Context())
				if watch && cmd.Context().Err() != nil {
					return nil
				}
				if err == nil {
					err = p.print(rows, func(t *view.Text) { writeTop(t, rows, p.clock.Now()) })
				}
				if err == nil && !watch && slices.ContainsFunc(rows, func(r topRow) bool { return r.Problem != "" }) {
					return errNotWell
				}
				if err != nil || !watch {
					return err
				}
				if p.output == view.YAML {
					_, _ = fmt.Fprintln(p.Out, "---")
				}
				select {
				case <-time.After(2 * time.Second):
				case <-cmd.Context().Done():
					return nil
				}
			}
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it again every two seconds")
	return cmd
}

func (p *plugin) top(ctx context.Context) ([]topRow, error) {
	nodes, err := p.nodes(ctx, "")
	if err != nil {
		return nil, err
	}
	answers, err := askNodes[[]view.Fetch](ctx, p, nodes, view.FetchesPath, nil)
	if err != nil {
		return nil, err
	}
	rows := []topRow{}
	for _, a := range answers {
		row := topRow{Node: a.Node, Fetches: append([]view.Fetch{}, a.Value...)}
		if a.Err != nil {
			row.Problem = survey.Short(a.Err)
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// writeTop shows them. now is the API server's time, which is nearer to the nodes' than that of the user's machine.
func writeTop(t *view.Text, all []topRow, now time.Time) {
	rows := [][]string{{"NODE", "BLOB", "REPOSITORY", "ARRIVED", "SIZE", "FROM PEERS", "FROM REGISTRY", "FOR",
		"READERS"}}
	quiet := 0
	var below asides
	for _, n := range all {
		if n.Problem != "" {
			rows = append(rows, []string{n.Node, below.cell(n.Node, "no answer", n.Problem)})
		} else if len(n.Fetches) == 0 {
			quiet++
		}
		for _, f := range n.Fetches {
			rows = append(rows, []string{n.Node, view.Short(f.Digest), f.Repository, view.Ratio(f.Present, f.Size),
				view.Bytes(f.Size), view.Bytes(f.FromPeers),
				view.Bytes(f.FromUpstream), view.Duration(max(0, now.Sub(f.Started))), strconv.Itoa(f.Readers)})
		}
	}
	if quiet == len(all) {
		t.Say("Nothing arrives at any of %s.\n", view.Count(quiet, "node"))
		return
	}
	t.Table(rows)
	below.write(t)
}
