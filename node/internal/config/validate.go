package config

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/shoal-cache/shoal/api/registries"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/mirror"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/trace"
)

// problems collects what is wrong, one error for each key.
type problems []error

func (p *problems) add(key, format string, args ...any) {
	*p = append(*p, fmt.Errorf("%s: %w", key, fmt.Errorf(format, args...)))
}

// validate checks bounds and combinations.
func (c *Config) validate() error {
	var p problems
	c.validateServers(&p)
	c.validateHub(&p)
	c.validateSwarm(&p)
	c.validateStore(&p)
	c.validateUpstreams(&p)
	c.validatePolicy(&p)
	c.validateMirror(&p)
	c.validateRest(&p)
	return errors.Join(p...)
}

func (c *Config) validateMetrics(p *problems) {
	m := c.Metrics
	if m.Listen == "" {
		if m != (Metrics{}) {
			p.add("metrics.listen",
				"empty, so the other keys of metrics would do nothing; want an address such as 10.0.0.5:5053")
		}
		return
	}
	checkListen(p, "metrics.listen", m.Listen)
	checkPair(p, "metrics", m.CertFile, m.KeyFile)
	if m.TokenReview && !c.Kubernetes.Enabled {
		p.add("metrics.tokenReview", "the API server reviews tokens, and kubernetes.enabled is false")
	}
}

// checkPair checks the keys of a server's certificate.
func checkPair(p *problems, server, certFile, keyFile string) {
	if (certFile == "") != (keyFile == "") {
		p.add(server+".certFile", "a certificate needs its key, and a key its certificate; set %[1]s.certFile and "+
			"%[1]s.keyFile, or neither", server)
	}
}

func (c *Config) validateServers(p *problems) {
	checkListen(p, "registry.listen", c.Registry.Listen)
	checkListen(p, "admin.listen", c.Admin.Listen)
	c.validateMetrics(p)
	c.validatePorts(p)
	if c.Registry.DefaultRegistry != "" {
		checkRegistry(p, "registry.defaultRegistry", c.Registry.DefaultRegistry)
	}
	if r := c.Registry.Ranges; r != RangesChunks && r != RangesVerified {
		p.add("registry.ranges", "%q is none of %s, %s", r, RangesChunks, RangesVerified)
	}
	if c.Registry.ReadAhead.Share != 0 {
		p.add("registry.readAhead", "%s is a share of nothing; want a size such as 16MiB, or 0 for none",
			c.Registry.ReadAhead)
	}
	if c.Registry.FirstByteTimeout <= 0 {
		p.add("registry.firstByteTimeout", "%s; want more than 0, so that the runtime can go to the registry itself",
			c.Registry.FirstByteTimeout)
	}
	if c.Registry.DrainTimeout < 0 {
		p.add("registry.drainTimeout", "%s is negative; want 0 to end answers at once, or more",
			c.Registry.DrainTimeout)
	}
}

func (c *Config) validateHub(p *problems) {
	checkListen(p, "hub.listen", c.Hub.Listen)
	checkEndpoint(p, "hub.endpoint", c.Hub.Endpoint)
	checkPair(p, "hub", c.Hub.CertFile, c.Hub.KeyFile)
	scheme := map[string]string{}
	for i, s := range c.Hub.URLs {
		key := fmt.Sprintf("hub.urls[%d]", i)
		checkEndpoint(p, key, s)
		u, err := url.Parse(s)
		if err != nil {
			continue
		}
		host := strings.ToLower(u.Host)
		if scheme[host] != "" && scheme[host] != u.Scheme {
			p.add(key, "%s is listed as %s too; name one of them", s, scheme[host])
		}
		scheme[host] = u.Scheme
	}
}

// validatePorts looks for servers that want a port of another.
func (c *Config) validatePorts(p *problems) {
	type server struct{ key, listen string }
	var before []server
	check := func(key, listen string, shown any) {
		for _, other := range before {
			if clash(listen, other.listen) {
				p.add(key, "%s and %s, %s, are one port; choose another port", shown, other.key, other.listen)
			}
		}
	}
	for _, s := range []server{{"registry.listen", c.Registry.Listen}, {"admin.listen", c.Admin.Listen},
		{"metrics.listen", c.Metrics.Listen}, {"hub.listen", c.Hub.Listen}} {
		if s.key != "hub.listen" || c.Hub.Enabled {
			check(s.key, s.listen, s.listen)
			before = append(before, s)
		}
	}
	for i, addr := range c.Swarm.Listen {
		if tcp, err := manet.ToNetAddr(addr); err == nil {
			check(fmt.Sprintf("swarm.listen[%d]", i), tcp.String(), addr)
		}
	}
}

