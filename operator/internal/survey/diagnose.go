package survey

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/api/view"
)

// Finding is something that is amiss.
type Finding struct {
	// Reason is one word, and the anchor of its section in the troubleshooting page.
	Reason string `json:"reason"`
	// Grave: pulls suffer, or will. Otherwise it is worth a look.
	Grave   bool   `json:"grave"`
	Node    string `json:"node,omitempty"`
	Message string `json:"message"`
	Mend    string `json:"mend"`
	Link    string `json:"link"`

	general string // Mend without the names of its node and pod: what it is for any of them
}

// documents are the addresses of the chart's pages; troubleshooting is the one that says more of each reason.
const (
	documents       = "https://github.com/shoal-cache/shoal/blob/main/charts/shoal/"
	troubleshooting = documents + "TROUBLESHOOTING.md#"
)

// RightsLink leads to the rights that kubectl shoal takes.
const RightsLink = documents + "GUIDE.md#which-rights-kubectl-shoal-needs"

// InstallLink leads to what an installation takes.
const InstallLink = documents + "README.md#install"

// Link leads to a reason's section there.
func Link(reason string) string { return troubleshooting + strings.ToLower(reason) }

// The reasons that are not the API's own.
const (
	reasonNotInstalled     = "NotInstalled"
	reasonNoSwarm          = "NoSwarm"
	reasonAgentMissing     = "AgentMissing"
	ReasonAgentNotReady    = "AgentNotReady"
	ReasonAgentSilent      = "AgentSilent"
	reasonAgentRestarts    = "AgentRestarts"
	ReasonOperatorMissing  = "OperatorMissing"
	ReasonOperatorNotReady = "OperatorNotReady"
	reasonOperatorRestarts = "OperatorRestarts"
	ReasonNotReported      = "NotReported"
	ReasonNotRegistered    = "NotRegistered"
	ReasonNotAdmitted      = "NotAdmitted"
	ReasonClockOff         = "ClockOff"
	ReasonNoPeers          = "NoPeers"
	ReasonDiskFull         = v1alpha1.ReasonDiskFull
	reasonRegistrySilent   = "RegistrySilent"
	reasonRegistryCA       = "RegistryCAMissing"
	reasonPinFails         = "PinFails"
	reasonVersionsDiffer   = "VersionsDiffer"
	reasonNodeNotReady     = "NodeNotReady"
	reasonOwnImagesNotKept = "OwnImagesNotPinned"
)

// Mend says what to do about a reason.
func Mend(reason string) string { return cmp.Or(mends[reason], "see the link") }

