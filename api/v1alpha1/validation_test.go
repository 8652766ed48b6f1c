package v1alpha1_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/yaml"

	"github.com/shoal-cache/shoal/api/apitest"
	"github.com/shoal-cache/shoal/api/v1alpha1"
)

var cluster *apitest.Cluster

func TestMain(m *testing.M) {
	apitest.Main(m, func(c *apitest.Cluster) { cluster = c })
}

const (
	digestA = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	cidA    = "bafkreigaknpexyvxt76zgkitavbwx6ejgfheup5oybpm77f3pxzrvwpfdi"
	image   = "artifacts: [{image: registry.example/app:1}]"
)

// TestRefusals sends specs to the real API server and expects it to refuse them with the message that the person who
// wrote them needs.
func TestRefusals(t *testing.T) {
	t.Parallel()
	c := apitest.Require(t, cluster)
	for _, kind := range []struct {
		kind  string
		cases map[string]struct{ spec, message string }
	}{
		{"Swarm", map[string]struct{ spec, message string }{
			"another name than default": {"{}", "a cluster has one Swarm: name it 'default'"},
			"an admission mode that does not exist": {"admission: {mode: Open}",
				`supported values: "Nodes", "Frozen"`},
			"a bootstrap set that is no small set":   {"bootstrapPeers: 51", "should be less than or equal to 50"},
			"a bootstrap set of none":                {"bootstrapPeers: 0", "should be greater than or equal to 1"},
			"a misspelt field, in strict validation": {"bootstrapPeer: 5", `unknown field "spec.bootstrapPeer"`},
		}},
		{"Peer", map[string]struct{ spec, message string }{
			"another node's name":            {"{nodeName: other, peerID: 12D3KooWBhSnGQkzYtGRVRGdQFDwNxQvXyqHLSSrkMfTwRjgDYaK, addresses: [/ip4/10.0.0.1/tcp/1], proof: AAAAAAAAAAAAAAAAAAAAAA==}", "a Peer is named like its node"},
			"a peer ID that is none":         {"{nodeName: NAME, peerID: me, addresses: [/ip4/10.0.0.1/tcp/1], proof: AAAAAAAAAAAAAAAAAAAAAA==}", "peerID is not a libp2p peer ID in base58"},
			"an address with the peer ID":    {"{nodeName: NAME, peerID: 12D3KooWBhSnGQkzYtGRVRGdQFDwNxQvXyqHLSSrkMfTwRjgDYaK, addresses: [/ip4/10.0.0.1/tcp/1/p2p/x], proof: AAAAAAAAAAAAAAAAAAAAAA==}", "addresses are multiaddrs without the /p2p part"},
			"an address that is a host:port": {"{nodeName: NAME, peerID: 12D3KooWBhSnGQkzYtGRVRGdQFDwNxQvXyqHLSSrkMfTwRjgDYaK, addresses: ['10.0.0.1:4001'], proof: AAAAAAAAAAAAAAAAAAAAAA==}", "addresses are multiaddrs without the /p2p part"},
			"no address":                     {"{nodeName: NAME, peerID: 12D3KooWBhSnGQkzYtGRVRGdQFDwNxQvXyqHLSSrkMfTwRjgDYaK, addresses: [], proof: AAAAAAAAAAAAAAAAAAAAAA==}", "should have at least 1 items"},
			"no proof":                       {"{nodeName: NAME, peerID: 12D3KooWBhSnGQkzYtGRVRGdQFDwNxQvXyqHLSSrkMfTwRjgDYaK, addresses: [/ip4/10.0.0.1/tcp/1]}", "spec.proof: Required value"},
		}},
		{"CachePolicy", map[string]struct{ spec, message string }{
			"two capacities": {"storage: {capacity: 1Gi, capacityPercent: 10}",
				"set capacity (bytes) or capacityPercent (share of the disk), not both"},
			"a capacity of nothing": {`storage: {capacity: "0"}`, "capacity must be above 0 and below 8Ei"},
			"watermarks the wrong way round": {"storage: {lowWatermarkPercent: 90, highWatermarkPercent: 80}",
				"lowWatermarkPercent must be below highWatermarkPercent"},
			"one watermark alone": {"storage: {highWatermarkPercent: 80}",
				"set lowWatermarkPercent and highWatermarkPercent together"},
			"two floors": {"storage: {minFree: 1Gi, minFreePercent: 10}",
				"set minFree (bytes) or minFreePercent (share of the disk), not both"},
			"a negative floor":                 {`storage: {minFree: "-1"}`, "minFree must be from 0 to below 8Ei"},
			"a capacity beyond all disks":      {"storage: {capacity: 16Ei}", "capacity must be above 0 and below 8Ei"},
			"models' capacity beyond counting": {"storage: {modelCapacity: '1e100'}", "modelCapacity must be from 0 to below 8Ei"},
			"an upload beyond counting":        {"bandwidth: {upload: '1e30'}", "upload must be at least 64Ki bytes per second, and below 8Ei"},
			"capacity and floor beyond the disk": {"storage: {capacityPercent: 80, minFreePercent: 30}",
				"capacityPercent and minFreePercent together exceed the disk"},
			"an algorithm that does not exist": {"storage: {eviction: MRU}", `supported values: "LRU", "SLRU"`},
			"an upload too slow to work": {`bandwidth: {upload: "1"}`,
				"upload must be at least 64Ki bytes per second"},
			"a download too slow to work": {`bandwidth: {download: 1k}`,
				"download must be at least 64Ki bytes per second"},
			"a bypass with a tag TTL": {"rules: [{match: [a.example/**], mode: Bypass, tagTTL: 1m}]",
				"mode Bypass caches nothing"},
			"a pattern with a scheme": {"rules: [{match: ['https://a.example/x']}]",
				"match holds patterns of host/path"},
			"a pattern with three stars": {"rules: [{match: ['a.example/***']}]",
				"match holds patterns of host/path"},
			"a pattern with a tag": {"rules: [{match: ['a.example/x:1']}]",
				"with no scheme, tag or digest"},
			"a pattern that ends with a slash": {"rules: [{match: ['a.example/']}]",
				"match holds patterns of host/path"},
			"a registry and no path": {"rules: [{match: [b.example/**, 'a.example:5000']}]",
				"a.example:5000 has no path, so it matches nothing: add /** for everything there"},
			"one star for everything": {"rules: [{match: ['*']}]",
				"* has no path, so it matches nothing: add /** for everything there"},
			"an image's short name": {"rules: [{match: [redis]}]",
				"which redis does not, so it matches nothing: write docker.io/library/redis for what is called redis"},
			"a user's image on Docker Hub": {"rules: [{match: [team/app]}]",
				"which team/app does not, so it matches nothing"},
			"an official image of Docker Hub": {"rules: [{match: [docker.io/redis]}]",
				"write docker.io/library/redis"},
			"Docker Hub by its other name": {"rules: [{match: ['index.docker.io/**']}]",
				"match knows Docker Hub as docker.io"},
			"a rule that matches nothing": {"rules: [{match: []}]", "should have at least 1 items"},
			"a tag TTL of years": {"rules: [{match: [a.example/b], tagTTL: 9000h}]",
				"tagTTL must be between 0s and 720h"},
			"an exemption with a TTL": {"rules: [{match: [a.example/b], authorization: {mode: Exempt, ttl: 1m}}]", "mode Exempt asks no registry"},
			"an authorization TTL of years": {"rules: [{match: [a.example/b], authorization: {ttl: 9000h}}]",
				"ttl must be between 0s and 720h"},
			"a rate limit without a limit": {"rules: [{match: [a.example/b], rateLimit: {}}]",
				"rateLimit is empty"},
			"a byte rate too slow to work": {`rules: [{match: [a.example/b], rateLimit: {bytesPerSecond: "5"}}]`, "bytesPerSecond must be at least 64Ki"},
			"no connection": {"rules: [{match: [a.example/b], rateLimit: {connections: 0}}]",
				"rules[0].rateLimit.connections in body should be greater than or equal to 1"},
			"more connections than a registry has": {"rules: [{match: [a.example/b], rateLimit: {connections: 1001}}]",
				"should be less than or equal to 1000"},
			"a priority out of range": {"priority: 1001", "should be less than or equal to 1000"},
			"a duration that is none": {"rules: [{match: [a.example/b], tagTTL: soon}]",
				"written as 90s, 10m or 24h"},
			"a capacity with a unit that Kubernetes lacks": {"storage: {capacity: 20GiB}",
				"capacity is a number with a unit of Kubernetes, such as 500M or 50Gi (Gi, not GiB)"},
			"models' capacity with a unit that Kubernetes lacks": {"storage: {modelCapacity: 20GiB}",
				"modelCapacity is a number with a unit of Kubernetes, such as 500G or 500Gi (Gi, not GiB)"},
			"a bandwidth in words": {"bandwidth: {upload: fast}", "upload is a number with a unit of Kubernetes"},
			"a duration of days": {"rules: [{match: [a.example/b], tagTTL: 1d}]",
				"there is no unit for days"},
			"more rules than a person can look over": {"rules: [" +
				strings.TrimSuffix(strings.Repeat("{match: [a.example/b]},", 65), ",") + "]",
				"must have at most 64 items"},
		}},
		{"ArtifactPin", map[string]struct{ spec, message string }{
			"nothing to pin": {"replicas: 1",
				"say what to pin: either artifacts (a list) or workloads"},
			"artifacts and workloads": {image + "\nworkloads: {}",
				"say what to pin: either artifacts (a list) or workloads"},
			"an artifact named twice": {"artifacts: [{image: a.example/b:1, digest: '" + digestA + "'}]",
				"name an artifact in exactly one way: image, digest, cid or hub"},
			"an artifact not named": {"artifacts: [{}]",
				"name an artifact in exactly one way: image, digest, cid or hub"},
			"a repository beside an image": {"artifacts: [{image: a.example/b:1, repository: a.example/b}]",
				"repository goes with digest or cid"},
			"a size limit that is none": {image + "\nsizeLimit: 20 GB", "sizeLimit is a number with a unit of Kubernetes"},
			"an image with a scheme": {"artifacts: [{image: 'https://a.example/b:1'}]",
				"image is not a reference such as"},
			"an image in upper case": {"artifacts: [{image: a.example/App:1}]",
				"image is not a reference such as"},
			"a digest cut short": {"artifacts: [{digest: 'sha256:abc'}]",
				"digest is written sha256: and 64 hexadecimal digits"},
			"a CID that is none": {"artifacts: [{cid: hello}]", "cid is not a CID"},
			"a hub's repository with its host": {"artifacts: [{hub: {repository: 'https://huggingface.co/org/m'}}]",
				"hub.repository is written owner/name"},
			"a hub's repository that leads out": {"artifacts: [{hub: {repository: ../m}}]",
				"hub.repository is written owner/name"},
			"a hub's revision that is none": {"artifacts: [{hub: {repository: org/m, revision: 'a..b'}}]",
				"hub.revision is not the name of a branch, tag or commit"},
			"a hub's files outside of it": {"artifacts: [{hub: {repository: org/m, files: [/etc/passwd]}}]",
				"hub.files are patterns of paths within the repository"},
			"a hub's files beside an image": {"artifacts: [{image: a.example/b:1, hub: {repository: org/m}}]",
				"name an artifact in exactly one way"},
			"a hub's files in the runtime": {"{artifacts: [{hub: {repository: org/m}}], target: CacheAndRuntime}",
				"target CacheAndRuntime loads images"},
			"a hub's branch where digests are asked for": {
				"{artifacts: [{hub: {repository: org/m}}], resolve: {policy: Digest}}", "write every hub.revision as a commit"},
			"a hub's files that end unused": {"{artifacts: [{hub: {repository: org/m}}], expiry: {unusedFor: 24h}}",
				"expiry.unusedFor counts pulls of images"},
			"a repository with a tag": {"artifacts: [{digest: '" + digestA +
				"', repository: a.example/b:1}]", "repository is written host/path"},
			"a tag where only digests are taken": {image + "\nresolve: {policy: Digest}",
				"resolve.policy Digest takes no tags"},
			"an interval for resolving once": {image + "\nresolve: {policy: Once, interval: 1h}",
				"resolve.interval goes with policy Interval only"},
			"an interval of a second": {image + "\nresolve: {interval: 1s}",
				"resolve.interval must be between 1m and 720h"},
			"a plain digest for the runtime": {"artifacts: [{digest: '" + digestA + "'}]\ntarget: CacheAndRuntime",
				"target CacheAndRuntime loads images into the container runtime"},
			"no replicas":                  {image + "\nreplicas: 0", "replicas is a count from 1 to 5000"},
			"a percentage above the whole": {image + "\nreplicas: 101%", "replicas is a count from 1 to 5000"},
			"a word for a number":          {image + "\nreplicas: Every", "replicas is a count from 1 to 5000"},
			"a minimum above the replicas": {image + "\nreplicas: 2\nminReplicas: 3",
				"minReplicas must not exceed replicas"},
			"more domains than replicas": {image + "\nreplicas: 2\nspread: {topologyKey: zone, minDomains: 3}",
				"spread.minDomains must not exceed replicas"},
			"a pull secret without a name": {image + "\npullSecrets: [{}]", "pullSecrets are names of Secrets"},
			"a pull secret of no possible name": {image + "\npullSecrets: [{name: " + strings.Repeat("x", 254) + "}]",
				"pullSecrets are names of Secrets"},
			"a toleration with a misspelt word": {image + "\ntolerations: [{key: gpu, operator: exists}]",
				"a toleration's operator is Exists or Equal"},
			"a toleration of no such effect": {image + "\ntolerations: [{key: gpu, effect: NoPods}]",
				"a toleration's effect is NoSchedule"},
			"a toleration of nothing": {image + "\ntolerations: [{}]",
				"a toleration without key tolerates every taint"},
			"a platform in words": {image + "\nplatforms: [amd64]", "platforms are written os/arch"},
			"a bandwidth too slow to work": {image + "\nbandwidth: 1k",
				"bandwidth must be at least 64Ki bytes per second"},
			"a size limit of nothing": {image + "\nsizeLimit: '0'", "sizeLimit must be above 0"},
			"a time limit of a second": {image + "\ntimeLimit: 1s",
				"timeLimit must be between 10s and 168h"},
			"a back-off that shrinks": {image + "\nbackoff: {initial: 1h, max: 1m}",
				"backoff.initial must not exceed backoff.max"},
			"a back-off of nothing": {image + "\nbackoff: {initial: 0s}",
				"backoff.initial must be between 1s and 24h"},
			"a back-off of weeks": {image + "\nbackoff: {max: 999h}",
				"backoff.max must be between 1s and 24h"},
			"a schedule with seconds": {image + "\nschedule: {cron: '0 0 2 * * *'}",
				"schedule.cron has five fields"},
			"a schedule without a window": {image + "\nschedule: {cron: '0 2 * * *', window: 1s}",
				"schedule.window must be between 1m and 168h"},
			"an expiry without an end": {image + "\nexpiry: {}",
				"expiry is empty: set until, ttl, unusedFor or several"},
			"an expiry at a time that Go does not read": {
				image + "\nexpiry: {until: '2026-12-31t00:00:00z', ttl: 1h}",
				"expiry.until is a time with its offset from UTC, such as 2026-12-31T00:00:00Z"},
			"an expiry on a day": {image + "\nexpiry: {until: '2026-12-31'}", "expiry.until is a time with its offset from UTC"},
			"an expiry on a day that no year has": {image + "\nexpiry: {until: '2027-02-31T00:00:00Z'}",
				"expiry.until is a time with its offset from UTC"},
			"an expiry in words":           {image + "\nexpiry: {until: tomorrow}", "expiry.until is a time with its offset from UTC"},
			"a size limit beyond counting": {image + "\nsizeLimit: '1e100'", "sizeLimit must be above 0 and below 8Ei"},
			"a digest in place of an image": {"artifacts: [{image: '" + digestA + "'}]",
				"write registry.example/team/app@sha256:…, or digest instead of image"},
			"replicas in quotes":                      {image + "\nreplicas: '3'", "a count from 1 to 5000 without quotes"},
			"a back-off above the default of its end": {image + "\nbackoff: {initial: 1h}", "set both"},
			"a schedule with a zone":                  {image + "\nschedule: {cron: 'TZ=UTC 2 * * *'}", "schedule.cron has five fields"},
			"a service account of no possible name": {image + "\nserviceAccountName: No Body/",
				"serviceAccountName is the name of a ServiceAccount"},
			"an expiry at once": {image + "\nexpiry: {ttl: 1s}", "expiry.ttl must be at least 1m"},
			"an expiry after a minute of disuse": {image + "\nexpiry: {unusedFor: 1m}",
				"expiry.unusedFor must be at least 1h"},
			"a repair delay of months": {image + "\nrepairDelay: 2000h",
				"repairDelay must be between 0s and 168h"},
			"a target that does not exist": {image + "\ntarget: Runtime",
				`supported values: "Cache", "CacheAndRuntime"`},
			"more artifacts than one pin holds": {"artifacts: [" +
				strings.TrimSuffix(strings.Repeat("{image: a.example/b:1},", 33), ",") + "]",
				"must have at most 32 items"},
			"a misspelt field, strict validation": {image + "\nreplica: 3", `unknown field "spec.replica"`},
		}},
	} {
		for name, tc := range kind.cases {
			t.Run(kind.kind+" with "+name, func(t *testing.T) {
				t.Parallel()
				object := newObject(t, kind.kind, tc.spec)
				err := c.Client.Create(t.Context(), object, client.FieldValidation("Strict"), client.DryRunAll)
				require.Error(t, err)
				require.True(t, apierrors.IsInvalid(err) || apierrors.IsBadRequest(err), "%v", err)
				require.ErrorContains(t, err, tc.message)
			})
		}
	}
}