// clash reports whether two servers cannot both listen: on one port of the same host, or of all addresses of its
// family. An empty host is all addresses.
func clash(a, b string) bool {
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || portA != portB || portA == "0" {
		return false
	}
	x, errA := netip.ParseAddr(hostA)
	y, errB := netip.ParseAddr(hostB)
	return hostA == "" || hostB == "" || hostA == hostB ||
		errA == nil && errB == nil && x.Is4() == y.Is4() && (x.IsUnspecified() || y.IsUnspecified())
}

func checkListen(p *problems, key, listen string) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		p.add(key, "%q is no address; want host:port, such as 127.0.0.1:5050 or [::1]:5050", listen)
		return
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		p.add(key, "port %q of %q; want a number from 0 (the system chooses) to 65535", port, listen)
	} else if strconv.FormatUint(n, 10) != port {
		p.add(key, "port %q of %q; want it without sign or leading zeros", port, listen)
	}
	if strings.ContainsAny(host, "/ ") {
		p.add(key, "host %q of %q; want a name or an IP address", host, listen)
	}
}

var domain = regexp.MustCompile(`^(?:` + reference.DomainRegexp.String() + `)$`)

func checkRegistry(p *problems, key, host string) {
	if !domain.MatchString(host) {
		p.add(key, "%q is no registry; want a host as image references spell it, such as registry.example or "+
			"10.0.0.1:5000, without scheme or path", host)
	}
}

var prefix = regexp.MustCompile(`^(/[A-Za-z0-9._-]+)+$`)

// congestionControl is a name as the kernel takes it.
var congestionControl = regexp.MustCompile(`^[a-z0-9_-]{1,15}$`)

func (c *Config) validateSwarm(p *problems) {
	s := c.Swarm
	if len(s.Listen) == 0 {
		p.add("swarm.listen", "empty; want at least one multiaddr, such as /ip4/0.0.0.0/tcp/5052")
	}
	for i, addr := range s.Listen {
		checkTCP(p, fmt.Sprintf("swarm.listen[%d]", i), addr)
	}
	for i, addr := range s.Announce {
		key := fmt.Sprintf("swarm.announce[%d]", i)
		checkTCP(p, key, addr)
		if manet.IsIPUnspecified(addr) {
			p.add(key, "%s is no address that others can reach; want the one that leads to this node", addr)
		}
	}
	for i, addr := range s.Bootstrap {
		key := fmt.Sprintf("swarm.bootstrap[%d]", i)
		info, err := peer.AddrInfoFromP2pAddr(addr)
		if err != nil || len(info.Addrs) == 0 {
			p.add(key, "%s has no address or no peer ID; want one such as /ip4/10.0.0.1/tcp/5052/p2p/12D3KooW…", addr)
		} else if info.Addrs[0][0].Code() != ma.P_DNSADDR { // which stands for addresses that are yet to be looked up
			checkTCP(p, key, info.Addrs[0])
		}
	}
	if !prefix.MatchString(s.ProtocolPrefix) {
		p.add("swarm.protocolPrefix", "%q; want a path such as /shoal or /shoal/prod", s.ProtocolPrefix)
	}
	for _, name := range s.CongestionControl {
		if !congestionControl.MatchString(name) {
			p.add("swarm.congestionControl", "%q; want names such as cubic, reno or bbr, in small letters", name)
		}
	}
	if s.Connections.Low < 1 || s.Connections.Low > s.Connections.High {
		p.add("swarm.connections", "low %d, high %d; want 1 <= low <= high", s.Connections.Low, s.Connections.High)
	}
	switch s.Admission {
	case AdmitAll, AdmitList, AdmitKubernetes:
	default:
		p.add("swarm.admission", "%q is none of %s, %s, %s", s.Admission, AdmitAll, AdmitList, AdmitKubernetes)
	}
	if s.Admission == AdmitKubernetes && !c.Kubernetes.Enabled {
		p.add("swarm.admission", "Kubernetes needs kubernetes.enabled; set it, or choose Open or List")
	}
	if s.Admission == AdmitList && len(s.Peers) == 0 {
		p.add("swarm.peers", "empty, so with admission List nobody could join; "+
			"list peer IDs (`shoal-node id` prints an agent's), or choose another admission")
	}
	if s.Admission != AdmitList && len(s.Peers) > 0 {
		p.add("swarm.peers", "has no effect when swarm.admission is %s; choose List, or leave swarm.peers empty",
			s.Admission)
	}
}

func checkTCP(p *problems, key string, addr ma.Multiaddr) {
	if len(addr) < 2 || addr[len(addr)-1].Code() != ma.P_TCP {
		p.add(key, "%s; want an address and a TCP port, such as /ip4/0.0.0.0/tcp/5052 or /ip6/::/tcp/5052 "+
			"(TCP is the only transport)", addr)
	}
}