// mends say what to do, by reason.
var mends = map[string]string{
	reasonNotInstalled: "label a namespace and install the chart into it: " + InstallLink,
	reasonNoSwarm:      "make the Swarm \"default\": helm upgrade with swarm.create=true",
	reasonAgentMissing: "look at the events of the DaemonSet: " +
		"kubectl describe daemonset --all-namespaces -l app.kubernetes.io/part-of=shoal",
	ReasonAgentNotReady:   "read its log: kubectl logs POD -c agent",
	ReasonAgentSilent:     "end it; kubelet starts it anew: kubectl delete pod POD",
	reasonAgentRestarts:   "read why it ended: kubectl logs POD -c agent --previous",
	ReasonOperatorMissing: "see why it makes no pod: kubectl describe deployment --all-namespaces -l " + operatorLabels,
	ReasonOperatorNotReady: "see its events and its log, of the container before with --previous: kubectl describe " +
		"pod POD; kubectl logs POD",
	reasonOperatorRestarts: "read why it ended: kubectl logs POD --previous",
	ReasonNotReported: "read the agent's log: can it reach the API server? " +
		"kubectl logs POD -c agent",
	ReasonNotRegistered: "read the agent's log: it registers when it reaches the API server",
	ReasonNotAdmitted: "see kubectl describe peer NODE, and spec.admission of kubectl " +
		"get swarm default -o yaml",
	ReasonClockOff: "set the node's clock, by chrony or systemd-timesyncd",
	ReasonNoPeers:  "open TCP port 5052 (agent.ports.swarm) between the nodes",
	ReasonDiskFull: "make room on the file system of agent.store.path, or " +
		"lower agent.store.capacity",
	v1alpha1.ReasonDiskFails: "look at the node's disk (dmesg) and at the rights of agent.store.path",
	v1alpha1.ReasonNoRoomForModels: "raise agent.store.modelCapacity of the chart, or modelCapacity in a " +
		"CachePolicy; until then the file is shared while it is read, and not kept",
	v1alpha1.ReasonPolicyRejected: "change the CachePolicy that the message is about; the agent goes on with the " +
		"last policy that made sense",
	reasonRegistrySilent: "reach it from the node: name resolution, proxy (agent.env), firewall",
	reasonRegistryCA: "give agents and operator its CA: " +
		"upstreams[].caFile and upstreamsSecret of the chart",
	reasonPinFails:       "see kubectl describe artifactpin NAME",
	reasonVersionsDiffer: "end the upgrade: kubectl rollout status daemonset",
	reasonNodeNotReady: "see kubectl describe node NODE; " +
		"its copies of pins count as lost after repairDelay",
	reasonOwnImagesNotKept: "set selfPin.create=true, so that agents start during " +
		"an outage of the registry",
	v1alpha1.ReasonConfigPathUnset: "set config_path = \"/etc/containerd/certs.d\" in containerd's " +
		"config.toml and restart containerd, or helm upgrade --set mirror.fixConfigPath=true",
	v1alpha1.ReasonConfigPathElsewhere: "set runtime.mirrorPath to the folder that containerd reads",
	v1alpha1.ReasonConfigPathList: "containerd takes a list of folders for the name of one: " +
		"name one folder as config_path, or helm upgrade --set mirror.fixConfigPath=true",
	v1alpha1.ReasonCRIDisabled: "take the CRI out of disabled_plugins in containerd's config.toml and " +
		"restart containerd",
	v1alpha1.ReasonLegacyMirrors: "move registry.mirrors and registry.configs of containerd's config.toml " +
		"into hosts.toml files; they exclude config_path",
	v1alpha1.ReasonRuntimeConfigUnreadable: "let the agent read containerd's configuration, or run shoal-node " +
		"mirror status on the node",
	v1alpha1.ReasonNotMirrored:   "look at the hosts.toml that the message names",
	v1alpha1.ReasonRestartNeeded: "restart the node's container runtime",
	v1alpha1.ReasonMirrorOutdated: "wait a minute for the guard, or run shoal-node mirror install again on a machine " +
		"without Kubernetes",
	v1alpha1.ReasonMirrorEdited:  "undo the change, or delete the agent's pod so that the guard writes the file anew",
	v1alpha1.ReasonMirrorMissing: "delete the agent's pod: its guard installs the mirror anew",
	v1alpha1.ReasonRuntimeBypasses: "restart the node's container runtime if it was started before the mirror was " +
		"configured; else shoal-node mirror status on the node",
}

// diagnosis gathers findings.
type diagnosis struct{ found []Finding }

// add gives the finding that it adds, which holds until the next.
func (d *diagnosis) add(grave bool, reason, node, format string, args ...any) *Finding {
	f := Finding{Reason: reason, Grave: grave, Node: node, Message: fmt.Sprintf(format, args...), Link: Link(reason)}
	f.mend(Mend(reason))
	d.found = append(d.found, f)
	return &d.found[len(d.found)-1]
}

// mend sets what to do about a finding, in which NODE stands for its node.
func (f *Finding) mend(general string) {
	f.general, f.Mend = general, general
	if f.Node != "" {
		f.Mend = strings.ReplaceAll(general, "NODE", f.Node)
	}
}

// maxSkew is how far a clock may be off. Tokens of registries and certificates are the first to fail, at some minutes.
const maxSkew = 30 * time.Second

