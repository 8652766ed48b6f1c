package contender

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	kb "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"
	"github.com/opencontainers/go-digest"
	"sigs.k8s.io/yaml"

	"github.com/shoal-cache/shoal/test/internal/netns"
	"github.com/shoal-cache/shoal/test/internal/proc"
)

const (
	shoalRegistry = "127.0.0.1:5050"
	shoalAdmin    = "127.0.0.1:5051"
	shoalHub      = "127.0.0.1:5054"
	shoalSwarm    = 5052
	// shoalBootstrap is the number of agents that every other knows from the start.
	shoalBootstrap = 3
)

// Shoal is one Shoal agent on every host, all of one swarm, without an operator.
type Shoal struct {
	// Binary is shoal-node.
	Binary string
	// StoreOnly has layers brought to the agent's store and no further, as for a pin, to weigh the agents by
	// themselves.
	StoreOnly bool
}

// Name implements Contender.
func (s Shoal) Name() string {
	if s.StoreOnly {
		return "shoal-store"
	}
	return "shoal"
}

// Missing implements Contender.
func (s Shoal) Missing() string {
	if _, err := exec.LookPath(s.Binary); err != nil {
		return fmt.Sprintf("%s cannot be run (%v); make build makes it", s.Binary, err)
	}
	return ""
}

// Start implements Contender.
func (s Shoal) Start(ctx context.Context, site Site) (*Running, error) {
	running := &Running{Verifies: true, Admin: "http://" + shoalAdmin, StoreOnly: s.StoreOnly}
	var bootstrap []string
	for i, host := range site.Hosts {
		config := configOf(site, host)
		if err := s.writeConfig(config, site, host, bootstrap); err != nil {
			running.Stop()
			return nil, err
		}
		if i < shoalBootstrap {
			id, err := s.id(ctx, config)
			if err != nil {
				running.Stop()
				return nil, err
			}
			bootstrap = append(bootstrap, fmt.Sprintf("/ip4/%s/tcp/%d/p2p/%s", host.Addr, shoalSwarm, id))
		}
		cmd := host.Command(ctx, s.Binary, "--config", config)
		process, err := proc.Start(cmd, filepath.Join(site.Dir, host.Name+".log"))
		if err != nil {
			running.Stop()
			return nil, err
		}
		running.Processes = append(running.Processes, process)
		running.Mirrors = append(running.Mirrors, "http://"+shoalRegistry)
		if site.Hub {
			running.Hubs = append(running.Hubs, "http://"+shoalHub)
		}
	}
	for i, host := range site.Hosts {
		if err := awaitOK(ctx, host, running.Processes[i], "http://"+shoalAdmin+"/readyz"); err != nil {
			running.Stop()
			return nil, err
		}
	}
	running.Coordinator = func(ctx context.Context, d digest.Digest) (int, error) { return s.coordinator(ctx, site, d) }
	return running, nil
}

// configOf is the configuration file of a host's agent.
func configOf(site Site, host *netns.Host) string { return filepath.Join(site.Dir, host.Name+".yaml") }

// coordinator is the host whose agent is nearest to a blob by the DHT's metric.
func (s Shoal) coordinator(ctx context.Context, site Site, d digest.Digest) (int, error) {
	key, err := multihash.FromHexString("1220" + d.Encoded())
	if err != nil {
		return 0, fmt.Errorf("coordinator of %s: %w", d, err)
	}
	var agents []peer.ID
	for _, host := range site.Hosts {
		id, err := s.id(ctx, configOf(site, host))
		if err != nil {
			return 0, err
		}
		agent, err := peer.Decode(id)
		if err != nil {
			return 0, fmt.Errorf("agent of %s: %w", host.Name, err)
		}
		agents = append(agents, agent)
	}
	nearest := kb.SortClosestPeers(slices.Clone(agents), kb.ConvertKey(string(key)))[0]
	return slices.Index(agents, nearest), nil
}

// id is the peer ID of the agent with the given configuration.
func (s Shoal) id(ctx context.Context, config string) (string, error) {
	cmd := exec.CommandContext(ctx, s.Binary, "id", "--config", config)
	var problem bytes.Buffer
	cmd.Stderr = &problem
	id, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(problem.Bytes()))
	}
	return string(bytes.TrimSpace(id)), nil
}

func (s Shoal) writeConfig(path string, site Site, host *netns.Host, bootstrap []string) error {
	swarm := map[string]any{"listen": []string{fmt.Sprintf("/ip4/%s/tcp/%d", host.Addr, shoalSwarm)}}
	if len(bootstrap) > 0 {
		swarm["bootstrap"] = bootstrap
	}
	if host.Zone != "" {
		swarm["zone"] = host.Zone
	}
	registry := map[string]any{"listen": shoalRegistry}
	if s.StoreOnly {
		registry["ranges"] = "Verified"
	}
	config := map[string]any{
		"registry":  registry,
		"admin":     map[string]any{"listen": shoalAdmin},
		"swarm":     swarm,
		"store":     map[string]any{"path": filepath.Join(site.Dir, host.Name), "capacity": "20GiB"},
		"upstreams": []any{map[string]any{"registry": Registry, "endpoints": []string{site.OriginURL()}}},
	}
	if site.Hub {
		config["hub"] = map[string]any{"enabled": true, "listen": shoalHub, "endpoint": site.OriginURL()}
		config["upstream"] = map[string]any{"allowAddresses": []string{site.Origin.Addr.String() + "/32"}}
	}
	b, err := yaml.Marshal(config)
	if err != nil {
		return fmt.Errorf("configure the agent of %s: %w", host.Name, err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		return fmt.Errorf("configure the agent of %s: %w", host.Name, err)
	}
	return nil
}
