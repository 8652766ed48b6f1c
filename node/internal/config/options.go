package config

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode"

	ma "github.com/multiformats/go-multiaddr"
	"github.com/spf13/pflag"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/mirror"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/node/internal/swarm"
)

// Default is the configuration of an agent that nothing was said to. A default that a package has of its own stands
// there.
func Default() *Config {
	return &Config{
		Registry: Registry{
			Listen:           "127.0.0.1:5050",
			Ranges:           RangesChunks,
			ReadAhead:        policy.Size{Bytes: 32 << 20},
			FirstByteTimeout: content.DefaultFirstByte,
			DrainTimeout:     30 * time.Second,
		},
		Hub:   Hub{Listen: "127.0.0.1:5054", Endpoint: "https://huggingface.co"},
		Admin: Admin{Listen: "127.0.0.1:5051"},
		Swarm: Swarm{
			Listen:         []ma.Multiaddr{ma.StringCast("/ip4/0.0.0.0/tcp/5052"), ma.StringCast("/ip6/::/tcp/5052")},
			ProtocolPrefix: swarm.DefaultProtocolPrefix,
			// What Linux has by default, and then what every agent may use.
			CongestionControl: []string{"cubic", "reno"},
			Connections:       Connections{Low: swarm.DefaultLowConnections, High: swarm.DefaultHighConnections},
		},
		Store: Store{
			Path: "/var/lib/shoal",
			Store: policy.Store{
				Capacity:             policy.Size{Bytes: 20 << 30},
				ModelCapacity:        policy.Size{Share: 0.3},
				HighWatermarkPercent: 100 * store.DefaultHigh,
				LowWatermarkPercent:  100 * store.DefaultLow,
				MinFree:              policy.Size{Share: 0.05},
				Eviction:             store.DefaultEviction,
			},
			ScrubInterval: 7 * 24 * time.Hour,
		},
		Policy: Policy{Defaults: policy.DefaultRule()},
		Mirror: Mirror{Runtime: mirror.Containerd},
		Log:    Log{Level: "info", Format: "json"},
		// Who names a receiver wants to see something.
		Tracing: Tracing{Ratio: 1},
	}
}

// option is a key and what --help says of it.
type option struct{ key, help string }

