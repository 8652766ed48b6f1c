// Package agent is the node agent's Kubernetes side: it registers the node's Peer, admits the peers that the operator
// has admitted, puts the cluster's policy in force, keeps the pins that the node is given, and reports.
//
// api/README.md is its contract with the operator. In the order of the data flow:
//
//	api.go        clients and watches: the one set of informers
//	memory.go     the API server's last answers on disk, from which an agent starts while it is away
//	members.go    Peers, Swarm → whom the swarm lets in, and where it starts
//	register.go   the node's own Peer
//	policy.go     CachePolicies, the Node's labels → the one policy in force
//	pins.go       the NodeCache's spec → package pin, which keeps them; pull secrets
//	report.go     NodeCache's status; conditions.go: its conditions; totals.go: its counters, over restarts
//	writer.go     bounds what is written to the API server
//	findings.go   what is amiss with the runtime's mirror configuration, as events on the Node
//
// Everything is level-triggered: a watch event says only that it is time to look at what the informers hold. Nothing
// here stops the data plane: what can't be had from the API server is taken from memory, and asked for again.
package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/node/internal/agent/pin"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/policy"
)

// Swarm is what the agent steers of the peer-to-peer side.
type Swarm interface {
	ID() peer.ID
	Addrs() []ma.Multiaddr
	// SetAdmitted replaces the set of peers that may connect. It drops connections of those that no longer may.
	SetAdmitted(ids []peer.ID)
	// SetBootstrap replaces the peers to start from.
	SetBootstrap(peers []peer.AddrInfo)
}

// Counters are sums since the agent started.
type Counters struct {
	// Hits are runtimes' requests answered from this node's disk, Misses those that took bytes from elsewhere.
	Hits, Misses int64
	// PeerBytes and UpstreamBytes were taken from there, UploadedBytes given to peers.
	PeerBytes, UpstreamBytes, UploadedBytes int64
	// SavedBytes were given to callers and not read from a registry for them.
	SavedBytes int64
}

