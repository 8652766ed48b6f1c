package config_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/config"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/mirror"
	"github.com/shoal-cache/shoal/node/internal/policy"
)

const id = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"

// The keys that scripts rely on, as they were promised.
const contract = `
registry:  {listen: 127.0.0.1:5050}
admin:     {listen: 127.0.0.1:5051}
swarm:
  listen: [/ip4/127.0.0.1/tcp/5052]
  bootstrap: [/ip4/127.0.0.1/tcp/6052/p2p/` + id + `]
  zone: a
store:     {path: /var/lib/shoal, capacity: 20GiB}
upstreams:
  - {registry: images.test, endpoints: [http://127.0.0.1:5000]}
`

func file(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func load(t testing.TB, text string, environ []string, args ...string) (*config.Config, error) {
	t.Helper()
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	config.Flags(fs)
	require.NoError(t, fs.Parse(args))
	return config.Load(file(t, text), fs, environ)
}

func TestContractKeys(t *testing.T) {
	t.Parallel()
	c, err := load(t, contract, nil)
	require.NoError(t, err)
	require.Equal(t, "127.0.0.1:5050", c.Registry.Listen)
	require.Equal(t, "127.0.0.1:5051", c.Admin.Listen)
	require.Equal(t, "/ip4/127.0.0.1/tcp/5052", c.Swarm.Listen[0].String())
	require.Len(t, c.Swarm.Listen, 1, "the list replaces the default one")
	require.Equal(t, "a", c.Swarm.Zone)
	require.Equal(t, config.AdmitAll, c.Swarm.Admission)
	peers := c.BootstrapPeers()
	require.Len(t, peers, 1)
	require.Equal(t, id, peers[0].ID.String())
	require.Equal(t, policy.Size{Bytes: 20 << 30}, c.Store.Capacity)
	require.Equal(t, []config.Upstream{{Registry: "images.test", Endpoints: []string{"http://127.0.0.1:5000"}}},
		c.Upstreams)
	require.Equal(t, "/var/lib/shoal/identity.key", c.IdentityPath())
	require.Equal(t, policy.DefaultRule(), c.EffectivePolicy().For(content.Repository{Registry: "any", Name: "thing"}))
}

func TestNothingAtAllIsAConfiguration(t *testing.T) {
	t.Parallel()
	c, err := config.Load("", nil, nil)
	require.NoError(t, err)
	want := config.Default()
	want.Swarm.Admission = config.AdmitAll
	var got, expected bytes.Buffer
	require.NoError(t, c.Write(&got))
	require.NoError(t, want.Write(&expected))
	require.Equal(t, expected.String(), got.String())
}

func TestPrecedence(t *testing.T) {
	t.Parallel()
	const inFile = "store: {capacity: 1GiB}"
	inEnvironment := []string{"SHOAL_STORE_CAPACITY=2GiB"}
	for name, c := range map[string]struct {
		file    string
		environ []string
		args    []string
		want    string
	}{
		"the default where nothing is said":        {"", nil, nil, "20GiB"},
		"the file over the default":                {inFile, nil, nil, "1GiB"},
		"the environment over the file":            {inFile, inEnvironment, nil, "2GiB"},
		"a flag over the environment":              {inFile, inEnvironment, []string{"--store-capacity=3GiB"}, "3GiB"},
		"an empty variable is as good as none":     {inFile, []string{"SHOAL_STORE_CAPACITY="}, nil, "1GiB"},
		"an empty value in the file means default": {"store: {capacity: }", nil, nil, "20GiB"},
		"keys are not case-sensitive":              {"Store: {CAPACITY: 1GiB}", nil, nil, "1GiB"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := load(t, c.file, c.environ, c.args...)
			require.NoError(t, err)
			require.Equal(t, c.want, got.Store.Capacity.String())
		})
	}
}