// TestAccepted guards against rules that refuse what is right, and shows the defaults.
func TestAccepted(t *testing.T) {
	t.Parallel()
	c := apitest.Require(t, cluster)
	for name, tc := range map[string]struct {
		kind, spec string
		defaults   map[string]any // by dotted path
	}{
		"a pin of an image": {"ArtifactPin", image, map[string]any{
			"spec.replicas": int64(3), "spec.resolve.policy": "Interval", "spec.target": "Cache",
			"spec.deletionPolicy": "Keep",
			"spec.repairDelay":    "5m", "spec.referrers": "Exclude", "spec.startup": "Ignore",
			"spec.backoff.initial": "10s",
		}},
		"a pin of a short name": {"ArtifactPin", "artifacts: [{image: redis}]", nil},
		"a pin of an image by digest": {"ArtifactPin",
			"artifacts: [{image: 'a.example:5000/b/c:1@" + digestA + "'}]\nresolve: {policy: Digest}", nil},
		"a pin of a digest and a CID": {"ArtifactPin",
			"artifacts: [{digest: '" + digestA + "', repository: a.example/b}, {cid: " + cidA + "}]", nil},
		"files of a hub": {"ArtifactPin", "artifacts: [{hub: {repository: org/m}}, " +
			"{hub: {repository: datasets/org/d, revision: refs/pr/1, files: ['*.parquet', data/]}}]", nil},
		"a pin on every node":           {"ArtifactPin", image + "\nreplicas: All\nminReplicas: 3", nil},
		"a pin on a share of the nodes": {"ArtifactPin", image + "\nreplicas: 25%", nil},
		"a pin of what a namespace runs": {"ArtifactPin",
			"workloads: {selector: {matchLabels: {app: web}}}\ntarget: CacheAndRuntime", nil},
		"a pin with everything that goes": {"ArtifactPin",
			image + "\nplatforms: [linux/amd64, linux/arm64/v8, '*']\nspread: {topologyKey: zone, minDomains: 3}\nschedule: {cron: '0 2 * * *', timeZone: Europe/Berlin}\nexpiry: {ttl: 24h}\nparallelism: 2\nbandwidth: 10M\nsizeLimit: 2Gi\ntimeLimit: 1h\npullSecrets: [{name: a.b-1}]\ntolerations: [{operator: Exists}, {key: gpu, value: yes-it-has, effect: NoSchedule}]", map[string]any{"spec.schedule.window": "1h"}},
		"a pin until a time with an offset": {"ArtifactPin",
			image + "\nexpiry: {until: '2026-12-31T00:00:00.5+01:00'}", nil},
		"a pin from a registry by its IPv6 address": {"ArtifactPin",
			"artifacts: [{image: '[::1]:5000/team/app:1'}, {image: '[fd00::5]/app@" + digestA + "'}, {digest: '" +
				digestA + "', repository: '[::1]:5000/app'}]", nil},
		"a policy for every way to name a registry": {"CachePolicy",
			"rules: [{match: ['[::1]:5000/**', '[fd00::5]/team/*', 'localhost/app', 'registry:5000/app', '*:5000/**', '*.example/**', '*/**', '**', '**/app', 'docker.io/**', 'docker.io/*/app', 'docker.io/re**', 'A.example/app']}]", nil},
		"a policy of nothing": {"CachePolicy", "{}", nil},
		"a policy of everything": {"CachePolicy",
			"storage: {capacityPercent: 50, lowWatermarkPercent: 80, highWatermarkPercent: 90, minFree: 5Gi, eviction: SLRU}\nbandwidth: {upload: 100M, download: 1G}\nrules: [{match: ['a.example/**', '*.b.example:5000/team-*/x'], mode: PeersOnly, tagTTL: 0s, authorization: {mode: Registry, ttl: 5m, onUnreachable: Deny}, rateLimit: {requestsPerSecond: 5, bytesPerSecond: 20M, connections: 1000}}]", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			object := newObject(t, tc.kind, tc.spec)
			require.NoError(t, c.Client.Create(t.Context(), object, client.FieldValidation("Strict"), client.DryRunAll))
			for path, want := range tc.defaults {
				got, _, err := unstructured.NestedFieldNoCopy(object.Object, strings.Split(path, ".")...)
				require.NoError(t, err)
				require.Equal(t, want, got, path)
			}
		})
	}
}