// Diagnose says what is amiss. agents is what they show; nil where they were not asked. now is the API server's
// time.
func Diagnose(c *Cluster, agents []Answer[Shown], now time.Time) []Finding {
	d := &diagnosis{found: []Finding{}} // a list also where nothing is amiss, for those who read JSON
	if c.Swarm == nil && len(c.Agents) == 0 && len(c.Daemons) == 0 && !slices.Contains(c.Hidden, HiddenPods) {
		message := "no agent runs in this cluster"
		if len(c.Peers) > 0 {
			message += "; what is still there of Peers and NodeCaches an earlier installation has left"
		}
		f := d.add(true, reasonNotInstalled, "", "%s", message)
		if len(c.Peers) > 0 {
			f.Mend += "; or remove what is left: " + documents + "README.md#uninstall"
		}
		return d.found
	}
	if c.Swarm != nil && len(c.Agents) == 0 && len(c.Daemons) == 0 && !slices.Contains(c.Hidden, HiddenPods) {
		where := "in any namespace"
		if c.Namespace != "" {
			where = "in namespace " + c.Namespace
		}
		f := d.add(true, reasonAgentMissing, "", "there is neither an agent's pod nor a DaemonSet of agents %s", where)
		f.Mend = "see where the chart is installed: helm list --all-namespaces; --agents-namespace names " +
			"its namespace"
	}
	if c.Swarm == nil {
		d.add(true, reasonNoSwarm, "", "there is no Swarm \"default\", so no agent is admitted")
	}
	d.pods(c)
	d.restarts(c, now)
	d.operators(c, now)
	d.members(c)
	d.reports(c, now)
	d.pins(c, now)
	d.shown(c, agents)
	d.consequences()
	for i := range d.found {
		d.found[i].Message = strings.TrimPrefix(d.found[i].Message, d.found[i].Reason+": ")
		for _, p := range c.Agents {
			if d.found[i].Node == p.Spec.NodeName {
				d.found[i].ofPod(&p)
			}
		}
	}
	slices.SortStableFunc(d.found, func(a, b Finding) int {
		if a.Grave != b.Grave {
			return map[bool]int{true: -1, false: 1}[a.Grave]
		}
		return cmp.Or(cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Node, b.Node))
	})
	return d.found
}

// notReadyYet is said of a container that runs and does not pass its readiness probe.
const notReadyYet = " does not pass its readiness probe"

// consequences leaves out what follows from another finding of the same node: who is not admitted has no peers, and who
// has no peers or no disk is not ready. Agents are asked through their nodes' kubelets, so none answers whose node is
// down.
func (d *diagnosis) consequences() {
	has := func(node string, reasons ...string) bool {
		return slices.ContainsFunc(d.found, func(f Finding) bool {
			return f.Node == node && slices.Contains(reasons, f.Reason)
		})
	}
	for i := range d.found {
		switch f := &d.found[i]; f.Reason {
		case reasonNodeNotReady:
			f.Grave = has(f.Node, ReasonAgentSilent) // for it stands for that
		case ReasonNotReported:
			if has(f.Node, reasonNodeNotReady) { // there is no log to read
				f.mend(lookAtNode)
			}
		}
	}
	d.found = slices.DeleteFunc(slices.Clone(d.found), func(f Finding) bool {
		switch f.Reason {
		case ReasonNoPeers:
			return has(f.Node, ReasonNotAdmitted)
		case ReasonAgentSilent:
			return has(f.Node, reasonNodeNotReady)
		case ReasonAgentNotReady:
			return strings.Contains(f.Message, notReadyYet) &&
				has(f.Node, ReasonNotAdmitted, ReasonNoPeers, ReasonDiskFull, v1alpha1.ReasonDiskFails,
					ReasonAgentSilent)
		}
		return false
	})
}

func (d *diagnosis) pods(c *Cluster) {
	for _, s := range c.Daemons {
		if missing := s.Status.DesiredNumberScheduled - s.Status.CurrentNumberScheduled; missing > 0 {
			d.add(true, reasonAgentMissing, "", "on %d of %d nodes there is no agent's pod", missing,
				s.Status.DesiredNumberScheduled)
		}
		if old := s.Status.DesiredNumberScheduled - s.Status.UpdatedNumberScheduled; old > 0 &&
			s.Status.ObservedGeneration > 0 {
			d.add(false, reasonVersionsDiffer, "",
				"on %d of %d nodes the agent is not of the version that the chart says",
				old, s.Status.DesiredNumberScheduled)
		}
	}
	for i := range c.Agents {
		p := &c.Agents[i]
		if p.DeletionTimestamp != nil {
			continue
		}
		if why := unready(p); why != "" {
			d.add(true, ReasonAgentNotReady, p.Spec.NodeName, "%s", why)
		}
	}
}