// Options configure an Agent. All fields are required but where it says otherwise.
type Options struct {
	// Config reaches the API server with a token that is bound to this node.
	Config *rest.Config
	// NodeName is the Node that the agent runs on.
	NodeName string
	// Version of the agent, as it is reported. May be empty.
	Version string
	// Zone overrides the Node's label. Optional.
	Zone string
	// Key is the private key of Swarm's peer ID.
	Key    crypto.PrivKey
	Swarm  Swarm
	Memory content.Memory
	// Policy is told of every policy that comes into force; BasePolicy decides what no CachePolicy sets.
	Policy     *policy.Live
	BasePolicy *policy.Policy

	Store pin.Store
	// StoreHealth returns nil while the store can write to its disk.
	StoreHealth func() error
	// Crowded tells of a file of a model that had no room of late; empty: none had. nil: the node has no hub front.
	Crowded func() string

	Fetcher  pin.Fetcher
	Upstream pin.Upstream
	// Runtime, Tags, Files, Hub and Gate are optional; see package pin.
	Runtime pin.Runtime
	Tags    pin.Tags
	Files   pin.Files
	Hub     pin.Hub
	Gate    pin.Gate
	// Counters gives the numbers to report.
	Counters func() Counters

	// Logger and Registerer are optional.
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Agent is the Kubernetes side of one node agent.
type Agent struct {
	opts    Options
	log     *slog.Logger
	metrics *metrics
	api     *api
	keeper  *pin.Keeper
	proof   []byte
	peer    *writer
	report  *writer
	events  *events

	membersChanged, policyChanged, pinsChanged signal

	inForce atomic.Pointer[v1alpha1.EffectivePolicy] // the policy, nil before the first
	// why the policy that was seen last is not in force; nil where it is
	rejected  atomic.Pointer[string]
	findings  atomic.Pointer[[]Finding] // nil where they are not known
	unlisted  atomic.Pointer[[]string]  // listing.Unlisted
	totals    *totals
	admission atomic.Bool // whom to admit is known, from the API server or from memory
}

// New makes an Agent. It asks nothing of the API server. It fails for options that can't work.
func New(opts Options) (*Agent, error) {
	if opts.Config == nil || opts.NodeName == "" || opts.Key == nil || opts.Swarm == nil || opts.Memory == nil ||
		opts.Policy == nil || opts.BasePolicy == nil || opts.StoreHealth == nil || opts.Counters == nil {
		return nil, errors.New("agent: needs Config, NodeName, Key, Swarm, Memory, Policy, " +
			"BasePolicy, StoreHealth and Counters")
	}
	opts.Logger = cmp.Or(opts.Logger, slog.New(slog.DiscardHandler))
	if id, err := peer.IDFromPrivateKey(opts.Key); err != nil || id != opts.Swarm.ID() {
		return nil, fmt.Errorf("agent: Key is not that of peer %s", opts.Swarm.ID())
	}
	proof, err := opts.Key.Sign(v1alpha1.ProofMessage(opts.NodeName))
	if err != nil {
		return nil, fmt.Errorf("agent: sign the proof of %s: %w", opts.NodeName, err)
	}
	a := &Agent{
		opts: opts, log: opts.Logger, proof: proof,
		membersChanged: newSignal(), policyChanged: newSignal(), pinsChanged: newSignal(),
	}
	if a.api, err = newAPI(opts.Config, opts.NodeName, a.log); err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	a.metrics = newMetrics(opts.Registerer, a)
	a.totals = newTotals(opts.Memory, a.log)
	a.peer = newWriter("Peer", v1alpha1.PeerInterval, 1, a.writePeer, a.metrics, a.log)
	a.report = newWriter("NodeCache", v1alpha1.ReportInterval, 2, a.writeReport, a.metrics, a.log)
	a.events = newEvents(a.api, opts.NodeName, a.metrics)
	a.keeper, err = pin.New(pin.Options{
		Store: opts.Store, Fetcher: opts.Fetcher, Upstream: opts.Upstream, Secrets: secrets{a.api},
		Runtime: opts.Runtime,
		Tags:    opts.Tags, Files: opts.Files, Gate: opts.Gate, Hub: opts.Hub,
		Changed: a.report.changed.raise, Ended: a.report.end, Logger: a.log,
		Registerer: opts.Registerer,
	})
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	return a, nil
}

// Run works until ctx ends, whether the API server can be reached or not, and returns when all its goroutines have
// ended. It is called once.
func (a *Agent) Run(ctx context.Context) {
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(calm{a.log.Handler()})) // for the informers
	a.observe()
	var parts sync.WaitGroup
	defer parts.Wait()
	for _, part := range []func(context.Context){
		a.api.run, a.followMembers, a.followPolicy, a.followPins, a.registerPeer, a.reportCache, a.keeper.Run,
		a.events.run,
	} {
		parts.Go(func() { part(ctx) })
	}
}

// observe has watch events raise the signals of those who look at the objects.
func (a *Agent) observe() {
	a.api.peers.notify(a.membersChanged.raise)
	a.api.peers.notifyOf(a.opts.NodeName, a.peer.changed.raise)
	a.api.swarms.notify(func() { a.membersChanged.raise(); a.peer.changed.raise() })
	a.api.node.notify(func() { a.policyChanged.raise(); a.peer.changed.raise() })
	a.api.policies.notify(a.policyChanged.raise)
	a.api.caches.notify(a.pinsChanged.raise)
}

// Ready is nil once it is known whom the swarm may admit, from the API server or from memory. An agent that is not
// ready serves its node from the registry all the same.
func (a *Agent) Ready() error {
	if !a.admission.Load() {
		return errors.New("the API server has not been reached yet, and no earlier answer of it is remembered")
	}
	return nil
}

// BlobRemoved tells that the store no longer has a blob. Pins that need it are repaired at once.
func (a *Agent) BlobRemoved(d digest.Digest) { a.keeper.Lost(d) }

// ManifestServed tells that the registry front gave a manifest to a workload of this node, for pins that expire when
// they are not used.
func (a *Agent) ManifestServed(d digest.Digest) { a.keeper.Used(d, time.Now()) }

// signal tells one goroutine that it is time to look. Raising it twice before it looks is raising it once.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

func (s signal) raise() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// take makes it one that is not raised.
func (s signal) take() {
	select {
	case <-s:
	default:
	}
}

// follow calls look at once and after every signal, until ctx ends.
func follow(ctx context.Context, changed signal, look func()) {
	for {
		look()
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}
