// Package config reads the node agent's configuration into one typed Config.
//
// Four places are read; for each key, the first in this order that sets it wins:
//
//  1. flags: store.minFree is --store-min-free
//  2. environment variables: store.minFree is SHOAL_STORE_MINFREE; an empty variable counts as unset
//  3. the file: YAML, in the nesting of the keys
//  4. the defaults
//
// A list replaces the list of a place of lower precedence as a whole. In flags and variables its items are separated by
// commas; the lists of tables (upstreams, policy.rules) have no flag, and are YAML or JSON in a variable. Keys are not
// case-sensitive.
//
// Load reports all problems it finds at once: keys that do not exist, values that cannot be read, values out of bounds
// and combinations that cannot work.
package config

import (
	"io"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"go.yaml.in/yaml/v3"

	"github.com/shoal-cache/shoal/api/registries"
	"github.com/shoal-cache/shoal/node/internal/mirror"
	"github.com/shoal-cache/shoal/node/internal/policy"
)

// Config is the configuration of one agent. The yaml tags are the keys. What each means is said in options.go.
type Config struct {
	Registry   Registry   `yaml:"registry"`
	Hub        Hub        `yaml:"hub"`
	Admin      Admin      `yaml:"admin"`
	Metrics    Metrics    `yaml:"metrics"`
	Swarm      Swarm      `yaml:"swarm"`
	Store      Store      `yaml:"store"`
	Upstream   Registries `yaml:"upstream"`
	Upstreams  []Upstream `yaml:"upstreams"`
	Policy     Policy     `yaml:"policy"`
	Mirror     Mirror     `yaml:"mirror"`
	Log        Log        `yaml:"log"`
	Tracing    Tracing    `yaml:"tracing"`
	Kubernetes Kubernetes `yaml:"kubernetes"`
}

// Registry configures the registry front.
type Registry struct {
	Listen           string        `yaml:"listen"`
	DefaultRegistry  string        `yaml:"defaultRegistry"`
	Ranges           Ranges        `yaml:"ranges"`
	ReadAhead        policy.Size   `yaml:"readAhead"`
	FirstByteTimeout time.Duration `yaml:"firstByteTimeout"`
	DrainTimeout     time.Duration `yaml:"drainTimeout"`
}

// Hub configures the hub front, which clients of a model hub reach as their HF_ENDPOINT.
type Hub struct {
	Enabled   bool           `yaml:"enabled"`
	Listen    string         `yaml:"listen"`
	Endpoint  string         `yaml:"endpoint"`
	AllowFrom []netip.Prefix `yaml:"allowFrom"`
	URLs      []string       `yaml:"urls"`
	// CertFile and KeyFile are the front's certificate and key, as PEM. They are read anew for each connection. Empty:
	// plain HTTP.
	CertFile string `yaml:"certFile"`
	KeyFile  string `yaml:"keyFile"`
}

// Below are the URLs.
func (h Hub) Below() []*url.URL {
	var out []*url.URL
	for _, s := range h.URLs {
		if u, err := url.Parse(s); err == nil { // Load has checked each
			out = append(out, u)
		}
	}
	return out
}

// Name is the hub's in policies: the host of its endpoint.
func (h Hub) Name() string {
	u, err := url.Parse(h.Endpoint)
	if err != nil {
		return ""
	}
	return registries.Canonical(u.Host)
}

// Ranges says what is given of a blob that is not whole on this node.
type Ranges string

const (
	// RangesChunks: just the chunks that the range needs, each by the word of who read it from the registry.
	RangesChunks Ranges = "Chunks"
	// RangesVerified: the range once the whole blob has come and matches its digest.
	RangesVerified Ranges = "Verified"
)

// Admin configures the server for health, metrics and the read-only view.
type Admin struct {
	Listen string `yaml:"listen"`
}

// Tracing configures where spans of pulls are sent.
type Tracing struct {
	Endpoint string  `yaml:"endpoint"`
	Protocol string  `yaml:"protocol"`
	Ratio    float64 `yaml:"ratio"`
}

// Metrics configures a server for metrics alone, which other machines may reach: it has no profiles, and does not show
// what the cache holds.
type Metrics struct {
	Listen string `yaml:"listen"`
	// CertFile and KeyFile are the server's certificate and key, as PEM. They are read anew for each connection. Empty:
	// plain HTTP.
	CertFile    string `yaml:"certFile"`
	KeyFile     string `yaml:"keyFile"`
	TokenReview bool   `yaml:"tokenReview"`
}

// Admission says which peers may join.
type Admission string

const (
	// AdmitAll admits every peer that speaks the swarm's protocol prefix.
	AdmitAll Admission = "Open"
	// AdmitList admits the peers of swarm.peers and swarm.bootstrap.
	AdmitList Admission = "List"
	// AdmitKubernetes admits the peers whose Peer resource the operator has admitted.
	AdmitKubernetes Admission = "Kubernetes"
)

