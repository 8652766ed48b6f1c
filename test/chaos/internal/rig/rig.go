package rig

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	kb "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/shoal-cache/shoal/test/internal/badregistry"
	"github.com/shoal-cache/shoal/test/internal/netns"
)

// registryPort is that of both registries.
const registryPort = 5000

// Rig is a swarm and its registries.
type Rig struct {
	Nodes []*Node
	// Registry is the one that images come from, RegistryURL its base URL.
	Registry    *badregistry.Registry
	RegistryURL string

	dir             string
	network         *netns.Network
	origin, mallory *netns.Host
	mallories       atomic.Int64
	addresses       []string // of all agents
	listeners       []net.Listener
}

// New brings up so many agents of the given executable. Files go below dir, and shall not be on a disk that is slow to
// sync.
func New(ctx context.Context, dir, binary string, nodes int) (*Rig, error) {
	network, err := netns.New(ctx)
	if err != nil {
		return nil, err
	}
	r := &Rig{Registry: badregistry.New(), dir: dir, network: network}
	if err := r.build(ctx, dir, binary, nodes); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

func (r *Rig) build(ctx context.Context, dir, binary string, nodes int) (err error) {
	if err := share(dir); err != nil {
		return err
	}
	if r.origin, err = r.network.AddHost(ctx, "origin", "", 0); err != nil {
		return err
	}
	if r.RegistryURL, err = r.serve(ctx, r.origin, r.Registry); err != nil {
		return err
	}
	r.Registry.RedirectTo = "http://127.0.0.1:5051" // an agent that followed would ask its own admin server
	liar, err := r.network.AddHost(ctx, "liar", "", 0)
	if err != nil {
		return err
	}
	claims := badregistry.New()
	claims.SetMode(badregistry.Claims)
	evil, err := r.serve(ctx, liar, claims)
	if err != nil {
		return err
	}
	if r.mallory, err = r.network.AddHost(ctx, "mallory", "", 0); err != nil {
		return err
	}
	var bootstrap []string
	for i := range nodes {
		n := &Node{Index: i, dir: filepath.Join(dir, fmt.Sprintf("node%02d", i)), binary: binary,
			rotten: map[string]bool{}}
		r.Nodes = append(r.Nodes, n)
		if n.Host, err = r.network.AddHost(ctx, fmt.Sprintf("n%d", i), "", 0); err != nil {
			return err
		}
		if n.disk, err = newDisk(ctx, n.dir); err != nil {
			return err
		}
		if err := n.configure(bootstrap, r.RegistryURL, evil); err != nil {
			return err
		}
		address, err := n.address(ctx)
		if err != nil {
			return err
		}
		r.addresses = append(r.addresses, address)
		if i < bootstraps {
			bootstrap = append(bootstrap, address)
		}
	}
	// The first ones, too, know the others, for any may come back alone. But the very first knows nobody, as it is
	// outside Kubernetes: those who know it have to come to it.
	for _, n := range r.Nodes[1:min(bootstraps, nodes)] {
		if err := n.configure(bootstrap, r.RegistryURL, evil); err != nil {
			return err
		}
	}
	for _, n := range r.Nodes {
		if err := n.Start(ctx); err != nil {
			return err
		}
	}
	return r.AwaitReady(ctx, 2*time.Minute)
}

func (r *Rig) serve(ctx context.Context, h *netns.Host, registry *badregistry.Registry) (string, error) {
	address := fmt.Sprintf("%s:%d", h.Addr, registryPort)
	listener, err := h.Listen(ctx, address)
	if err != nil {
		return "", fmt.Errorf("registry: %w", err)
	}
	r.listeners = append(r.listeners, listener)
	go func() { _ = registry.Serve(listener) }() // ends with the listener
	return "http://" + address, nil
}

// AwaitReady waits until every agent says that it is ready.
func (r *Rig) AwaitReady(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for _, n := range r.Nodes {
		for {
			err := n.Ready(ctx)
			if err == nil {
				break
			}
			if died := n.Died(); died != nil {
				return died
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("not ready after %s: %w", within, err)
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	return nil
}

// AwaitPeers waits until every agent is connected with so many peers, but not for long.
func (r *Rig) AwaitPeers(ctx context.Context, peers int, within time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for _, n := range r.Nodes {
		for {
			if state, err := n.State(ctx); err == nil && state.Peers >= peers || ctx.Err() != nil {
				break
			}
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
}

// Unplug takes a node off the network, Plug puts it back.
func (r *Rig) Unplug(ctx context.Context, node int) error {
	return r.network.SetLink(ctx, r.Nodes[node].Host, false)
}

// Plug undoes Unplug.
func (r *Rig) Plug(ctx context.Context, node int) error {
	return r.network.SetLink(ctx, r.Nodes[node].Host, true)
}

// SetFault sets what is wrong with a node's network.
func (r *Rig) SetFault(ctx context.Context, node int, f netns.Fault) error {
	return r.network.SetFault(ctx, r.Nodes[node].Host, f)
}

// SetRate bounds what the registry's link carries in Mbit/s; 0: nothing.
func (r *Rig) SetRate(ctx context.Context, rate int) error {
	return r.network.SetFault(ctx, r.origin, netns.Fault{Rate: netns.Rate(rate) * netns.Mbit})
}

// Coordinator is the node that coordinates a blob while all are there: the one nearest to it by the DHT's metric.
func (r *Rig) Coordinator(d digest.Digest) (int, error) {
	key, err := multihash.FromHexString("1220" + d.Encoded())
	if err != nil {
		return 0, fmt.Errorf("coordinator of %s: %w", d, err)
	}
	var all []peer.ID
	for _, n := range r.Nodes {
		all = append(all, n.peer)
	}
	nearest := kb.SortClosestPeers(slices.Clone(all), kb.ConvertKey(string(key)))[0]
	return slices.Index(all, nearest), nil
}

// Close ends everything.
func (r *Rig) Close() error {
	var errs []error
	for _, n := range r.Nodes {
		n.Signal(syscall.SIGCONT) // a stopped process cannot end
		n.Kill()
		if n.disk != nil {
			errs = append(errs, n.disk.detach(context.Background())) // the run's own context may be what ended
			errs = append(errs, os.Remove(n.disk.image))
		}
	}
	_ = unix.Unmount(r.dir, unix.MNT_DETACH) // unless it was never mounted
	for _, l := range r.listeners {
		errs = append(errs, l.Close())
	}
	return errors.Join(append(errs, r.network.Close())...)
}