func (c *Config) validateStore(p *problems) {
	s := c.Store
	if s.Path == "" {
		p.add("store.path", "empty; want a directory")
	}
	if s.Capacity.Share == 0 && s.Capacity.Bytes < content.ChunkSize {
		p.add("store.capacity",
			"%s is less than a chunk of 1MiB; "+
				"want a size with its unit, such as 20GiB, or a share of the disk such as 30%%", s.Capacity)
	}
	if s.ScrubInterval < 0 {
		p.add("store.scrubInterval", "%s is negative; want 0 for never, or more", s.ScrubInterval)
	}
	if s.HighWatermarkPercent == 0 && s.LowWatermarkPercent == 0 {
		p.add("store.highWatermarkPercent", "0; want 0 < lowWatermarkPercent < highWatermarkPercent <= 100")
	}
}

func (c *Config) validateUpstreams(p *problems) {
	first := make(map[string]int)
	for i, u := range c.Upstreams {
		at := fmt.Sprintf("upstreams[%d]", i)
		if u.Registry != "*" {
			checkRegistry(p, at+".registry", u.Registry)
		}
		name := registries.Canonical(u.Registry)
		if j, again := first[name]; again {
			p.add(at+".registry", "%q is that of upstreams[%d] too; put all endpoints of a registry into one entry",
				u.Registry, j)
		} else {
			first[name] = i
		}
		tls := len(u.Endpoints) == 0
		for j, endpoint := range u.Endpoints {
			tls = checkEndpoint(p, fmt.Sprintf("%s.endpoints[%d]", at, j), endpoint) || tls
		}
		switch {
		case !tls && (u.CAFile != "" || u.ClientCertFile != "" || u.ClientKeyFile != "" || u.InsecureSkipVerify):
			p.add(at, "has TLS settings, but no endpoint of %q uses https; remove them or change an endpoint",
				u.Registry)
		case u.CAFile != "" && u.InsecureSkipVerify:
			p.add(at+".caFile", "has no effect with insecureSkipVerify; remove one of the two")
		}
		if (u.ClientCertFile == "") != (u.ClientKeyFile == "") {
			p.add(at, "has one of clientCertFile (%q) and clientKeyFile (%q); want both or neither", u.ClientCertFile,
				u.ClientKeyFile)
		}
	}
}

// checkEndpoint reports whether the endpoint uses TLS. Its errors do not show what may hold a password.
func checkEndpoint(p *problems, key, endpoint string) (tls bool) {
	u, err := url.Parse(endpoint)
	switch {
	case err != nil:
		p.add(key, "is no URL; want one such as https://mirror.example or http://127.0.0.1:5000")
	case u.User != nil:
		p.add(key, "%s holds credentials; remove them: the agent uses those of the caller", u.Redacted())
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		p.add(key, "%q; want a URL such as https://mirror.example or http://127.0.0.1:5000", endpoint)
	case u.RawQuery != "" || u.Fragment != "":
		p.add(key, "%q has a query or fragment; want scheme, host and at most a path", endpoint)
	case u.Port() != "" && !isPort(u.Port()):
		p.add(key, "port %s of %q; want a number from 1 to 65535", u.Port(), endpoint)
	default:
		return u.Scheme == "https"
	}
	return true // unknown, so nothing is to be said about TLS settings
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

func (c *Config) validatePolicy(p *problems) {
	for i, r := range c.Policy.Rules {
		// What is as in the defaults may not have been written.
		if d := c.Policy.Defaults; r.Mode == policy.Bypass && (r.TagTTL != d.TagTTL ||
			r.Authorization != d.Authorization || r.RateLimit != d.RateLimit) {
			p.add(fmt.Sprintf("policy.rules[%d]", i), "mode Bypass caches nothing, so tagTTL, authorization and "+
				"rateLimit have no meaning beside it: remove them")
		}
	}
	err := c.EffectivePolicy().ValidateWritten()
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, problem := range joined.Unwrap() {
			if strings.HasPrefix(problem.Error(), "store.") {
				*p = append(*p, problem) // a key of the configuration as it stands
				continue
			}
			*p = append(*p, fmt.Errorf("policy.%w", problem))
		}
	}
}

func (c *Config) validateMirror(p *problems) {
	if !slices.Contains(mirror.Runtimes, c.Mirror.Runtime) {
		p.add("mirror.runtime", "%q is none of %s", c.Mirror.Runtime, runtimes())
	}
	for _, registry := range c.Mirror.Registries {
		if err := mirror.CheckRegistry(registry); err != nil {
			p.add("mirror.registries", "%v", err)
		}
	}
	if _, port, err := net.SplitHostPort(c.Registry.Listen); c.Mirror.StateDir != "" && err == nil && port == "0" {
		p.add("registry.listen", "%s lets the system choose the port, which no mirror of mirror.stateDir can lead to; "+
			"want a port, such as 5050", c.Registry.Listen)
	}
	if c.Mirror.StateDir != "" && c.Mirror.Runtime == mirror.CRIO && len(c.Mirror.Registries) == 0 {
		p.add("mirror.registries",
			"empty; %s has no mirror for all registries, so name those that mirror install was given", mirror.CRIO)
	}
}

