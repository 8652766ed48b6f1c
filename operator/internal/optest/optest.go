// Package optest has what the operator's tests share: a fleet of nodes whose agents do what the contract in
// api/README.md says, but hold no bytes, and a registry.
package optest

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-cache/shoal/api/apitest"
	"github.com/shoal-cache/shoal/api/v1alpha1"
)

// NewNode is a Ready node in a zone.
func NewNode(name, zone string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
		corev1.LabelTopologyZone: zone, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64",
		corev1.LabelHostname: name}}}
}

// SetReady writes a node's condition Ready.
func SetReady(ctx context.Context, c client.Client, node *corev1.Node, status corev1.ConditionStatus,
	since time.Time) error {
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status, Reason: "Test",
		LastTransitionTime: metav1.NewTime(since), LastHeartbeatTime: metav1.NewTime(since)}}
	return c.Status().Update(ctx, node)
}

// NewPeer is the Peer of a node with an identity of its own, and a proof of it.
func NewPeer(node string) (*v1alpha1.Peer, error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, err
	}
	return PeerOf(node, key)
}

// PeerOf is the Peer of a node with a key.
func PeerOf(node string, key crypto.PrivKey) (*v1alpha1.Peer, error) {
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, err
	}
	p := apitest.NewPeer(node, id.String())
	p.Spec.Proof, err = key.Sign(v1alpha1.ProofMessage(node))
	return p, err
}

// Agent does for a node what the contract says, without bytes: what it is told to keep it holds at once.
type Agent struct {
	Node   string
	Client client.Client // of the node's own token

	mu     sync.Mutex
	holds  map[string]string // pin UID to revision
	fails  map[string]v1alpha1.PinProgress
	paused bool
}

// Holds are the UIDs of the pins that the node holds.
func (a *Agent) Holds() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Sorted(maps.Keys(a.holds))
}

// Fail makes the node fail with a pin for a reason, or no more if it is empty.
func (a *Agent) Fail(uid, reason, message string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fails == nil {
		a.fails = map[string]v1alpha1.PinProgress{}
	}
	a.fails[uid] = v1alpha1.PinProgress{State: v1alpha1.PinFailed, Reason: reason, Message: message}
	if reason == "" {
		delete(a.fails, uid)
	}
}

// Pause stops fetching: new entries stay Fetching until Resume.
func (a *Agent) Pause(paused bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.paused = paused
}

// Register makes the node's Peer.
func (a *Agent) Register(ctx context.Context) error {
	p, err := NewPeer(a.Node)
	if err != nil {
		return err
	}
	return a.Client.Create(ctx, p)
}

// Run follows the NodeCache until ctx ends. Errors of the API server are waited out, as an agent would.
func (a *Agent) Run(ctx context.Context, every time.Duration) {
	wait.UntilWithContext(ctx, func(ctx context.Context) { _ = a.Step(ctx) }, every)
}

// Step looks at the NodeCache once and reports. A NodeCache that is missing or can't be read changes nothing.
func (a *Agent) Step(ctx context.Context) error {
	var cache v1alpha1.NodeCache
	if err := a.Client.Get(ctx, client.ObjectKey{Name: a.Node}, &cache); err != nil {
		return err
	}
	status, changed := a.follow(&cache)
	if !changed {
		return nil
	}
	return a.report(ctx, status)
}

// Heartbeat reports that nothing has changed.
func (a *Agent) Heartbeat(ctx context.Context) error {
	var cache v1alpha1.NodeCache
	if err := a.Client.Get(ctx, client.ObjectKey{Name: a.Node}, &cache); err != nil {
		return err
	}
	status, _ := a.follow(&cache)
	return a.report(ctx, status)
}

func (a *Agent) report(ctx context.Context, status v1alpha1.NodeCacheStatus) error {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&status)
	if err != nil {
		return err
	}
	u := &unstructured.Unstructured{Object: map[string]any{"status": content}}
	u.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("NodeCache"))
	u.SetName(a.Node)
	return a.Client.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(u),
		client.FieldOwner(v1alpha1.AgentFieldManager), client.ForceOwnership)
}

func (a *Agent) follow(cache *v1alpha1.NodeCache) (v1alpha1.NodeCacheStatus, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	status := v1alpha1.NodeCacheStatus{ReportedAt: &metav1.Time{Time: time.Now()}, Version: "test"}
	status.Usage.Capacity = resource.NewQuantity(1<<30, resource.BinarySI)
	holds := map[string]string{}
	for _, e := range cache.Spec.Pins {
		p := v1alpha1.PinProgress{UID: e.UID, Revision: e.Revision, State: v1alpha1.PinReady, BytesHeld: 10,
			BytesWanted: 10}
		fail, fails := a.fails[e.UID]
		switch {
		case e.Action == v1alpha1.ActionPurge:
			p.State, p.BytesHeld = v1alpha1.PinPurged, 0
		case fails:
			p.State, p.Reason, p.Message, p.BytesHeld = fail.State, fail.Reason, fail.Message, 0
		case a.paused && a.holds[e.UID] != e.Revision:
			p.State, p.BytesHeld = v1alpha1.PinFetching, 5
			if old, ok := a.holds[e.UID]; ok {
				holds[e.UID], p.HeldRevision = old, old // held until the new revision is whole
			}
		default:
			holds[e.UID] = e.Revision
			status.PinsReady++
		}
		status.Pins = append(status.Pins, p)
	}
	a.holds = holds
	same := cache.Status.ReportedAt != nil && slices.Equal(status.Pins, cache.Status.Pins)
	return status, !same
}

// Fleet is nodes with agents.
type Fleet struct {
	Cluster *apitest.Cluster
	Agents  map[string]*Agent
}

// NewFleet makes n Ready nodes, named prefix-i, in zones, and registers their agents.
func NewFleet(ctx context.Context, c *apitest.Cluster, prefix string, n, zones int) (*Fleet, error) {
	f := &Fleet{Cluster: c, Agents: map[string]*Agent{}}
	for i := range n {
		if err := f.Add(ctx, fmt.Sprintf("%s-%d", prefix, i), fmt.Sprintf("zone-%c", 'a'+i%zones)); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// Add makes one more node.
func (f *Fleet) Add(ctx context.Context, name, zone string) error {
	node := NewNode(name, zone)
	if err := f.Cluster.Client.Create(ctx, node); err != nil {
		return err
	}
	if err := SetReady(ctx, f.Cluster.Client, node, corev1.ConditionTrue, time.Now()); err != nil {
		return err
	}
	agent, err := client.New(f.Cluster.Impersonate(name, apitest.AgentServiceAccount),
		client.Options{Scheme: f.Cluster.Scheme, Mapper: f.Cluster.Client.RESTMapper()})
	if err != nil {
		return err
	}
	f.Agents[name] = &Agent{Node: name, Client: agent}
	return f.Agents[name].Register(ctx)
}

// Run runs all agents until ctx ends and they have stopped.
func (f *Fleet) Run(ctx context.Context) {
	var all sync.WaitGroup
	for _, a := range f.Agents {
		all.Go(func() { a.Run(ctx, 200*time.Millisecond) })
	}
	all.Wait()
}

// Holders are the nodes that hold a pin, in order.
func (f *Fleet) Holders(uid string) []string {
	var nodes []string
	for name, a := range f.Agents {
		if slices.Contains(a.Holds(), uid) {
			nodes = append(nodes, name)
		}
	}
	slices.Sort(nodes)
	return nodes
}