func TestEveryFormOfValueFromTheEnvironmentAndFlags(t *testing.T) {
	t.Parallel()
	c, err := load(t, "",
		[]string{
			"SHOAL_SWARM_LISTEN=/ip4/127.0.0.1/tcp/1, /ip6/::1/tcp/2",
			"SHOAL_KUBERNETES_ENABLED=true", "SHOAL_KUBERNETES_NODENAME=n1",
			"SHOAL_STORE_HIGHWATERMARKPERCENT=90%", "SHOAL_STORE_LOWWATERMARKPERCENT=50.5",
			`SHOAL_UPSTREAMS=[{"registry": "a.example", "caFile": "/ca"}, {"registry": "b.example:5000", "insecureSkipVerify": true}]`,
			"SHOAL_POLICY_DEFAULTS_TAGTTL=3s",
			"SHOAL_SWARM_CONNECTIONS_LOW=7", "SHOAL_HUB_ALLOWFROM=10.0.0.0/8, fd00::/8",
		},
		"--swarm-bootstrap=/ip4/10.0.0.1/tcp/1/p2p/"+id+",/ip6/fd00::1/tcp/2/p2p/"+id,
		"--policy-bandwidth-upload=100MB",
	)
	require.NoError(t, err)
	require.Equal(t, "/ip6/::1/tcp/2", c.Swarm.Listen[1].String())
	require.Len(t, c.BootstrapPeers(), 1)
	require.Len(t, c.BootstrapPeers()[0].Addrs, 2, "both addresses of the one peer")
	require.True(t, c.Kubernetes.Enabled)
	require.Equal(t, config.AdmitKubernetes, c.Swarm.Admission)
	require.InDelta(t, 90, float64(c.Store.HighWatermarkPercent), 1e-9)
	require.InDelta(t, 50.5, float64(c.Store.LowWatermarkPercent), 1e-9)
	require.Equal(t, "/ca", c.Upstreams[0].CAFile)
	require.True(t, c.Upstreams[1].InsecureSkipVerify)
	require.Equal(t, 3*time.Second, c.Policy.Defaults.TagTTL)
	require.Equal(t, 7, c.Swarm.Connections.Low)
	require.Equal(t, "[10.0.0.0/8 fd00::/8]", fmt.Sprint(c.Hub.AllowFrom))
	require.Equal(t, int64(100e6), c.EffectivePolicy().Bandwidth.Upload.Bytes)
}

func TestARuleHasTheDefaultsInWhatItLeavesOut(t *testing.T) {
	t.Parallel()
	c, err := load(t, `
policy:
  defaults: {tagTTL: 7m, authorization: {mode: Exempt}}
  rules:
    - {match: ["*.example/team/*"], mode: PeersOnly, tagTTL: 0s}
    - {match: ["**/library/*"], rateLimit: {requestsPerSecond: 2.5, bytesPerSecond: 20MB, connections: 3}, authorization: {ttl: 1s}}
`, nil)
	require.NoError(t, err)
	rules := c.EffectivePolicy().Rules
	require.Equal(t, policy.Rule{
		Match: []string{"*.example/team/*"}, Mode: policy.PeersOnly, TagTTL: 0,
		Authorization: policy.Authorization{
			Mode: policy.Exempt, TTL: policy.DefaultRule().Authorization.TTL, OnUnreachable: policy.Remembered,
		},
	}, rules[0])
	require.Equal(t, 7*time.Minute, rules[1].TagTTL)
	require.Equal(t, policy.RateLimit{RequestsPerSecond: 2.5, BytesPerSecond: policy.Size{Bytes: 20e6}, Connections: 3},
		rules[1].RateLimit)
	require.Equal(t, policy.Authorization{Mode: policy.Exempt, TTL: time.Second, OnUnreachable: policy.Remembered},
		rules[1].Authorization)
}

