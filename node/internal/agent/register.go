package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	corev1 "k8s.io/api/core/v1"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/node/internal/content"
)

// maxAddresses is the bound of PeerSpec.addresses in the API.
const maxAddresses = 16

// registerPeer keeps the node's own Peer as it should be. It waits for the informers to compare with, so that a restart
// which changes nothing writes nothing.
func (a *Agent) registerPeer(ctx context.Context) {
	if a.api.peers.synced(ctx) && a.api.node.synced(ctx) && a.api.swarms.synced(ctx) {
		a.peer.run(ctx)
	}
}

// writePeer applies the Peer if the API server's differs.
func (a *Agent) writePeer(ctx context.Context) (wrote bool, err error) {
	spec := a.peerSpec()
	if len(spec.Addresses) == 0 {
		return false, nil // the API takes no Peer that can't be dialled; the heartbeat looks again
	}
	if now, ok := a.api.peers.get(a.opts.NodeName); ok && now.DeletionTimestamp == nil &&
		equality.Semantic.DeepEqual(now.Spec, spec) {
		return false, nil
	}
	body, err := json.Marshal(map[string]any{
		"apiVersion": v1alpha1.GroupVersion.String(), "kind": "Peer",
		"metadata": map[string]any{"name": a.opts.NodeName}, "spec": spec,
	})
	if err == nil {
		err = a.api.apply(ctx, "peers", a.opts.NodeName, "", body)
	}
	if err != nil {
		return true, fmt.Errorf("register peer %s of node %s: %w", spec.PeerID, a.opts.NodeName, err)
	}
	a.log.Info("registered", "node", a.opts.NodeName, "peer", spec.PeerID, "addresses", spec.Addresses, "zone",
		spec.Zone)
	return true, nil
}

func (a *Agent) peerSpec() v1alpha1.PeerSpec {
	return v1alpha1.PeerSpec{
		NodeName: a.opts.NodeName, PeerID: a.opts.Swarm.ID().String(), Addresses: dialable(a.opts.Swarm.Addrs()),
		Zone: a.zone(), Proof: a.proof,
	}
}

// dialable are the addresses that other nodes can dial, without /p2p: not the loopback ones, unless there are no
// others.
func dialable(addrs []ma.Multiaddr) []string {
	var far, near []string
	for _, addr := range addrs {
		transport, _ := ma.SplitFunc(addr, func(c ma.Component) bool { return c.Protocol().Code == ma.P_P2P })
		switch s := transport.String(); {
		case len(transport) == 0, manet.IsIPUnspecified(transport), manet.IsIP6LinkLocal(transport):
		case manet.IsIPLoopback(transport):
			near = append(near, s)
		default:
			far = append(far, s)
		}
	}
	if len(far) == 0 {
		far = near
	}
	slices.Sort(far)
	far = slices.Compact(far)
	return far[:min(len(far), maxAddresses)]
}

// zone is the configured one, else that of the Node's label, which is remembered.
func (a *Agent) zone() string {
	if a.opts.Zone != "" {
		return a.opts.Zone
	}
	node, ok := a.api.node.get(a.opts.NodeName)
	if !ok {
		zone, _ := recall[string](a.opts.Memory, a.log, keyZone)
		return zone
	}
	key := corev1.LabelTopologyZone
	if s, ok := a.api.swarms.get(v1alpha1.SwarmName); ok && s.Spec.ZoneKey != "" {
		key = s.Spec.ZoneKey
	}
	zone := node.Labels[key]
	rememberZone(a.opts.Memory, a.log, zone)
	return zone
}

// LookupZone finds the node's zone for who must know it before an agent runs: by the Node's label that the Swarm names,
// and remembers it; else as it was remembered. ctx bounds the wait for the API server.
func LookupZone(ctx context.Context, config *rest.Config, nodeName string, memory content.Memory,
	log *slog.Logger) (string, error) {
	zone, err := askZone(ctx, config, nodeName)
	if err == nil {
		rememberZone(memory, log, zone)
		return zone, nil
	}
	if zone, ok := recall[string](memory, log, keyZone); ok {
		return zone, nil
	}
	return "", fmt.Errorf("zone of node %s: %w", nodeName, err)
}

// rememberZone writes only what has changed.
func rememberZone(memory content.Memory, log *slog.Logger, zone string) {
	if last, ok := recall[string](memory, log, keyZone); !ok || last != zone {
		remember(memory, log, keyZone, zone)
	}
}

func askZone(ctx context.Context, config *rest.Config, nodeName string) (string, error) {
	shoal, err := shoalClient(config)
	if err != nil {
		return "", err
	}
	nodes, err := metadata.NewForConfig(config)
	if err != nil {
		return "", err
	}
	node, err := nodes.Resource(corev1.SchemeGroupVersion.WithResource("nodes")).Get(ctx, nodeName, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	var swarm v1alpha1.Swarm
	key := corev1.LabelTopologyZone
	if err := shoal.Get().Resource("swarms").Name(v1alpha1.SwarmName).Do(ctx).Into(&swarm); err == nil &&
		swarm.Spec.ZoneKey != "" {
		key = swarm.Spec.ZoneKey
	}
	return node.Labels[key], nil
}