// unready is why a pod is not ready, or empty where it is.
func unready(p *corev1.Pod) string {
	why := ""
	for _, s := range p.Status.ContainerStatuses {
		switch {
		case s.Ready:
		case s.State.Waiting != nil:
			why = fmt.Sprintf("%s: %s %s", s.Name, s.State.Waiting.Reason, s.State.Waiting.Message)
		case s.State.Terminated != nil:
			why = fmt.Sprintf("%s ended with code %d: %s", s.Name, s.State.Terminated.ExitCode,
				s.State.Terminated.Reason)
		default:
			why = s.Name + notReadyYet
		}
		if last := s.LastTerminationState.Terminated; last != nil && why != "" {
			why += fmt.Sprintf("; it was restarted %s, and ended last with code %d", times(int(s.RestartCount)),
				last.ExitCode)
		}
	}
	if why != "" || p.Status.Phase == corev1.PodRunning {
		return strings.TrimSpace(why)
	}
	why = "its phase is " + string(p.Status.Phase)
	for _, cond := range p.Status.Conditions {
		if cond.Type == corev1.PodScheduled && cond.Status == corev1.ConditionFalse {
			why += ": " + cond.Message
		}
	}
	return why
}

// operators looks at the operators' pods. As long as one is ready nothing suffers. Without any, running agents go on,
// and new ones are not admitted.
func (d *diagnosis) operators(c *Cluster, now time.Time) {
	ready, all, seen := c.ReadyOperators()
	if !seen || len(c.Agents)+len(c.Daemons)+all == 0 { // where nothing of Shoal is, that is said already
		return
	}
	if all == 0 {
		d.add(true, ReasonOperatorMissing, "", "there is no operator's pod: no new agent is admitted, and no pin is "+
			"looked at")
	}
	for _, p := range c.liveOperators() {
		if why := unready(&p); why != "" {
			d.add(ready == 0, ReasonOperatorNotReady, "", "operator %s: %s", p.Name, why).ofPod(&p)
			continue
		}
		for _, s := range p.Status.ContainerStatuses {
			if last := lately(s, now); last != nil {
				d.add(false, reasonOperatorRestarts, "", "operator %s was restarted %s, last %s, after it had ended "+
					"with code %d", p.Name, times(int(s.RestartCount)), view.Ago(now.Sub(last.FinishedAt.Time)),
					last.ExitCode).ofPod(&p)
			}
		}
	}
}

// ofPod puts a pod's name into the mend.
func (f *Finding) ofPod(p *corev1.Pod) {
	f.Mend = strings.ReplaceAll(f.Mend, "POD", "-n "+p.Namespace+" "+p.Name)
}

// lately is how a container ended that works again, where that is not long ago.
func lately(s corev1.ContainerStatus, now time.Time) *corev1.ContainerStateTerminated {
	last := s.LastTerminationState.Terminated
	if !s.Ready || last == nil || now.Sub(last.FinishedAt.Time) > restartedLately {
		return nil
	}
	return last
}

// restartedLately is for how long an agent that ended by itself is worth a word.
const restartedLately = time.Hour