// patterns of repositories. instead is what who wrote one is told to write, empty where it is taken.
var patterns = map[string]struct{ pattern, instead string }{
	"everything":                             {"**", ""},
	"every registry":                         {"*/**", ""},
	"everything of a registry":               {"a.example/**", ""},
	"registries of a domain":                 {"*.example/**", ""},
	"one repository":                         {"A.example/app", ""},
	"a registry by its port":                 {"registry:5000/app", ""},
	"every registry on a port":               {"*:5000/**", ""},
	"a registry by its IPv6 address":         {"[::1]:5000/**", ""},
	"the local registry":                     {"localhost/app", ""},
	"a name, wherever it is":                 {"**/app", ""},
	"what begins like a registry":            {"a.ex**", ""},
	"Docker Hub":                             {"docker.io/**", ""},
	"images of one name on Docker Hub":       {"docker.io/*/app", ""},
	"what begins alike on Docker Hub":        {"docker.io/te**", ""},
	"nothing":                                {"", "host/path such as registry.example/team-*/**"},
	"a scheme":                               {"https://a.example/x", "no scheme"},
	"a tag":                                  {"a.example/x:1", "no scheme, tag"},
	"a digest":                               {"a.example/x@sha256:00", "no scheme, tag or digest"},
	"three stars":                            {"a.example/***", "host/path such as registry.example/team-*/**"},
	"another wildcard":                       {"a.example/re?is", "host/path such as registry.example/team-*/**"},
	"an empty part":                          {"a.example//b", "host/path such as registry.example/team-*/**"},
	"a slash at the end":                     {"a.example/", "host/path such as registry.example/team-*/**"},
	"a slash at the start":                   {"/app", "host/path such as registry.example/team-*/**"},
	"an address without its brackets":        {"::1/app", "[::1]:5000/**"},
	"a registry and no path":                 {"a.example:5000", "a.example:5000/**"},
	"the local registry and no path":         {"localhost", "localhost/**"},
	"Docker Hub and no path":                 {"docker.io", "docker.io/**"},
	"one star":                               {"*", "*/**"},
	"an image's short name":                  {"redis", "docker.io/library/redis"},
	"a user's image on Docker Hub":           {"team/app", "docker.io/team/app"},
	"all of a user on Docker Hub":            {"team/**", "docker.io/team/**"},
	"an official image of Docker Hub":        {"docker.io/redis", "docker.io/library/redis"},
	"an official image, in another case":     {"Docker.IO/redis", "docker.io/library/redis"},
	"some official images of Docker Hub":     {"docker.io/redis*", "docker.io/library/redis*"},
	"official images by their end":           {"docker.io/*sql", "docker.io/library/*sql"},
	"every official image of Docker Hub":     {"docker.io/*", "docker.io/library/*"},
	"Docker Hub by another name":             {"index.docker.io/**", "docker.io/**"},
	"Docker Hub by another name, no path":    {"index.docker.io", "docker.io/**"},
	"Docker Hub by the name of its API":      {"registry-1.docker.io/team/app", "docker.io/team/app"},
	"an official image and a wrong registry": {"index.docker.io/redis*", "docker.io/library/redis*"},
}

