package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/shoal-cache/shoal/api/files"
	"github.com/shoal-cache/shoal/api/registries"
	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/node/internal/agent"
	"github.com/shoal-cache/shoal/node/internal/agent/cri"
	"github.com/shoal-cache/shoal/node/internal/bypass"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/mirror"
)

// kubernetes is the agent's Kubernetes side, or nothing where that is off.
type kubernetes struct {
	agent  *agent.Agent
	images *cri.Images
}

// zoneTimeout bounds the wait for the API server's word on the node's zone; an earlier one is remembered.
const zoneTimeout = 5 * time.Second

// kubeConfig reaches the API server; nil where the Kubernetes side is off.
func (n *node) kubeConfig() (*rest.Config, error) {
	c := n.config.Kubernetes
	if !c.Enabled {
		return nil, nil
	}
	if c.Kubeconfig != "" {
		if _, err := files.Read(c.Kubeconfig); err != nil { // which client-go would read to its end, if it has one
			return nil, fmt.Errorf("kubeconfig: %w", err)
		}
		config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
		if err != nil {
			return nil, fmt.Errorf("kubeconfig: %s: %w", c.Kubeconfig, err)
		}
		return config, nil
	}
	config, err := rest.InClusterConfig()
	if err != nil {
		return nil, fmt.Errorf("enabled: %w; outside of a pod set kubernetes.kubeconfig", err)
	}
	return config, nil
}

// zone is the configured one, else what the Node's label says.
func (n *node) zone(ctx context.Context) string {
	if n.config.Swarm.Zone != "" || n.kubeAPI == nil {
		return n.config.Swarm.Zone
	}
	ctx, cancel := context.WithTimeout(ctx, zoneTimeout)
	defer cancel()
	zone, err := agent.LookupZone(ctx, n.kubeAPI, n.config.Kubernetes.NodeName, n.store.KV("kubernetes"), n.log)
	if err != nil {
		n.log.Warn("the node's zone is not known; it counts as in none", "error", err)
	}
	return zone
}

func (n *node) newKubernetes(zone string) (kubernetes, error) {
	if n.kubeAPI == nil {
		return kubernetes{}, nil
	}
	c := n.config.Kubernetes
	o := agent.Options{
		Config: n.kubeAPI, NodeName: c.NodeName, Version: version, Zone: zone,
		Key: n.identity, Swarm: n.swarm, Memory: n.store.KV("kubernetes"),
		Policy: n.policy, BasePolicy: n.config.EffectivePolicy(),
		Store: n.store, StoreHealth: n.storeProblem, Fetcher: n.fetcher, Upstream: n.upstream, Tags: n.tags,
		Files: n.files, Gate: pinGate{n.gate, n.upstream, n.policy},
		Counters: n.counters, Logger: n.log.With("part", "agent"), Registerer: n.metrics,
	}
	if n.hub != nil {
		o.Hub, o.Crowded = n.hub, n.hub.Crowded
	}
	k := kubernetes{}
	if c.RuntimeEndpoint != "" {
		images, err := cri.New(c.RuntimeEndpoint)
		if err != nil {
			return k, fmt.Errorf("kubernetes.runtimeEndpoint: %w", err)
		}
		o.Runtime, k.images = images, images
	}
	var err error
	if k.agent, err = agent.New(o); err != nil {
		return k, err
	}
	return k, nil
}

// mirrorCheckInterval is how often the files of the runtime's mirror configuration are looked at: those of the node,
// whose changes are seen through a mount by reading only.
const mirrorCheckInterval = time.Minute

// followMirror tells the agent what is amiss with the runtime's mirror configuration, until ctx ends.
func (n *node) followMirror(ctx context.Context) {
	if n.config.Mirror.StateDir == "" || !n.awaitMirror(ctx) {
		return
	}
	for again := true; again; again = content.Sleep(ctx, mirrorCheckInterval) {
		n.lookAtMirror(ctx)
	}
}

// awaitMirror waits until something is installed. The guard does that once the agent answers, so an agent that has just
// started does not report as amiss what is about to be done. It reports false when ctx ended before.
func (n *node) awaitMirror(ctx context.Context) bool {
	return within(ctx, mirrorCheckInterval, func() bool {
		result, err := mirror.Status(n.config.MirrorOptions())
		return err != nil || len(result.Changed) > 0
	})
}

// within looks every second until there is nothing to wait for any more, or the time is over. It tells false when ctx
// ended before.
func within(ctx context.Context, longest time.Duration, over func() bool) bool {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	end := time.NewTimer(longest)
	defer end.Stop()
	for !over() {
		select {
		case <-ctx.Done():
			return false
		case <-end.C:
			return true
		case <-tick.C:
		}
	}
	return true
}