func TestMistakesAreNamed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		file    string
		environ []string
		want    []string // each part of the message
	}{
		"an unknown key": {"store: {capcity: 1GiB}", nil,
			[]string{"store.capcity: no such key", "store.capacity"}},
		"an unknown section": {"stroe: {path: /x}", nil, []string{"stroe: no such key", "store"}},
		"an unknown key in a list": {"upstreams: [{registry: a.example, endpoint: x}]", nil,
			[]string{"upstreams[0].endpoint: no such key; those beside it: upstreams[0].endpoints, upstreams[0].caFile"}},
		"an unknown key in a rule": {"policy: {rules: [{tagTtls: 1s}]}", nil,
			[]string{"policy.rules[0].tagTtls: no such key; those beside it: policy.rules[0].tagTTL, "}},
		"a misspelt key in the letters of the file": {"swarm: {congestionControll: [bbr]}", nil,
			[]string{"swarm.congestionControll: no such key; those beside it: swarm.congestionControl, "}},
		"an unknown variable of a section": {"", []string{"SHOAL_STORE_CAPCITY=1"},
			[]string{"SHOAL_STORE_CAPCITY names no key", "SHOAL_STORE_CAPACITY"}},
		"a variable that is no list": {"", []string{"SHOAL_UPSTREAMS=a: b"},
			[]string{"SHOAL_UPSTREAMS", "list"}},
		"text that is no YAML": {"store: [", nil, []string{"config.yaml"}},
		"a section that is said twice": {"store: {path: /a}\nstore: {path: /b}", nil,
			[]string{"line 2: store is set in line 1 already"}},
		"a section in other letters": {"store: {path: /a}\nStore: {path: /b}", nil,
			[]string{"line 2: store is set in line 1 already"}},
		"a key in other letters": {"upstreams: [{registry: a.b, Registry: c.d}]", nil,
			[]string{"upstreams[0].registry is set in line 1 already"}},
		"a key in one word with its section": {"store.path: /a\nstore: {path: /b}", nil,
			[]string{"line 2: store.path is set in line 1 already"}},
		"a list in place of the sections": {"- store", nil, []string{"line 1: is no table", "store: {path: /var/lib/shoal}"}},
		"a truth in place of text":        {"swarm: {zone: true}", nil, []string{"swarm.zone: true", "in quotes"}},
		"a fraction in place of text":     {"swarm: {zone: 1.10}", nil, []string{"swarm.zone: 1.1", "in quotes"}},
		"a mirror of an agent whose port nobody knows": {
			"{registry: {listen: '127.0.0.1:0'}, mirror: {stateDir: /var/lib/shoal-mirror}}", nil,
			[]string{"registry.listen: 127.0.0.1:0", "mirror.stateDir", "want a port"}},
		"a range of addresses that is none": {"hub: {allowFrom: [10.0.0.0/8, 10.0.0.1]}",
			[]string{"SHOAL_UPSTREAM_ALLOWADDRESSES=::1/128,all"}, []string{"hub.allowFrom[1]: \"10.0.0.1\" is no range",
				"upstream.allowAddresses[1]: \"all\" is no range"}},
		"an endpoint at no port": {"upstreams: [{registry: a.b, endpoints: ['https://x:99999']}]", nil,
			[]string{"upstreams[0].endpoints[0]: port 99999", "65535"}},
		"a value where a section belongs": {"store: 5", nil,
			[]string{"store: 5 is no table; want keys below it: store.capacity"}},
		"an empty list where a section belongs": {"kubernetes: []", nil,
			[]string{"kubernetes: [] is no table; want keys below it: kubernetes.enabled"}},
		"a list where a value belongs": {"store: {path: [a, b]}", nil,
			[]string{"store.path", "[a b]", "one value"}},
		"a size without sense": {"store: {capacity: 20 parsecs}", nil,
			[]string{"store.capacity", "20 parsecs", "such as MB, MiB, M or Mi, or a share of the disk, such as 80%"}},
		"a size that is no number": {"store: {minFree: much}", nil,
			[]string{"store.minFree", "much", "such as 20GiB or 500MB, or a share of the disk, such as 80%"}},
		"a duration without unit": {"registry: {drainTimeout: 30}", nil,
			[]string{"registry.drainTimeout", `"30"`, "90s"}},
		"a number that is none": {"swarm: {connections: {low: many}}", nil,
			[]string{"swarm.connections.low", "many"}},
		"a bool that is none": {"kubernetes: {enabled: perhaps}", nil,
			[]string{"kubernetes.enabled", "perhaps"}},
		"a share that is none": {"store: {highWatermarkPercent: much}", nil,
			[]string{"store.highWatermarkPercent", "much"}},
		"a malformed multiaddr": {"swarm: {listen: [127.0.0.1:5052]}", nil,
			[]string{"swarm.listen[0]", "127.0.0.1:5052", "/ip4/"}},
		"a transport that is not TCP": {"swarm: {listen: [/ip4/0.0.0.0/udp/5052/quic-v1]}", nil,
			[]string{"swarm.listen[0]", "quic-v1", "TCP"}},
		"a bootstrap address without peer ID": {"swarm: {bootstrap: [/ip4/10.0.0.1/tcp/5052]}", nil,
			[]string{"swarm.bootstrap[0]", "/p2p/"}},
		"a malformed peer ID": {"swarm: {peers: [me]}", nil,
			[]string{"swarm.peers[0]", `"me"`, "shoal-node id"}},
		"nowhere to listen": {"swarm: {listen: []}", nil, []string{"swarm.listen"}},
		"a congestion control that is no name": {"swarm: {congestionControl: [Cubic!]}", nil,
			[]string{"swarm.congestionControl", "Cubic!", "reno"}},
		"a prefix that is no path": {"swarm: {protocolPrefix: shoal/}", nil,
			[]string{"swarm.protocolPrefix", "shoal/"}},
		"watermarks the wrong way round": {"store: {highWatermarkPercent: 50, lowWatermarkPercent: 60}", nil,
			[]string{"store.lowWatermarkPercent", "60"}},
		"a share above the whole": {"store: {capacity: 120%}", nil, []string{"store.capacity", "120%"}},
		"no capacity":             {"store: {capacity: 0}", nil, []string{"store.capacity"}},
		"an unknown eviction algorithm": {"store: {eviction: Random}", nil,
			[]string{"store.eviction", "Random", "SLRU"}},
		"connections the wrong way round": {"swarm: {connections: {low: 9, high: 3}}", nil,
			[]string{"swarm.connections", "low 9, high 3"}},
		"an address without port": {"registry: {listen: localhost}", nil,
			[]string{"registry.listen", "localhost", "host:port"}},
		"a port out of range": {"admin: {listen: 127.0.0.1:65536}", nil,
			[]string{"admin.listen", "65536"}},
		"metrics on the hub's address": {"{hub: {enabled: true}, metrics: {listen: '127.0.0.1:5054'}}", nil,
			[]string{"hub.listen: 127.0.0.1:5054 and metrics.listen", "another port"}},
		"two servers on one address": {"{registry: {listen: ':5051'}, admin: {listen: ':5051'}}", nil,
			[]string{"admin.listen", "another port"}},
		"metrics on the registry front's address": {"{registry: {listen: ':5051'}, admin: {listen: ':5055'}, metrics: {listen: ':5051'}}", nil, []string{"metrics.listen", "another port"}},
		"a metrics certificate without key": {"metrics: {listen: ':5053', certFile: /c}", nil,
			[]string{"metrics.certFile", "metrics.keyFile"}},
		"a hub's certificate without key": {"hub: {enabled: true, certFile: /c}", nil,
			[]string{"hub.certFile", "hub.keyFile"}},
		"metrics settings without an address": {"metrics: {certFile: /c, keyFile: /k}", nil,
			[]string{"metrics.listen"}},
		"a review of tokens without Kubernetes": {"metrics: {listen: ':5053', tokenReview: true}", nil,
			[]string{"metrics.tokenReview", "kubernetes.enabled"}},
		"a registry with a scheme": {"upstreams: [{registry: https://a.example}]", nil,
			[]string{"upstreams[0].registry", "https://a.example"}},
		"a registry twice": {"upstreams: [{registry: a.example}, {registry: A.example}]", nil,
			[]string{"upstreams[1].registry", "upstreams[0]"}},
		"an endpoint that is no URL": {"upstreams: [{registry: a.example, endpoints: [a.example]}]", nil,
			[]string{"upstreams[0].endpoints[0]", `"a.example"`}},
		"TLS settings without TLS": {"upstreams: [{registry: a.example, endpoints: [http://a.example], caFile: /ca}]", nil, []string{"upstreams[0]", "https"}},
		"a certificate without key": {"upstreams: [{registry: a.example, clientCertFile: /c}]", nil,
			[]string{"upstreams[0]", "clientKeyFile"}},
		"a CA that nobody looks at": {"upstreams: [{registry: a.example, caFile: /c, insecureSkipVerify: true}]", nil, []string{"upstreams[0].caFile"}},
		"admission by Kubernetes without it": {"swarm: {admission: Kubernetes}", nil,
			[]string{"swarm.admission", "kubernetes.enabled"}},
		"admission of nobody": {"swarm: {admission: List}", nil, []string{"swarm.peers"}},
		"an allow list that is not used": {"swarm: {admission: Open, peers: [" + id + "]}", nil,
			[]string{"swarm.peers", "List"}},
		"an unknown admission": {"swarm: {admission: Some}", nil,
			[]string{"swarm.admission", "Some"}},
		"mirrors of a runtime that is unknown": {"mirror: {stateDir: /s, runtime: docker}", nil,
			[]string{"mirror.runtime", "docker", "containerd, cri-o"}},
		"mirrors of all registries in CRI-O": {"mirror: {stateDir: /s, runtime: cri-o}", nil,
			[]string{"mirror.registries", "cri-o"}},
		"Kubernetes without a node": {"kubernetes: {enabled: true}", nil,
			[]string{"kubernetes.nodeName"}},
		"a kubeconfig without Kubernetes": {"kubernetes: {kubeconfig: /k}", nil,
			[]string{"kubernetes.kubeconfig"}},
		"an unknown log level":  {"log: {level: loud}", nil, []string{"log.level", "loud"}},
		"an unknown log format": {"log: {format: xml}", nil, []string{"log.format", "xml"}},
		"patterns in the defaults of policy": {"policy: {defaults: {match: [a.example/b]}}", nil,
			[]string{"policy.defaults.match: no such key"}},
		"an unknown mode": {"policy: {rules: [{mode: Never}]}", nil,
			[]string{"policy.rules[0].mode", "Never"}},
		"a limit on what is not cached": {"policy: {rules: [{match: ['a.example/**'], mode: Bypass, " +
			"rateLimit: {connections: 4}}]}", nil,
			[]string{"policy.rules[0]: mode Bypass caches nothing, so tagTTL, authorization and rateLimit have no " +
				"meaning beside it: remove them"}},
		"a time for what is not cached": {"policy: {defaults: {mode: Bypass}, rules: [{tagTTL: 5m}]}", nil,
			[]string{"policy.rules[0]: mode Bypass caches nothing"}},
		"a rule that says nothing": {"policy: {rules: [{mode: Bypass, match: ['a.example/**']}, {}]}", nil,
			[]string{"policy.rules[1]", "is empty", "match"}},
		"a rule whose keys say nothing": {"policy: {rules: [{match: [], mode: , authorization: {ttl: }}]}", nil,
			[]string{"policy.rules[0]", "is empty"}},
		"a rule that is left out": {"policy: {rules: [null]}", nil, []string{"policy.rules[0]", "is empty"}},
		"more connections than a registry has": {"policy: {rules: [{rateLimit: {connections: 1001}}]}", nil,
			[]string{"policy.rules[0].rateLimit.connections: 1001", "from 1 to 1000", "use 0 for the default"}},
		"a negative number of connections": {"policy: {defaults: {rateLimit: {connections: -1}}}", nil,
			[]string{"policy.defaults.rateLimit.connections: -1", "from 1 to 1000"}},
		"half a connection": {"policy: {rules: [{rateLimit: {connections: 1.5}}]}", nil,
			[]string{"policy.rules[0].rateLimit.connections", `"1.5" is no whole number`}},
		"a share as bandwidth": {"policy: {bandwidth: {upload: 50%}}", nil,
			[]string{"policy.bandwidth.upload", "50%"}},
		"a misspelt key of a rule's authorization": {
			"policy: {rules: [{authorization: {tll: 1m}}]}", nil,
			[]string{"policy.rules[0].authorization.tll: no such key", "policy.rules[0].authorization.ttl"},
		},
		"a share to read ahead": {"registry: {readAhead: 10%}", nil,
			[]string{"registry.readAhead", "10%", "16MiB"}},
		"unknown ranges": {"registry: {ranges: All}", nil,
			[]string{"registry.ranges", "All", "Chunks, Verified"}},
		"no time for the first byte": {"registry: {firstByteTimeout: 0s}", nil,
			[]string{"registry.firstByteTimeout"}},
		"several mistakes of reading at once": {"{store: {capacity: x, pth: y}, swarm: {zone: [1]}}", nil,
			[]string{"store.capacity", "store.pth", "swarm.zone"}},
		"several mistakes of bounds at once": {"{log: {level: x, format: y}, store: {path: ''}}", nil,
			[]string{"log.level", "log.format", "store.path"}},
		"a mistake in file and environment": {"store: {pth: y}", []string{"SHOAL_LOG_LVL=x"},
			[]string{"store.pth", "SHOAL_LOG_LVL"}},
		"a default registry that has a path": {"registry: {defaultRegistry: a.example/b}", nil,
			[]string{"registry.defaultRegistry", "a.example/b"}},
		"a scrub interval in the past": {"store: {scrubInterval: -1h}", nil,
			[]string{"store.scrubInterval", "-1h"}},
		"a negative drain timeout": {"registry: {drainTimeout: -1s}", nil,
			[]string{"registry.drainTimeout", "-1s"}},
		"an endpoint with a query": {"upstreams: [{registry: a.example, endpoints: ['https://b.example?x=1']}]", nil, []string{"upstreams[0].endpoints[0]", "query"}},
		"a misspelt section of a variable": {"", []string{"SHOAL_STROE_CAPACITY=1GiB"},
			[]string{"SHOAL_STROE_CAPACITY names no key", "SHOAL_STORE_CAPACITY"}},
		"a variable without its section": {"", []string{"SHOAL_HIGHWATERMARKPERCENT=90"},
			[]string{"SHOAL_HIGHWATERMARKPERCENT names no key", "SHOAL_STORE_HIGHWATERMARKPERCENT"}},
		"a second document in the file": {"store: {path: /x}\n---\nlog: {level: debug}", nil,
			[]string{"config.yaml", "more than one YAML document"}},
		"rules that are no list": {"policy: {rules: {mode: Bypass}}", nil,
			[]string{"policy.rules", "list"}},
		"upstreams that are no list": {"upstreams: {registry: a.example}", nil,
			[]string{"upstreams", "list"}},
		"a capacity whose unit was forgotten": {"store: {capacity: 20}", nil,
			[]string{"store.capacity", "20", "GiB"}},
		"a pattern that no repository matches": {"policy: {rules: [{match: [a.example/**, docker.io]}]}", nil,
			[]string{"policy.rules[0].match[1]", "docker.io/**"}},
		"a pattern of an image's short name": {"policy: {rules: [{match: [redis]}]}", nil,
			[]string{"policy.rules[0].match[0]", "docker.io/library/redis"}},
		"a pattern of Docker Hub's other name": {"policy: {rules: [{match: ['index.docker.io/team/*']}]}", nil,
			[]string{"policy.rules[0].match[0]", "docker.io/team/*"}},
		"a pattern with a tag": {"policy: {rules: [{match: ['a.example/b:1']}]}", nil,
			[]string{"policy.rules[0].match[0]", "no scheme, tag or digest"}},
		"a star where two are meant": {"policy: {rules: [{match: ['*']}]}", nil,
			[]string{"policy.rules[0].match[0]", "**"}},
		"a bootstrap peer that is not on TCP": {"swarm: {bootstrap: [/ip4/10.0.0.1/udp/5052/quic-v1/p2p/" + id +
			"]}", nil, []string{"swarm.bootstrap[0]", "quic-v1", "TCP"}},
		"an address that means every one": {"swarm: {announce: [/ip4/0.0.0.0/tcp/5052]}", nil,
			[]string{"swarm.announce[0]", "0.0.0.0"}},
		"a URL of the hub front with a query": {"hub: {urls: ['https://files.example/?a=b']}", nil,
			[]string{"hub.urls[0]", "?a=b", "query"}},
		"a host of the hub front by two schemes": {"hub: {urls: ['https://files.example/a', 'http://files.example/b']}", nil,
			[]string{"hub.urls[1]", "http://files.example/b", "https too"}},
		"Docker Hub twice under its names": {"upstreams: [{registry: docker.io}, {registry: index.docker.io}]",
			nil, []string{"upstreams[1].registry", "upstreams[0]"}},
		"a runtime that is unknown": {"mirror: {runtime: docker}", nil,
			[]string{"mirror.runtime", "docker", "containerd, cri-o"}},
		"two servers on one port of all": {"registry: {listen: ':5051'}", nil,
			[]string{"admin.listen", ":5051", "another port"}},
		"the swarm on the port of a server": {"registry: {listen: '127.0.0.1:5052'}", nil,
			[]string{"swarm.listen[0]", "registry.listen", "another port"}},
		"a bad default once, though rules exist": {"policy: {defaults: {tagTTL: soon}, rules: [{mode: Bypass}]}", nil,
			[]string{"policy.defaults.tagTTL", "soon"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := load(t, c.file, c.environ)
			require.Error(t, err)
			for _, part := range c.want {
				require.Contains(t, err.Error(), part)
			}
		})
	}
}