// Swarm configures the agent's part in the swarm.
type Swarm struct {
	Listen         []ma.Multiaddr `yaml:"listen"`
	Announce       []ma.Multiaddr `yaml:"announce"`
	Bootstrap      []ma.Multiaddr `yaml:"bootstrap"`
	Zone           string         `yaml:"zone"`
	ProtocolPrefix string         `yaml:"protocolPrefix"`
	// CongestionControl: see swarm.Options.
	CongestionControl []string    `yaml:"congestionControl"`
	Admission         Admission   `yaml:"admission"`
	Peers             []peer.ID   `yaml:"peers"`
	Connections       Connections `yaml:"connections"`
}

// Connections are watermarks of the connection manager: above High it closes the least useful ones until Low are left.
type Connections struct {
	Low  int `yaml:"low"`
	High int `yaml:"high"`
}

// Store configures what is kept on disk.
type Store struct {
	Path string `yaml:"path"`
	// Store bounds what is kept. A CachePolicy resource takes its place where Kubernetes is enabled.
	policy.Store  `yaml:",inline"`
	RuntimePath   string        `yaml:"runtimePath"`
	ScrubInterval time.Duration `yaml:"scrubInterval"`
}

// Registries says how all registries are reached.
type Registries struct {
	// AllowAddresses are CIDR ranges at which registries, what they redirect to, and their token servers are asked
	// although the addresses are the node's own: loopback, link-local and the like. The endpoints of upstreams need no
	// entry.
	AllowAddresses []netip.Prefix `yaml:"allowAddresses"`
}

// Upstream says how to reach a registry. A registry that is not listed is reached at https://<registry>.
type Upstream struct {
	// Registry is the host, with port if any, as image references spell it. "*": every registry that no other entry
	// names.
	Registry string `yaml:"registry"`
	// Endpoints are base URLs tried in order. Those of "*" are told the registry by the query parameter ns. Empty:
	// https://<registry>.
	Endpoints []string `yaml:"endpoints,omitempty"`
	// CAFile holds certificates in PEM that are trusted besides the system's.
	CAFile string `yaml:"caFile,omitempty"`
	// ClientCertFile and ClientKeyFile hold the PEM pair the agent shows to the registry.
	ClientCertFile string `yaml:"clientCertFile,omitempty"`
	ClientKeyFile  string `yaml:"clientKeyFile,omitempty"`
	// InsecureSkipVerify accepts any certificate.
	InsecureSkipVerify bool `yaml:"insecureSkipVerify,omitempty"`
}

// Policy is the node's own policy. A CachePolicy resource takes its place where Kubernetes is enabled.
type Policy struct {
	// Defaults hold where no rule matches, and for the fields that a rule leaves out. Its Match is not used.
	Defaults policy.Rule `yaml:"defaults"`
	// Rules are tried in order; the first that matches holds.
	Rules     []policy.Rule    `yaml:"rules"`
	Bandwidth policy.Bandwidth `yaml:"bandwidth"`
}

// Mirror says how shoal-node mirror install was run on this node, so that the agent can report what is amiss with the
// runtime's mirror configuration. The agent itself changes nothing there.
type Mirror struct {
	StateDir      string         `yaml:"stateDir"`
	Runtime       mirror.Runtime `yaml:"runtime"`
	Root          string         `yaml:"root"`
	Path          string         `yaml:"path"`
	RuntimeConfig string         `yaml:"runtimeConfig"`
	Registries    []string       `yaml:"registries"`
}

// Log configures the log on standard error.
type Log struct {
	Level  string `yaml:"level"`
	Format string `yaml:"format"`
}

// Kubernetes configures the agent's Kubernetes side.
type Kubernetes struct {
	Enabled         bool   `yaml:"enabled"`
	NodeName        string `yaml:"nodeName"`
	Kubeconfig      string `yaml:"kubeconfig"`
	RuntimeEndpoint string `yaml:"runtimeEndpoint"`
}

// IdentityPath is the file of the peer's private key.
func (c *Config) IdentityPath() string { return filepath.Join(c.Store.Path, "identity.key") }

// BootstrapPeers are the peers of swarm.bootstrap, each with all its addresses.
func (c *Config) BootstrapPeers() []peer.AddrInfo {
	peers, err := peer.AddrInfosFromP2pAddrs(c.Swarm.Bootstrap...)
	if err != nil {
		panic(err) // Load has checked each address
	}
	return peers
}

// EffectivePolicy is the policy that this configuration alone makes.
func (c *Config) EffectivePolicy() *policy.Policy {
	return &policy.Policy{
		Rules:     c.Policy.Rules,
		Default:   c.Policy.Defaults,
		Bandwidth: c.Policy.Bandwidth,
		Store:     c.Store.Store,
	}
}

// MirrorOptions are what mirror install was given on this node.
func (c *Config) MirrorOptions() mirror.Options {
	m := c.Mirror
	return mirror.Options{
		Runtime: m.Runtime, Endpoint: "http://" + c.Registry.Listen, Registries: m.Registries,
		Root: m.Root, Path: m.Path, RuntimeConfig: m.RuntimeConfig, StateDir: m.StateDir,
		Socket: strings.TrimPrefix(c.Kubernetes.RuntimeEndpoint, "unix://"),
	}
}

// Write writes the configuration in force as a file that Load reads back to the same Config.
func (c *Config) Write(w io.Writer) error {
	e := yaml.NewEncoder(w)
	e.SetIndent(2)
	if err := e.Encode(c); err != nil {
		return err
	}
	return e.Close()
}