func TestCheckPattern(t *testing.T) {
	t.Parallel()
	for name, c := range patterns {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := v1alpha1.CheckPattern(c.pattern)
			if c.instead == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, strconv.Quote(c.pattern))
			require.ErrorContains(t, err, c.instead)
		})
	}
}

func TestTheAPIServerTakesTheSamePatterns(t *testing.T) {
	t.Parallel()
	c := apitest.Require(t, cluster)
	for name, tc := range patterns {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			policy := newObject(t, "CachePolicy", "rules: [{match: ["+strconv.Quote(tc.pattern)+"], tagTTL: 1m}]")
			err := c.Client.Create(t.Context(), policy, client.DryRunAll)
			require.Equal(t, tc.instead != "", apierrors.IsInvalid(err), "%v", err)
		})
	}
}

// TestAPolicyThatWasTakenBeforeStands has the API server store a policy that a later rule refuses, as an upgrade finds
// it.
func TestAPolicyThatWasTakenBeforeStands(t *testing.T) {
	t.Parallel()
	c := apitest.Require(t, cluster)
	ctx := t.Context()
	load := func() *apiextensionsv1.CustomResourceDefinition { // under a group of its own
		data, err := os.ReadFile(filepath.Join(apitest.APIDir(), "crds/shoal.dev_cachepolicies.yaml"))
		require.NoError(t, err)
		var crd apiextensionsv1.CustomResourceDefinition
		require.NoError(t, yaml.Unmarshal(data, &crd))
		crd.Spec.Group = "before.example"
		crd.Name = crd.Spec.Names.Plural + "." + crd.Spec.Group
		crd.Spec.Names.ShortNames, crd.Spec.Names.Categories = nil, nil
		return &crd
	}
	match := func(crd *apiextensionsv1.CustomResourceDefinition) apiextensionsv1.JSONSchemaProps {
		return crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"].Properties["rules"].Items.Schema.Properties["match"]
	}
	crd := load()
	before := match(crd)
	before.XValidations = nil
	crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"].Properties["rules"].Items.Schema.Properties["match"] = before
	definitions, err := client.New(c.Config, client.Options{Scheme: definitionScheme(t)})
	require.NoError(t, err)
	require.NoError(t, definitions.Create(ctx, crd))
	t.Cleanup(func() { require.NoError(t, definitions.Delete(context.Background(), crd)) })

	stored := newObject(t, "CachePolicy", "rules: [{match: [docker.io, '*'], tagTTL: 1m}]")
	stored.SetAPIVersion("before.example/v1alpha1")
	kept := stored.DeepCopy()
	require.Eventually(t, func() bool {
		return c.Client.Create(ctx, kept) == nil
	}, time.Minute, 100*time.Millisecond, "the API server knows the kind")

	require.NoError(t, definitions.Get(ctx, client.ObjectKeyFromObject(crd), crd))
	crd.Spec = load().Spec
	require.NoError(t, definitions.Update(ctx, crd))
	stored.SetName("anew")
	require.Eventually(t, func() bool {
		return apierrors.IsInvalid(c.Client.Create(ctx, stored.DeepCopy(), client.DryRunAll))
	},
		time.Minute, 100*time.Millisecond, "the API server knows the rule")

	require.NoError(t, unstructured.SetNestedField(kept.Object, int64(7), "spec", "priority"))
	require.NoError(t, c.Client.Update(ctx, kept), "whoever changes something else is not held up")
	require.NoError(t, unstructured.SetNestedField(kept.Object, int64(1), "status", "observedGeneration"))
	require.NoError(t, unstructured.SetNestedField(kept.Object, int64(1), "status", "matchedNodes"))
	require.NoError(t, c.Client.Status().Update(ctx, kept), "nor is the operator")
}