func (d *diagnosis) restarts(c *Cluster, now time.Time) {
	for i := range c.Agents {
		for _, s := range c.Agents[i].Status.ContainerStatuses {
			last := lately(s, now)
			if last == nil {
				continue
			}
			d.add(false, reasonAgentRestarts, c.Agents[i].Spec.NodeName,
				"%s was restarted %s, last %s, after it had ended with code %d",
				s.Name, times(int(s.RestartCount)), view.Ago(now.Sub(last.FinishedAt.Time)), last.ExitCode)
		}
	}
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func (d *diagnosis) members(c *Cluster) {
	peers := map[string]bool{}
	for i := range c.Peers {
		p := &c.Peers[i]
		peers[p.Name] = true
		if p.IsAdmitted() {
			continue
		}
		why := "the operator has not judged it yet: does it run?"
		if cond := apimeta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionAdmitted); cond != nil {
			why = cond.Reason + ": " + cond.Message
		}
		d.add(true, ReasonNotAdmitted, p.Name, "its agent is not admitted to the swarm: %s", why)
	}
	for _, p := range Running(c.Agents, "") {
		if !peers[p.Spec.NodeName] {
			d.add(true, ReasonNotRegistered, p.Spec.NodeName, "its agent runs, and has not registered")
		}
	}
	for i := range c.Nodes {
		n := &c.Nodes[i]
		for _, cond := range n.Status.Conditions {
			if cond.Type == corev1.NodeReady && cond.Status != corev1.ConditionTrue && peers[n.Name] {
				d.add(false, reasonNodeNotReady, n.Name, "the node is not Ready: %s", cond.Message)
			}
		}
	}
}

func (d *diagnosis) reports(c *Cluster, now time.Time) {
	for i := range c.Caches {
		n := &c.Caches[i]
		d.reported(n, now)
		for _, kind := range []string{v1alpha1.ConditionMirrorConfigured, v1alpha1.ConditionStoreUsable,
			v1alpha1.ConditionPolicyApplied, v1alpha1.ConditionModelsFit} {
			cond := apimeta.FindStatusCondition(n.Status.Conditions, kind)
			if cond != nil && cond.Status == metav1.ConditionFalse {
				grave := kind == v1alpha1.ConditionMirrorConfigured || kind == v1alpha1.ConditionStoreUsable
				d.add(grave, cond.Reason, n.Name, "%s", cond.Message)
			}
		}
	}
}

func (d *diagnosis) reported(n *v1alpha1.NodeCache, now time.Time) {
	if n.Status.ReportedAt == nil {
		d.add(true, ReasonNotReported, n.Name, "its agent has never reported")
		return
	}
	if off := skew(n); max(off, -off) > maxSkew {
		d.add(true, ReasonClockOff, n.Name, "its clock is off by %s: tokens and certificates fail", view.Duration(off))
	}
	if silent := now.Sub(written(n)); silent > v1alpha1.StaleAfter {
		d.add(true, ReasonNotReported, n.Name, "its agent has not reported for %s", view.Duration(silent))
	}
}

// looksWithin is how long an operator that runs takes at most for its first look at a pin.
const looksWithin = time.Minute

func (d *diagnosis) pins(c *Cluster, now time.Time) {
	if !slices.Contains(c.Hidden, hiddenPins) && !slices.ContainsFunc(c.Pins, isOwn) {
		d.add(false, reasonOwnImagesNotKept, "", "the operator keeps no pin of Shoal's own images")
	}
	for i := range c.Pins {
		p := &c.Pins[i]
		ready := apimeta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady)
		if age := now.Sub(p.CreationTimestamp.Time); ready == nil && age > looksWithin {
			d.add(false, reasonPinFails, "", "pin %s/%s: the operator has not looked at it for %s: does it run?",
				p.Namespace, p.Name, view.Duration(age)).Mend = operatorMend
			continue
		}
		if ready == nil || ready.Status != metav1.ConditionFalse {
			continue
		}
		switch ready.Reason {
		case v1alpha1.ReasonFetching, v1alpha1.ReasonSuspended, v1alpha1.ReasonWaitingForSchedule,
			v1alpha1.ReasonExpired, v1alpha1.ReasonResolving:
			continue
		}
		f := d.add(false, reasonPinFails, "", "pin %s/%s: %s: %s", p.Namespace, p.Name, ready.Reason, ready.Message)
		f.Mend = fmt.Sprintf("see kubectl describe artifactpin -n %s %s", p.Namespace, p.Name)
	}
}

// isOwn reports whether a pin is the operator's, of Shoal's own images.
func isOwn(p v1alpha1.ArtifactPin) bool {
	return p.Labels[v1alpha1.ManagedByLabel] == v1alpha1.ManagedByOperator
}