func TestWhatIsUnusualButMeantIsTaken(t *testing.T) {
	t.Parallel()
	for name, file := range map[string]string{
		"an entry for all other registries": `upstreams: [{registry: "*", endpoints: [https://mirror.example/any]}, {registry: a.example}]`,
		"ports that the system chooses":     "{registry: {listen: '127.0.0.1:0'}, admin: {listen: '127.0.0.1:0'}, swarm: {listen: [/ip4/127.0.0.1/tcp/0]}}",
		"one port on several addresses":     "{registry: {listen: '127.0.0.1:1'}, admin: {listen: '127.0.0.2:1'}, swarm: {listen: [/ip4/127.0.0.3/tcp/1]}}",
		"bootstrap peers found by DNS": "swarm: {bootstrap: [/dnsaddr/peers.example/p2p/" + id +
			", /dns4/a.example/tcp/5052/p2p/" + id + "]}",
		"patterns for all, hosts and one image": `policy: {rules: [{match: ["**", "*.example/**", "**/library/*", a.example/b, "[::1]:5000/**"]}]}`,
		"a zone that is a number":               "swarm: {zone: 3}",
		"a file of comments":                    "# store: {path: /x}\n",
		"two keys of one section in one word":   "{store.path: /x, store: {capacity: 1GiB}}",
		"a file that ends its document":         "---\nstore: {path: /x}\n...\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := load(t, file, []string{"SHOAL_E2E_RIG=1", "SHOAL_SCALE=5"})
			require.NoError(t, err)
		})
	}
}