// options are all keys that are no tables.
var options = []option{
	{"registry.listen", "address `host:port` of the registry front, which the runtime uses as a mirror"},
	{"registry.defaultRegistry",
		"registry `host` meant by requests that name none, as those of Docker, ORAS and skopeo do"},
	{"registry.ranges", "what a request for a part of a blob that is not here gets: " +
		"Chunks, just those it needs, by the word of the agent that read them from the registry; " +
		"or Verified, nothing before the whole is here and matches its digest"},
	{"registry.readAhead",
		"`size` of the next layers of an image that are fetched, at most, before the runtime, which downloads a few " +
			"at a time, asks for them; 0: none"},
	{"registry.firstByteTimeout",
		"bound on the wait for the first byte of an answer while nothing of its pull arrives; " +
			"then the runtime is sent to the registry itself"},
	{"registry.drainTimeout", "bound on the wait for running answers at shutdown"},
	{"hub.enabled", "serve clients of a model hub, such as huggingface_hub, whose HF_ENDPOINT is http://<hub.listen>"},
	{"hub.listen", "address `host:port` of the hub front"},
	{"hub.endpoint", "base `URL` of the hub; the front asks no other"},
	{"hub.allowFrom", "address `ranges`, such as 10.42.0.0/16, of callers that may use the hub front " +
		"besides this machine's own"},
	{"hub.urls", "`URLs`, such as https://files.example/models/, below which GET /sha256/DIGEST/https/HOST/PATH of " +
		"the hub front gives files; none: it gives none"},
	{"hub.certFile",
		"`file` with the certificate of hub.listen, as PEM, whose CA clients must trust; empty: plain HTTP"},
	{"hub.keyFile", "`file` with the key of hub.certFile"},
	{"admin.listen", "address `host:port` of health, metrics, profiles and the read-only view"},
	{"metrics.listen", "address `host:port` of metrics alone, for other machines; empty: none"},
	{"metrics.certFile", "`file` with the certificate of metrics.listen, as PEM; empty: plain HTTP"},
	{"metrics.keyFile", "`file` with the key of metrics.certFile"},
	{"metrics.tokenReview",
		"give the metrics of metrics.listen only to who shows the token of an account that the " +
			"API server lets GET /metrics"},
	{"upstream.allowAddresses",
		"`ranges` of the node's own addresses, such as 127.0.0.0/8, at which registries are asked though upstreams " +
			"does not list them; others of loopback, link-local, multicast and metadata services are not"},
	{"swarm.listen", "TCP `multiaddrs` to listen on for other agents, IPv4 and IPv6"},
	{"swarm.announce", "`multiaddrs` told to other agents instead of the listening ones"},
	{"swarm.bootstrap", "`multiaddrs` with /p2p/<peer ID> of the agents to start from; none starts a swarm"},
	{"swarm.zone", "`name` of the node's zone; bytes of a pull cross into a zone once"},
	{"swarm.protocolPrefix",
		"`prefix` of the swarm's protocols; agents with different ones do not speak with one another"},
	{"swarm.congestionControl",
		"`names` of TCP congestion controls for connections to other agents, the first that the kernel allows; []: " +
			"the node's own"},
	{"swarm.admission", "who may join: Open, List or Kubernetes (default: " +
		"Kubernetes where kubernetes.enabled, List where swarm.peers is set, else Open)"},
	{"swarm.peers", "`peer IDs` that may join when admission is List, besides those of swarm.bootstrap"},
	{"swarm.connections.low", "`number` of connections left after closing the least useful ones"},
	{"swarm.connections.high", "`number` of connections above which the least useful ones are closed"},
	{"store.path", "`directory` of blobs, chunk index and the agent's identity"},
	{"store.capacity", "`size` that all blobs may use: 20GiB, or a share of the disk: 30%"},
	{"store.modelCapacity", "`size`, or share of the disk, that files of the hub and of hub.urls may use beside the " +
		"capacity, where hub.enabled; 0: they share the capacity"},
	{"store.highWatermarkPercent", "`percent` of the capacity above which eviction starts"},
	{"store.lowWatermarkPercent", "`percent` of the capacity at which eviction ends"},
	{"store.minFree", "`size`, or share of the disk, that is left free whatever the capacity"},
	{"store.eviction", "`algorithm` that chooses what goes first: LRU or SLRU"},
	{"store.runtimePath",
		"`directory` of containerd's content store, whose blobs are shared too, read-only; empty: not used"},
	{"store.scrubInterval", "time in which every blob is read and checked once; 0: never"},
	{"policy.defaults.mode", "PullThrough, PeersOnly or Bypass, for repositories without a rule"},
	{"policy.defaults.tagTTL", "time for which the answer for a tag holds; 0: ask every time"},
	{"policy.defaults.authorization.mode",
		"Registry: the registry has to accept a caller before it gets cached content; Exempt: nobody is asked"},
	{"policy.defaults.authorization.ttl",
		"time for which the registry's acceptance of a caller holds; 0: ask every time"},
	{"policy.defaults.authorization.onUnreachable",
		"who gets cached content while the registry cannot be asked: Remembered (callers it once accepted) or Deny"},
	{"policy.defaults.rateLimit.requestsPerSecond", "bound on the `rate` of requests to a registry; 0: none"},
	{"policy.defaults.rateLimit.bytesPerSecond",
		"bound on the bytes read from a registry, a `size` per second; 0: none"},
	{"policy.defaults.rateLimit.connections",
		"bound on the `number` of requests under way at each registry at one time; " +
			"0: at most 8 parts of blobs, and no bound on other requests"},
	{"policy.bandwidth.upload", "bound on the bytes sent to other agents, a `size` per second; 0: none"},
	{"policy.bandwidth.download", "bound on the bytes taken from other agents, a `size` per second; 0: none"},
	{"mirror.stateDir", "`directory` of the originals that mirror install keeps; " +
		"what is amiss with the mirrors is reported; empty: it is not"},
	{"mirror.runtime", "the node's runtime, as mirror install was told: " + runtimes()},
	{"mirror.root", "`directory` where the node's file system is mounted"},
	{"mirror.path", "`path` on the node of the runtime's mirror configuration; empty: the runtime's"},
	{"mirror.runtimeConfig", "`path` on the node of containerd's configuration file; empty: the runtime's"},
	{"mirror.registries", "`hosts` that are mirrored; empty: all"},
	{"tracing.endpoint",
		"base `URL` of an OpenTelemetry receiver, such as http://otel-collector:4318; empty: no traces"},
	{"tracing.protocol", "http/protobuf or grpc; " +
		"empty: as OTEL_EXPORTER_OTLP_PROTOCOL says, and http/protobuf without that"},
	{"tracing.ratio", "`share` of pulls that are traced, from 0 to 1, where the client does not say which"},
	{"log.level", "debug, info, warn or error"},
	{"log.format", "json or text"},
	{"kubernetes.enabled", "register with, and take admission, policy and pins from, the Kubernetes API"},
	{"kubernetes.nodeName", "`name` of the Node that the agent runs on"},
	{"kubernetes.kubeconfig", "`file` with the API server's address and credentials; empty: the pod's service account"},
	{"kubernetes.runtimeEndpoint",
		"`address` of the runtime's CRI socket, such as unix:///run/containerd/containerd.sock, for " +
			"pins that load images into it, and to see images that the runtime pulled past the agent"},
}