// operatorMend leads to the operators' pods.
const operatorMend = "see kubectl get pods --all-namespaces -l " + operatorLabels

// operatorLabels are OperatorLabels, as kubectl takes them.
const operatorLabels = "app.kubernetes.io/part-of=shoal,app.kubernetes.io/component=operator"

// shown is what only the agents themselves tell.
func (d *diagnosis) shown(c *Cluster, agents []Answer[Shown]) {
	admitted := 0
	for i := range c.Peers {
		if c.Peers[i].IsAdmitted() {
			admitted++
		}
	}
	for _, a := range agents {
		if a.Err != nil {
			d.silent(a)
			continue
		}
		d.notReady(a)
		if admitted > 1 && len(a.Value.Peers) == 0 {
			d.add(true, ReasonNoPeers, a.Node, "its agent is connected to none of the others (%d)", admitted-1)
		}
		for _, r := range a.Value.Registries {
			switch {
			case r.Problem == "":
			case strings.Contains(r.Problem, "x509"),
				strings.Contains(r.Problem, "certificate signed by unknown authority"):
				d.add(true, reasonRegistryCA, a.Node, "%s is not trusted from here: %s", r.Host, r.Problem)
			default:
				d.add(false, reasonRegistrySilent, a.Node, "%s does not answer from here: %s", r.Host, r.Problem)
			}
		}
		for _, f := range a.Value.Node.Findings {
			i := slices.IndexFunc(d.found, func(k Finding) bool { return k.Reason == f.Reason && k.Node == a.Node })
			if i < 0 {
				d.add(true, f.Reason, a.Node, "%s", f.Message)
				continue
			}
			d.found[i].Message = f.Message // that of the condition names all the others too
		}
		if problem := a.Value.Node.Store.Problem; problem != "" {
			known := func(k Finding) bool {
				return k.Node == a.Node && (k.Reason == ReasonDiskFull || k.Reason == v1alpha1.ReasonDiskFails)
			}
			if !slices.ContainsFunc(d.found, known) {
				reason := v1alpha1.ReasonDiskFails
				if strings.Contains(problem, "no space") {
					reason = ReasonDiskFull
				}
				d.add(true, reason, a.Node, "%s", problem)
			}
		}
	}
}

// lookAtNode is the mend of what an agent does not do where its node may be down.
const lookAtNode = "see whether the node is down: kubectl describe node NODE"

// silent says why an agent shows nothing, unless that is for want of a right: the agent is not to blame for that.
func (d *diagnosis) silent(a Answer[Shown]) {
	_, mayNot := errors.AsType[*NotAllowedError](a.Err)
	switch {
	case mayNot:
	case errors.Is(a.Err, view.ErrNotShown):
		d.add(false, reasonVersionsDiffer, a.Node,
			"its agent answers, and is of a version that does not show its state to this command")
	default:
		if _, down := errors.AsType[*KubeletError](a.Err); down {
			d.add(true, ReasonAgentSilent, a.Node, "%s", Short(a.Err)).mend(lookAtNode)
			return
		}
		d.add(true, ReasonAgentSilent, a.Node, "its agent does not answer: %s", Short(a.Err))
	}
}

// notReady says why an agent does not pass its readiness probe, in its own words.
func (d *diagnosis) notReady(a Answer[Shown]) {
	if a.Value.Ready == nil {
		return
	}
	var why []string
	for line := range strings.Lines(a.Value.Ready.Error()) {
		if _, what, ok := strings.Cut(line, ": not ready: "); ok {
			why = append(why, strings.TrimSpace(what))
		}
	}
	for i := range d.found {
		if f := &d.found[i]; f.Node == a.Node && f.Reason == ReasonAgentNotReady && len(why) > 0 {
			f.Message += ": " + strings.Join(why, "; ")
		}
	}
}

// Grave reports whether pulls suffer.
func Grave(all []Finding) bool {
	return slices.ContainsFunc(all, func(f Finding) bool { return f.Grave })
}