func TestAnEndpointsPasswordIsNotShown(t *testing.T) {
	t.Parallel()
	for _, endpoint := range []string{"https://me:hunter2@a.example", "https://me:hunter2@[bad"} {
		_, err := load(t, "upstreams: [{registry: a.example, endpoints: ['"+endpoint+"']}]", nil)
		require.ErrorContains(t, err, "upstreams[0].endpoints[0]")
		require.NotContains(t, err.Error(), "hunter2")
	}
}

func TestAMissingFileIsNamed(t *testing.T) {
	t.Parallel()
	_, err := config.Load("/no/such/file.yaml", nil, nil)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, "/no/such/file.yaml")
}

func TestARateIsOfferedNoShare(t *testing.T) {
	t.Parallel()
	for _, rate := range []string{"50Mbit", "much"} {
		_, err := load(t, "policy: {bandwidth: {upload: "+rate+"}}", nil)
		require.ErrorContains(t, err, "policy.bandwidth.upload: size \""+rate+"\"")
		require.NotContains(t, err.Error(), "%")
	}
}

// Kubernetes puts such variables into every container of a namespace that has Services named shoal-….
func TestVariablesOfServicesAreIgnored(t *testing.T) {
	t.Parallel()
	_, err := load(t, "", []string{
		"SHOAL_REGISTRY_SERVICE_HOST=10.0.0.1", "SHOAL_REGISTRY_SERVICE_PORT=80", "SHOAL_REGISTRY_SERVICE_PORT_HTTP=80",
		"SHOAL_REGISTRY_PORT=tcp://10.0.0.1:80", "SHOAL_REGISTRY_PORT_80_TCP=tcp://10.0.0.1:80",
		"SHOAL_REGISTRY_PORT_80_TCP_ADDR=10.0.0.1", "SHOAL_OTHER=1", "PATH=/bin",
	})
	require.NoError(t, err)
}

