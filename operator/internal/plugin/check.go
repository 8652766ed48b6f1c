package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
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
)

func isTimeout(err error) bool { return errors.Is(err, errTimedOut) }

// checked is what check prints.
type checked struct {
	Looked   []looked  `json:"lookedAt"`
	Findings []finding `json:"findings"`
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
	var pre bool
	cmd := &cobra.Command{
		Use: "check", Short: "Look for all that keeps the cache from working, and say how to mend it",
		Args: arguments(0, 0),
		Long: `check asks the API server and every agent, and prints a line for each thing that is amiss, with its mend
and a link. It exits with 1 where pulls suffer. With --pre it looks at what an installation needs before there is one.`,
		Example: "  kubectl shoal check\n  kubectl shoal check --pre\n" +
			"  kubectl shoal check -o json | jq '.findings[] | select(.grave)'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			look := p.check
			if pre {
				look = p.checkBefore
			}
			r, err := look(cmd.Context())
			if err != nil {
				return err
			}
			if err := p.print(r, func(w io.Writer) error { return p.writeChecked(w, r) }); err != nil {
				return err
			}
			if grave(r.Findings) {
				return errNotWell
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&pre, "pre", false, "before an installation: what the cluster lacks for one")
	return cmd
}

func (p *plugin) writeChecked(w io.Writer, r checked) error {
	for _, l := range r.Looked {
		mark := p.colour(green, "✓")
		if !l.Well {
			mark = p.colour(yellow, "!")
		}
		if _, err := fmt.Fprintf(w, "%s %s\n", mark, l.What); err != nil {
			return err
		}
	}
	if err := p.writeFindings(w, r.Findings); err != nil {
		return err
	}
	if len(r.Findings) == 0 {
		_, err := fmt.Fprintln(w, "Nothing is amiss.")
		return err
	}
	return nil
}

// check looks at all.
func (p *plugin) check(ctx context.Context) (checked, error) {
	c, err := p.look(ctx)
	if err != nil {
		return checked{}, err
	}
	pods := running(c.Agents, "")
	answers := askAll(ctx, p, pods, askHealth)
	r := checked{Findings: diagnose(c, answers, time.Now())}
	r.looked(true, "API server: %s, %s, %s", view.Count(len(c.Peers), "peer"), view.Count(len(c.Caches), "node cache"),
		view.Count(len(c.Pins), "pin"))
	r.areas(c, answers)
	for _, what := range c.Hidden {
		r.looked(false, "You may not list %s, so nothing is said about them", what)
	}
	return r, nil
}

// areas says of each thing that keeps a cache from working on how many nodes it is well.
func (r *checked) areas(c *cluster, answers []agentView[shown]) {
	nodes := len(answers)
	if nodes == 0 {
		return
	}
	for _, area := range []struct {
		what    string
		reasons []string
	}{
		{"run and answer", []string{reasonAgentSilent, reasonAgentNotReady}},
		{"are admitted and connected to the others", []string{reasonNotAdmitted, reasonNotRegistered, reasonNoPeers}},
		{"have reported lately, and their clocks are right", []string{reasonNotReported, reasonClockOff}},
		{"write to their disks", []string{reasonDiskFull, v1alpha1.ReasonDiskFails}},
	} {
		bad := r.nodesWith(func(reason string) bool { return slices.Contains(area.reasons, reason) })
		r.looked(bad == 0, "Agents: %d of %d %s", max(0, nodes-bad), nodes, area.what)
	}
	r.runtimes(c)
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

// runtimes says how many runtimes ask their agents, as the agents have reported.
func (r *checked) runtimes(c *cluster) {
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
		r.looked(asking == known, "Runtimes: %d of %d are set up to ask their agent", asking, known)
	}
}

// nodesWith counts the nodes that have a finding of such a reason.
func (r *checked) nodesWith(reason func(string) bool) int {
	nodes := map[string]bool{}
	for _, f := range r.Findings {
		if f.Node != "" && reason(f.Reason) {
			nodes[f.Node] = true
		}
	}
	return len(nodes)
}

// minVersion is the oldest minor version of Kubernetes 1 that the chart takes.
const minVersion = 32

// checkBefore looks at what an installation needs.
func (p *plugin) checkBefore(ctx context.Context) (checked, error) {
	if err := p.connect(); err != nil {
		return checked{}, err
	}
	var r checked
	d := &diagnosis{}
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
	if err := p.api.List(ctx, &nodes); err != nil {
		return r, err
	}
	for i := range nodes.Items {
		d.nodeBefore(&nodes.Items[i])
	}
	r.looked(true, "Nodes: %d, by what they say of their runtimes", len(nodes.Items))
	namespace := p.system
	if namespace == "" {
		namespace = "shoal-system"
	}
	var ns corev1.Namespace
	switch err := p.api.Get(ctx, types.NamespacedName{Name: namespace}, &ns); {
	case apierrors.IsNotFound(err):
		d.before(false, "NamespaceMissing", "", fmt.Sprintf("there is no namespace %s yet", namespace),
			"kubectl create namespace "+namespace)
	case err != nil:
		return r, err
	case ns.Labels["pod-security.kubernetes.io/enforce"] != "privileged":
		d.before(false, "NamespaceNotPrivileged", "",
			"where pod security is enforced by default, agents are refused: they use the node's network and folders",
			"kubectl label namespace "+namespace+" pod-security.kubernetes.io/enforce=privileged")
	}
	r.Findings = d.found
	return r, nil
}

func (d *diagnosis) before(grave bool, reason, node, message, mend string) {
	d.add(grave, reason, node, "%s", message)
	d.found[len(d.found)-1].Mend = mend
}

// rights looks whether the user may install the chart.
func (p *plugin) rights(ctx context.Context, d *diagnosis, r *checked) error {
	asked, allowed := 0, 0
	for _, a := range []authorizationv1.ResourceAttributes{
		{Group: "apiextensions.k8s.io", Resource: "customresourcedefinitions", Verb: "create"},
		{Group: "rbac.authorization.k8s.io", Resource: "clusterroles", Verb: "create"},
		{Group: "rbac.authorization.k8s.io", Resource: "clusterrolebindings", Verb: "create"},
		{Group: "admissionregistration.k8s.io", Resource: "validatingadmissionpolicies", Verb: "create"},
		{Group: "apps", Resource: "daemonsets", Verb: "create", Namespace: "shoal-system"},
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
			fmt.Sprintf("containerd %s reads no mirrors where its config.toml names no config_path, for it takes its "+
				"own default, a list, for the name of one folder; the API does not tell what is set", release),
			"see that config_path = \"/etc/containerd/certs.d\" is set there, or install with --set "+
				"mirror.fixConfigPath=true")
	case runtime == "containerd":
		d.before(false, "ConfigPathUnset", n.Name,
			fmt.Sprintf("containerd %s reads no mirrors where its config.toml names no config_path; "+
				"the API does not tell what is set", release),
			"see that it is set; kubectl shoal check names the nodes where it is not, once the chart is installed")
	}
	for _, cond := range n.Status.Conditions {
		if cond.Type == corev1.NodeDiskPressure && cond.Status == corev1.ConditionTrue {
			d.before(false, reasonDiskFull, n.Name, "the node is under disk pressure: "+cond.Message,
				"make room, or set agent.store.capacity")
		}
	}
}