// runtimes lists what mirror.runtime may be.
func runtimes() string {
	names := make([]string, len(mirror.Runtimes))
	for i, r := range mirror.Runtimes {
		names[i] = string(r)
	}
	return strings.Join(names, ", ")
}

// tables are the keys that hold lists of tables. They have no flag.
var tables = []string{"upstreams", "policy.rules"}

// WithoutFlag ends a help that lists the flags.
const WithoutFlag = `
Two keys are lists of tables and have no flag: upstreams and policy.rules. They stand in the file, or as YAML or JSON in
SHOAL_UPSTREAMS and SHOAL_POLICY_RULES.
`

// Flags adds a flag for every key to fs, but for the lists of tables.
func Flags(fs *pflag.FlagSet) {
	defaults := values(Default())
	for _, o := range options {
		help := o.help + " (" + o.key + ", " + o.variable() + ")"
		switch v := defaults[o.key].(type) {
		case bool:
			fs.Bool(o.flag(), v, help)
		case time.Duration:
			fs.Duration(o.flag(), v, help)
		case []string:
			fs.StringSlice(o.flag(), v, help)
		default:
			fs.String(o.flag(), fmt.Sprint(v), help)
		}
	}
}

// flag is the name of the key's flag: "store-min-free".
func (o option) flag() string {
	var b strings.Builder
	upper := true // the last rune was upper case, so that TTL becomes one word
	for _, r := range o.key {
		switch {
		case r == '.':
			b.WriteByte('-')
		case unicode.IsUpper(r):
			if !upper {
				b.WriteByte('-')
			}
			b.WriteRune(unicode.ToLower(r))
		default:
			b.WriteRune(r)
		}
		upper = unicode.IsUpper(r)
	}
	return b.String()
}

// variable is the name of the key's environment variable: "SHOAL_STORE_MINFREE".
func (o option) variable() string { return variable(o.key) }

func variable(key string) string {
	return "SHOAL_" + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

// values maps every key of c that is no table to its value: a string for what is written as text, a []string for lists.
func values(c *Config) map[string]any {
	all := make(map[string]any)
	var walk func(prefix string, v reflect.Value)
	walk = func(prefix string, v reflect.Value) {
		for i := range v.NumField() {
			name, option, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
			key, f := prefix+name, v.Field(i)
			_, isText := text(f)
			switch {
			case option == "inline":
				walk(prefix, f)
			case slices.Contains(tables, key):
			case f.Kind() == reflect.Slice && !isText:
				list := make([]string, f.Len())
				for j := range list {
					list[j], _ = text(f.Index(j))
				}
				all[key] = list
			case f.Kind() == reflect.Struct && !isText:
				walk(key+".", f)
			case isText:
				all[key], _ = text(f)
			default:
				all[key] = f.Interface()
			}
		}
	}
	walk("", reflect.ValueOf(c).Elem())
	// The patterns of the defaults mean nothing, so they are no key.
	delete(all, "policy.defaults.match")
	return all
}

// text is v as text, where its type writes itself so or is a kind of string.
func text(v reflect.Value) (string, bool) {
	if m, ok := reflect.TypeAssert[encoding.TextMarshaler](v); ok {
		if v.Kind() == reflect.Slice && v.Len() == 0 {
			return "", true
		}
		if b, err := m.MarshalText(); err == nil {
			return string(b), true
		}
	}
	if v.Kind() == reflect.String {
		return v.String(), true
	}
	return "", false
}