func TestWhatIsWrittenLoadsToTheSame(t *testing.T) {
	t.Parallel()
	c, err := load(t, contract+`
policy:
  bandwidth: {upload: 10MiB}
  defaults: {tagTTL: 3m, rateLimit: {connections: 4}}
  rules: [{match: [a.example/**], mode: Bypass}]
kubernetes: {enabled: true, nodeName: n1}
hub: {allowFrom: [10.0.0.0/8]}
`, []string{"SHOAL_STORE_MINFREE=12.5%"})
	require.NoError(t, err)
	var first, second bytes.Buffer
	require.NoError(t, c.Write(&first))
	again, err := load(t, first.String(), nil)
	require.NoError(t, err, first.String())
	require.NoError(t, again.Write(&second))
	require.Equal(t, first.String(), second.String())
	require.Contains(t, first.String(), "minFree: 12.5%")
}

func TestEveryKeyHasItsFlag(t *testing.T) {
	t.Parallel()
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	config.Flags(fs)
	var written bytes.Buffer
	require.NoError(t, config.Default().Write(&written))
	count := 0
	for line := range strings.Lines(written.String()) {
		if key, value, _ := strings.Cut(strings.TrimSpace(line), ":"); value != "\n" && value != "" &&
			!strings.HasPrefix(key, "-") {
			count++
		}
	}
	flags := 0
	fs.VisitAll(func(f *pflag.Flag) {
		flags++
		require.NotEmpty(t, f.Usage, f.Name)
	})
	// Of the written keys upstreams and policy.rules have no flag. Two lists have no value on their own line.
	require.Equal(t, count-2+2, flags)
	for _, name := range []string{"policy-defaults-tag-ttl", "policy-defaults-authorization-ttl", "store-min-free",
		"kubernetes-node-name"} {
		require.NotNil(t, fs.Lookup(name), name)
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		file string
		want int
	}{
		"open swarm":                     {"registry: {listen: 127.0.0.1:1}", 1},
		"open swarm and open front":      {"registry: {listen: ':1'}", 2},
		"the front on IPv6 loopback":     {"{registry: {listen: '[::1]:1'}, swarm: {peers: [" + id + "]}}", 0},
		"no such content store":          {"{store: {runtimePath: /no/such}, swarm: {peers: [" + id + "]}}", 1},
		"the front on a machine address": {"{registry: {listen: '10.0.0.1:1'}, swarm: {peers: [" + id + "]}}", 1},
		"a rule that nothing comes to": {"{policy: {rules: [{mode: Bypass}, {mode: PeersOnly}]}, swarm: {peers: [" + id +
			"]}}", 1},
		"a rule for all at the end": {"{policy: {rules: [{match: [a.example/**]}, {mode: PeersOnly}]}, " +
			"swarm: {peers: [" + id + "]}}", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := load(t, c.file, nil)
			require.NoError(t, err)
			require.Len(t, got.Warnings(), c.want)
		})
	}
}