func (c *Config) validateRest(p *problems) {
	if c.Tracing.Endpoint != "" {
		if err := trace.CheckEndpoint(c.Tracing.Endpoint); err != nil {
			p.add("tracing.endpoint", "%q: %w", c.Tracing.Endpoint, err)
		}
	}
	if protocol := c.Tracing.Protocol; protocol != "" && !slices.Contains(trace.Protocols(), protocol) {
		p.add("tracing.protocol", "%q is none of %s", protocol, strings.Join(trace.Protocols(), ", "))
	}
	if r := c.Tracing.Ratio; r < 0 || r > 1 || math.IsNaN(r) {
		p.add("tracing.ratio", "%v; want a share from 0 to 1", r)
	}
	if _, err := c.Log.SlogLevel(); err != nil {
		p.add("log.level", "%q is none of debug, info, warn, error", c.Log.Level)
	}
	if c.Log.Format != "json" && c.Log.Format != "text" {
		p.add("log.format", "%q is none of json, text", c.Log.Format)
	}
	k := c.Kubernetes
	if k.Enabled && k.NodeName == "" {
		p.add("kubernetes.nodeName",
			"empty; with kubernetes.enabled it must name the Node (in a pod: from the field spec.nodeName)")
	}
	if !k.Enabled && k.Kubeconfig != "" {
		p.add("kubernetes.kubeconfig", "%q has no effect without kubernetes.enabled; set it too, or remove this",
			k.Kubeconfig)
	}
}

// SlogLevel is Level as log/slog wants it.
func (l Log) SlogLevel() (slog.Level, error) {
	var level slog.Level
	switch strings.ToLower(l.Level) {
	case "debug", "info", "warn", "error":
		return level, level.UnmarshalText([]byte(l.Level))
	}
	return level, fmt.Errorf("log level %q is unknown", l.Level)
}

// Warnings are about what is allowed but seldom meant.
func (c *Config) Warnings() []string {
	var warnings []string
	host, _, _ := net.SplitHostPort(c.Registry.Listen)
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		warnings = append(warnings,
			fmt.Sprintf("registry.listen: %s is reachable from other machines, and credentials arrive "+
				"there without encryption; "+
				"127.0.0.1 serves the runtime of this node", c.Registry.Listen))
	}
	if path := c.Store.RuntimePath; path != "" {
		if _, err := os.Stat(filepath.Join(path, "blobs")); err != nil {
			warnings = append(warnings,
				fmt.Sprintf("store.runtimePath: %v: nothing is read from the runtime's content store; "+
					"it is io.containerd.content.v1.content below containerd's root", err))
		}
	}
	if host, _, _ := net.SplitHostPort(c.Hub.Listen); c.Hub.Enabled && len(c.Hub.AllowFrom) == 0 &&
		host != "localhost" {
		if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
			warnings = append(warnings,
				fmt.Sprintf("hub.allowFrom: empty, so that only this machine may use hub.listen, %s; "+
					"list the ranges of those who are to use it", c.Hub.Listen))
		}
	}
	for i, r := range c.Policy.Rules {
		warnings = append(warnings, covered(c.Policy.Rules[:i], r)...)
		if behind := len(c.Policy.Rules) - i - 1; len(r.Match) == 0 && behind > 0 {
			warnings = append(warnings, fmt.Sprintf("policy.rules[%d]: has no match, so it holds for every repository "+
				"that no rule before it matches, and the %d behind it for none; give it a match, or put it last",
				i, behind))
			break
		}
	}
	if c.Swarm.Admission == AdmitAll {
		warnings = append(warnings,
			"swarm.admission: Open lets every machine that reaches swarm.listen read what is cached; "+
				"use List or Kubernetes outside of trusted networks")
	}
	return warnings
}

// covered are warnings about patterns of a rule that stand for nothing, as a rule before it holds for all that they
// match.
func covered(before []policy.Rule, r policy.Rule) (warnings []string) {
	for i, pattern := range r.Match {
		for j, first := range before {
			at := slices.IndexFunc(first.Match, func(wide string) bool { return policy.Covers(wide, pattern) })
			if at < 0 {
				continue
			}
			advice := "put it before that one"
			if policy.Covers(pattern, first.Match[at]) {
				advice = "keep one of the two"
			}
			warnings = append(warnings, fmt.Sprintf("policy.rules[%d].match[%d]: %q is covered by %q of "+
				"policy.rules[%d], so this rule never holds for it; %s", len(before), i, pattern, first.Match[at], j,
				advice))
			break
		}
	}
	return warnings
}