// lookAtMirror compares what the files say, and what the runtime does.
func (n *node) lookAtMirror(ctx context.Context) {
	o := n.config.MirrorOptions()
	o.Release = n.runtimeRelease(ctx)
	result, err := mirror.Status(o)
	if err != nil {
		n.log.Warn("mirror configuration not looked at", "error", err)
		return
	}
	all := findings(result)
	if len(result.Changed) > 0 {
		all = append(all, n.bypassed(ctx)...)
	}
	n.found.Store(&all)
	n.countFindings(all)
	if n.kube.agent != nil {
		n.kube.agent.SetFindings(all)
	}
}

// countFindings gives every reason its figure, so that a query finds the metric also where nothing is amiss.
func (n *node) countFindings(all []agent.Finding) {
	count := make(map[string]int)
	for _, reason := range agent.FindingReasons() {
		count[reason] = 0
	}
	for _, f := range all {
		count[f.Reason]++
	}
	for reason, k := range count {
		n.mirrorFindings.WithLabelValues(reason).Set(float64(k))
	}
}

// runtimeRelease is containerd's version; empty where it can't be asked.
func (n *node) runtimeRelease(ctx context.Context) string {
	if n.kube.images == nil {
		return ""
	}
	name, version, err := n.kube.images.Version(ctx)
	if err != nil || name != "containerd" {
		return ""
	}
	return version
}

// bypassed are findings for what the runtime pulled past the agent.
func (n *node) bypassed(ctx context.Context) []agent.Finding {
	if n.kube.images == nil {
		return nil
	}
	pulled, err := n.kube.images.Pulled(ctx)
	if err != nil {
		n.log.Debug("pulls of the runtime are not watched", "error", err)
		return nil
	}
	images := make([]bypass.Image, 0, len(pulled))
	for _, name := range pulled {
		if repository, digest, ok := strings.Cut(name, "@"); ok {
			images = append(images, bypass.Image{Repository: repository, Digest: digest})
		}
	}
	past := n.watch.Look(images, time.Now())
	if len(past) == 0 {
		return nil
	}
	last := past[len(past)-1]
	return []agent.Finding{{Reason: v1alpha1.ReasonRuntimeBypasses, Message: fmt.Sprintf(
		"the container runtime pulled %s@%s and did not ask the agent; "+
			"run shoal-node mirror status on this node, and restart the runtime where it was started before "+
			"its mirror was configured",
		last.Repository, last.Digest)}}
}

// mirrored reports whether the runtime is to ask the agent for the images of a registry.
func (n *node) mirrored(registry string) bool {
	named := n.config.Mirror.Registries
	return len(named) == 0 || slices.ContainsFunc(named, func(r string) bool {
		return r == mirror.All || registries.Canonical(r) == registries.Canonical(registry)
	})
}

func findings(result mirror.Result) []agent.Finding {
	out := make([]agent.Finding, 0, len(result.Findings))
	for _, f := range result.Findings {
		if f.Kind != mirror.DigestsOnly { // the administrator has it so, and nothing is amiss
			out = append(out, agent.Finding{Reason: string(f.Kind), Message: f.Told()})
		}
	}
	if len(result.Changed) == 0 && len(out) == 0 {
		out = append(out, agent.Finding{Reason: v1alpha1.ReasonMirrorMissing,
			Message: "nothing is installed: the container runtime does not ask the agent; " +
				"run shoal-node mirror install"})
	}
	return out
}

func (k kubernetes) close() error {
	if k.images == nil {
		return nil
	}
	return k.images.Close()
}

func (k kubernetes) manifestServed(d digest.Digest) {
	if k.agent != nil {
		k.agent.ManifestServed(d)
	}
}

func (k kubernetes) run(ctx context.Context) {
	if k.agent != nil {
		k.agent.Run(ctx)
	}
}

func (k kubernetes) blobRemoved(d digest.Digest) {
	if k.agent != nil {
		k.agent.BlobRemoved(d)
	}
}

// counters are the sums that the agent reports.
func (n *node) counters() agent.Counters {
	answers, peers := n.front.Counters(), n.swarm.Counters()
	return agent.Counters{
		Hits: answers.Hits, Misses: answers.Misses,
		PeerBytes: peers.Received, UpstreamBytes: n.upstream.Counters().Bytes, UploadedBytes: peers.Sent,
		SavedBytes: n.pulls.Saved(),
	}
}