func TestWarnings_NameTheRuleThatTakesWhatAnotherMatches(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		rules string
		want  []string
	}{
		"a wide pattern before a narrow one": {
			"{match: [docker.io/**], mode: Bypass}, {match: [a.example/b, docker.io/library/*], mode: PeersOnly}",
			[]string{`policy.rules[1].match[1]: "docker.io/library/*" is covered by "docker.io/**" of ` +
				`policy.rules[0], so this rule never holds for it; put it before that one`}},
		"a narrow pattern before a wide one": {
			"{match: [docker.io/library/*], mode: PeersOnly}, {match: [docker.io/**], mode: Bypass}", nil},
		"the same twice": {
			"{match: [a.example/b], mode: Bypass}, {match: [c.example/**], mode: Bypass}, {match: [A.example/b]}",
			[]string{`policy.rules[2].match[0]: "A.example/b" is covered by "a.example/b" of policy.rules[0], ` +
				`so this rule never holds for it; keep one of the two`}},
		"everything before anything": {"{match: ['**'], mode: Bypass}, {match: [a.example/b, c.example/**]}",
			[]string{`policy.rules[1].match[0]: "a.example/b" is covered by "**"`,
				`policy.rules[1].match[1]: "c.example/**" is covered by "**"`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := load(t, "{policy: {rules: ["+c.rules+"]}, swarm: {peers: ["+id+"]}}", nil)
			require.NoError(t, err)
			warnings := got.Warnings()
			require.Len(t, warnings, len(c.want))
			for i, want := range c.want {
				require.Contains(t, warnings[i], want)
			}
		})
	}
}