// topRow is what top shows of a node.
type topRow struct {
	Node    string       `json:"node"`
	Fetches []view.Fetch `json:"fetches,omitempty"`
	Problem string       `json:"problem,omitempty"`
}

func (p *plugin) topCommand() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use: "top", Short: "Show what arrives at the nodes now, and from where", Args: arguments(0, 0),
		Example: "  kubectl shoal top\n  kubectl shoal top --watch",
		RunE: func(cmd *cobra.Command, _ []string) error {
			for {
				rows, err := p.top(cmd.Context())
				if err == nil {
					err = p.print(rows, func(w io.Writer) error { return writeTop(w, rows) })
				}
				if err != nil || !watch {
					return err
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
	c, err := p.look(ctx)
	if err != nil {
		return nil, err
	}
	var rows []topRow
	for _, a := range askAll(ctx, p, running(c.Agents, ""),
		func(ctx context.Context, c *view.Client) ([]view.Fetch, error) {
			return view.Get[[]view.Fetch](ctx, c, view.FetchesPath, nil)
		}) {
		row := topRow{Node: a.Node, Fetches: a.Value}
		if a.Err != nil {
			row.Problem = short(a.Err)
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func writeTop(w io.Writer, all []topRow) error {
	rows := [][]string{{"NODE", "BLOB", "REPOSITORY", "ARRIVED", "SIZE", "FROM PEERS", "FROM REGISTRY", "FOR",
		"READERS"}}
	quiet := 0
	for _, n := range all {
		if n.Problem != "" {
			rows = append(rows, []string{n.Node, n.Problem})
		} else if len(n.Fetches) == 0 {
			quiet++
		}
		for _, f := range n.Fetches {
			rows = append(rows, []string{n.Node, view.Short(f.Digest), f.Repository, view.Ratio(f.Present, f.Size),
				view.Bytes(f.Size), view.Bytes(f.FromPeers),
				view.Bytes(f.FromUpstream), view.Duration(time.Since(f.Started)), strconv.Itoa(f.Readers)})
		}
	}
	if quiet == len(all) {
		_, err := fmt.Fprintf(w, "Nothing arrives at any of %d nodes.\n", quiet)
		return err
	}
	return view.Table(w, rows)
}