func definitionScheme(t *testing.T) *runtime.Scheme {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, apiextensionsv1.AddToScheme(scheme))
	return scheme
}

func TestSwarm_TakesAFieldThatAnEarlierVersionHad(t *testing.T) {
	t.Parallel()
	c := apitest.Require(t, cluster)
	swarm := newObject(t, "Swarm", "protocolPrefix: /shoal")
	swarm.SetName(v1alpha1.SwarmName)
	require.NoError(t, c.Client.Create(t.Context(), swarm))
	spec, _, err := unstructured.NestedMap(swarm.Object, "spec")
	require.NoError(t, err)
	require.NotContains(t, spec, "protocolPrefix")
	require.EqualValues(t, 5, spec["bootstrapPeers"])
}

func newObject(t *testing.T, kind, spec string) *unstructured.Unstructured {
	t.Helper()
	name := strings.ToLower(fmt.Sprintf("%s-case", kind))
	u := &unstructured.Unstructured{}
	require.NoError(t, yaml.Unmarshal([]byte("spec:\n  "+strings.ReplaceAll(strings.ReplaceAll(spec, "NAME", name),
		"\n", "\n  ")), &u.Object))
	u.SetAPIVersion(v1alpha1.GroupVersion.String())
	u.SetKind(kind)
	u.SetName(name)
	if kind == "ArtifactPin" {
		u.SetNamespace("default")
	}
	return u
}

// applyConfiguration is the apply configuration of a typed object.
func applyConfiguration(t *testing.T, object client.Object) *unstructured.Unstructured {
	t.Helper()
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	require.NoError(t, err)
	u := &unstructured.Unstructured{Object: content}
	gvk, err := apiutil.GVKForObject(object, cluster.Scheme)
	require.NoError(t, err)
	u.SetGroupVersionKind(gvk)
	unstructured.RemoveNestedField(u.Object, "metadata", "creationTimestamp")
	if _, isReport := object.(*v1alpha1.NodeCache); isReport {
		unstructured.RemoveNestedField(u.Object, "spec")
	} else {
		unstructured.RemoveNestedField(u.Object, "status")
	}
	return u
}