// Whatever a file says, it is refused or gives a configuration that survives being written and read.
func FuzzLoad(f *testing.F) {
	f.Add(contract)
	f.Add("policy: {rules: [{match: [a.example/b], mode: Bypass}], defaults: {tagTTL: 1h}}")
	f.Add("upstreams: {registry: a.example}")
	f.Add("store: {capacity: .5%, minFree: 0}")
	f.Add("{a: &a [*a]}")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := config.Load(file(t, text), nil, nil)
		if err != nil {
			require.NotEmpty(t, err.Error())
			return
		}
		var first, second bytes.Buffer
		require.NoError(t, c.Write(&first))
		again, err := config.Load(file(t, first.String()), nil, nil)
		require.NoError(t, err, first.String())
		require.NoError(t, again.Write(&second))
		require.Equal(t, first.String(), second.String())
	})
}

// A node whose containerd is not told to read mirrors is found out, wherever its flavour keeps the files.
func TestMirrorOptionsLeadToTheFilesOfTheRuntime(t *testing.T) {
	t.Parallel()
	const k3s = "/var/lib/rancher/k3s/agent/etc/containerd"
	for name, c := range map[string]struct {
		keys, file string
	}{
		"containerd where it usually is": {"runtime: containerd", "/etc/containerd/config.toml"},
		"MicroK8s where it usually is":   {"runtime: microk8s", "/var/snap/microk8s/current/args/containerd.toml"},
		"Talos where it usually is":      {"runtime: talos", "/etc/cri/containerd.toml"},
		"containerd as k3s has it": {"path: " + k3s + "/certs.d, runtimeConfig: " + k3s + "/config.toml",
			k3s + "/config.toml"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			path := filepath.Join(root, c.file)
			require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
			require.NoError(t, os.WriteFile(path, []byte("version = 3\n"), 0o600))
			loaded, err := load(t, "mirror: {stateDir: "+t.TempDir()+", root: "+root+", "+c.keys+"}", nil)
			require.NoError(t, err)
			status, err := mirror.Status(loaded.MirrorOptions())
			require.NoError(t, err)
			require.NotEmpty(t, status.Findings)
			for _, f := range status.Findings {
				require.Contains(t, []mirror.FindingKind{mirror.ConfigPathUnset, mirror.ConfigPathList}, f.Kind)
				require.Equal(t, c.file, f.Path)
			}
		})
	}
}
