package agent

import (
	"crypto/rand"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/mirror"
	"github.com/shoal-cache/shoal/node/internal/policy"
)

func TestDialable(t *testing.T) {
	t.Parallel()
	var many, firstMany []string
	for i := range 20 {
		many = append(many, fmt.Sprintf("/ip4/10.0.0.%d/tcp/1", 10+i))
	}
	firstMany = many[:maxAddresses]
	for name, c := range map[string]struct{ addrs, want []string }{
		"drops loopback where there is better": {[]string{"/ip4/127.0.0.1/tcp/1", "/ip4/10.0.0.7/tcp/1",
			"/ip6/::1/tcp/1"}, []string{"/ip4/10.0.0.7/tcp/1"}},
		"keeps loopback where there is none": {[]string{"/ip4/127.0.0.1/tcp/1"}, []string{"/ip4/127.0.0.1/tcp/1"}},
		"drops what nobody can dial":         {[]string{"/ip4/0.0.0.0/tcp/1", "/ip6/fe80::1/tcp/1"}, nil},
		"drops the peer ID": {
			[]string{"/ip4/10.0.0.7/tcp/1/p2p/12D3KooWBhSnGQkzYtGRVRGdQFDwNxQvXyqHLSSrkMfTwRjgDYaK"}, []string{"/ip4/10.0.0.7/tcp/1"},
		},
		"says the same in whatever order": {[]string{"/ip6/fd00::1/tcp/1", "/ip4/10.0.0.7/tcp/1",
			"/ip4/10.0.0.7/tcp/1"}, []string{"/ip4/10.0.0.7/tcp/1", "/ip6/fd00::1/tcp/1"}},
		"says no more than the API has room for": {many, firstMany},
	} {
		var addrs []ma.Multiaddr
		for _, a := range c.addrs {
			addrs = append(addrs, ma.StringCast(a))
		}
		require.Equal(t, c.want, dialable(addrs), name)
	}
}

func newMember(t *testing.T) knownPeer {
	t.Helper()
	_, public, err := crypto.GenerateEd25519Key(rand.Reader)
	require.NoError(t, err)
	id, err := peer.IDFromPublicKey(public)
	require.NoError(t, err)
	return knownPeer{ID: id.String(), Addresses: []string{"/ip4/10.0.0.1/tcp/1"}}
}

func TestAnAgentStartsFromThePublishedSetAndAFewOthers(t *testing.T) {
	t.Parallel()
	var m knownPeers
	for range 100 {
		m.Admitted = append(m.Admitted, newMember(t))
	}
	m.Bootstrap = []knownPeer{m.Admitted[3], m.Admitted[7], newMember(t)}
	self, err := peer.Decode(m.Admitted[7].ID)
	require.NoError(t, err)

	first := bootstrapOf(self, m)
	require.Equal(t, m.Admitted[3].ID, first[0].ID.String())
	require.Equal(t, m.Bootstrap[2].ID, first[1].ID.String())
	require.Len(t, first, 2+extraBootstrap, "without itself")
	for _, p := range first {
		require.NotEqual(t, self, p.ID)
		require.NotEmpty(t, p.Addrs)
	}

	// A member that goes takes at most its own place with it.
	gone := first[len(first)-1].ID.String()
	var rest knownPeers
	rest.Bootstrap = m.Bootstrap
	for _, p := range m.Admitted {
		if p.ID != gone {
			rest.Admitted = append(rest.Admitted, p)
		}
	}
	require.Equal(t, first[:len(first)-1], bootstrapOf(self, rest)[:len(first)-1])
}

func TestAPolicyThatMakesNoSenseIsSaidToBeRejected(t *testing.T) {
	t.Parallel()
	m := newMetrics(nil, nil)
	a := &Agent{log: slog.New(slog.DiscardHandler),
		report: newWriter("NodeCache", time.Minute, 1, nil, m, slog.New(slog.DiscardHandler))}
	a.opts.BasePolicy = policy.Default()
	require.Equal(t, v1alpha1.ReasonApplying, a.policyApplied().Reason)
	newer := v1alpha1.EffectivePolicy{Policies: []string{"base"},
		Storage: v1alpha1.StoragePolicy{Eviction: new(v1alpha1.EvictionAlgorithm("ARC"))}}
	require.False(t, a.enforce(newer))
	c := a.policyApplied()
	require.Equal(t, []string{string(metav1.ConditionFalse), v1alpha1.ReasonPolicyRejected},
		[]string{string(c.Status), c.Reason})
	require.Contains(t, c.Message, "base")
	require.Contains(t, c.Message, "ARC")
}

func TestWithoutItsNodeAnAgentKeepsThePolicyInForce(t *testing.T) {
	t.Parallel()
	a := &Agent{api: &api{}}
	a.opts.NodeName = "n"
	a.api.node.SharedIndexInformer = cache.NewSharedIndexInformer(&cache.ListWatch{}, &metav1.PartialObjectMetadata{},
		0, nil)
	a.api.policies.SharedIndexInformer = cache.NewSharedIndexInformer(&cache.ListWatch{}, &v1alpha1.CachePolicy{}, 0,
		nil)
	large := &v1alpha1.CachePolicy{ObjectMeta: metav1.ObjectMeta{Name: "large"}, Spec: v1alpha1.CachePolicySpec{
		NodeSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"disk": "large"}},
		Storage:      &v1alpha1.StoragePolicy{CapacityPercent: new(int32(80))},
	}}
	require.NoError(t, a.api.policies.GetStore().Add(large))
	require.Empty(t, a.seenPolicy().Policies, "with none in force, no Node is one without labels")

	node := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: "n",
		Labels: map[string]string{"disk": "large"}}}
	require.NoError(t, a.api.node.GetStore().Add(node))
	inForce := a.seenPolicy()
	require.Equal(t, []string{"large"}, inForce.Policies)
	a.inForce.Store(inForce)
	require.NoError(t, a.api.node.GetStore().Delete(node))
	require.Nil(t, a.seenPolicy())
}

// What mirror tells and what the API documents are the same words.
func TestEveryFindingIsAReasonOfTheAPI(t *testing.T) {
	t.Parallel()
	kinds := []mirror.FindingKind{
		mirror.ConfigPathUnset, mirror.ConfigPathElsewhere, mirror.LegacyMirrors, mirror.RuntimeConfigUnreadable, mirror.NotMirrored,
		mirror.RestartNeeded, mirror.CRIDisabled, mirror.Outdated, mirror.Edited, mirror.Missing, mirror.ConfigPathList, v1alpha1.ReasonRuntimeBypasses,
	}
	for _, kind := range kinds {
		require.Contains(t, gravity, string(kind))
	}
	require.Len(t, gravity, len(kinds))
	worst := slices.SortedFunc(slices.Values([]Finding{{Reason: "Edited"}, {Reason: "Unheard"},
		{Reason: "ConfigPathUnset"}}), byGravity)
	require.Equal(t, []Finding{{Reason: "ConfigPathUnset"}, {Reason: "Edited"}, {Reason: "Unheard"}}, worst)
}

func TestCompile(t *testing.T) {
	t.Parallel()
	base := policy.Default()
	base.Rules = []policy.Rule{{Match: []string{"configured.example/**"}, Mode: policy.PeersOnly,
		Authorization: policy.Authorization{Mode: policy.Registry, OnUnreachable: policy.Deny}}}
	base.Store = policy.Store{Capacity: policy.Size{Bytes: 1 << 30}, HighWatermarkPercent: 95, LowWatermarkPercent: 85,
		Eviction: policy.LRU}
	repo := content.Repository{Registry: "a.example", Name: "team/app"}
	rule := func(r v1alpha1.RepositoryRule) v1alpha1.EffectivePolicy {
		r.Match = []string{"a.example/**"}
		return v1alpha1.EffectivePolicy{Rules: []v1alpha1.RepositoryRule{r}}
	}
	minute := &metav1.Duration{Duration: time.Minute}
	for name, c := range map[string]struct {
		policy v1alpha1.EffectivePolicy
		holds  func(*testing.T, *policy.Policy)
	}{
		"nothing set is the configuration": {v1alpha1.EffectivePolicy{}, func(t *testing.T, p *policy.Policy) {
			require.Equal(t, base, p)
		}},
		"a rule takes what it leaves out from the defaults": {
			rule(v1alpha1.RepositoryRule{Mode: new(v1alpha1.ModePeersOnly)}), func(t *testing.T, p *policy.Policy) {
				want := policy.DefaultRule()
				want.Match, want.Mode = []string{"a.example/**"}, policy.PeersOnly
				require.Equal(t, want, p.For(repo))
			},
		},
		"rules of the cluster come before those of the configuration": {
			rule(v1alpha1.RepositoryRule{}), func(t *testing.T, p *policy.Policy) {
				require.Len(t, p.Rules, 2)
				require.Equal(t, policy.PeersOnly,
					p.For(content.Repository{Registry: "configured.example", Name: "x"}).Mode)
			},
		},
		"authorization": {
			rule(v1alpha1.RepositoryRule{TagTTL: minute, Authorization: &v1alpha1.AuthorizationPolicy{
				Mode: new(v1alpha1.AuthorizeExempt), TTL: minute, OnUnreachable: new(v1alpha1.UnreachableDeny),
			}}), func(t *testing.T, p *policy.Policy) {
				r := p.For(repo)
				require.Equal(t, policy.Exempt, r.Authorization.Mode)
				require.Equal(t, policy.Deny, r.Authorization.OnUnreachable)
				require.Equal(t, time.Minute, r.Authorization.TTL)
				require.Equal(t, time.Minute, r.TagTTL)
			},
		},
		"rate limit": {
			rule(v1alpha1.RepositoryRule{RateLimit: &v1alpha1.RateLimit{
				RequestsPerSecond: new(int32(5)), BytesPerSecond: resource.NewQuantity(1<<20, resource.BinarySI),
				Connections: new(int32(3)),
			}}),
			func(t *testing.T, p *policy.Policy) {
				require.InDelta(t, 5, p.For(repo).RateLimit.RequestsPerSecond, 0)
				require.Equal(t, policy.Size{Bytes: 1 << 20}, p.For(repo).RateLimit.BytesPerSecond)
				require.Equal(t, 3, p.For(repo).RateLimit.Connections)
			},
		},
		"storage in shares of the disk": {
			v1alpha1.EffectivePolicy{Storage: v1alpha1.StoragePolicy{
				CapacityPercent: new(int32(40)), HighWatermarkPercent: new(int32(80)),
				LowWatermarkPercent: new(int32(60)),
				MinFreePercent:      new(int32(10)), Eviction: new(v1alpha1.EvictionAlgorithm("SLRU")),
			}}, func(t *testing.T, p *policy.Policy) {
				require.Equal(t, policy.Store{
					Capacity: policy.Size{Share: 0.4}, HighWatermarkPercent: 80, LowWatermarkPercent: 60,
					MinFree: policy.Size{Share: 0.1}, Eviction: policy.SLRU,
				}, p.Store)
			},
		},
		"watermarks at the edge of what the API takes": {
			v1alpha1.EffectivePolicy{Storage: v1alpha1.StoragePolicy{HighWatermarkPercent: new(int32(1)),
				LowWatermarkPercent: new(int32(0))}},
			func(t *testing.T, p *policy.Policy) { require.InDelta(t, 1, float64(p.Store.HighWatermarkPercent), 0) },
		},
		"bandwidth": {
			v1alpha1.EffectivePolicy{Bandwidth: v1alpha1.BandwidthPolicy{Upload: resource.NewQuantity(1<<20,
				resource.BinarySI)}},
			func(t *testing.T, p *policy.Policy) {
				require.Equal(t, policy.Bandwidth{Upload: policy.Size{Bytes: 1 << 20}}, p.Bandwidth)
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := compile(c.policy, base)
			require.NoError(t, p.Validate())
			c.holds(t, p)
		})
	}
}

func TestTheFirstRuleThatMatchesHolds(t *testing.T) {
	t.Parallel()
	rule := func(mode v1alpha1.RepositoryMode, pattern string) v1alpha1.RepositoryRule {
		return v1alpha1.RepositoryRule{Match: []string{pattern}, Mode: &mode}
	}
	p := compile(v1alpha1.EffectivePolicy{Rules: []v1alpha1.RepositoryRule{
		rule(v1alpha1.ModeBypass, "X.example/secret/*"), rule(v1alpha1.ModePeersOnly, "x.example/**"),
	}}, policy.Default())
	for repo, mode := range map[content.Repository]policy.Mode{
		{Registry: "x.example", Name: "secret/app"}:      policy.Bypass,
		{Registry: "x.example", Name: "secret/app/part"}: policy.PeersOnly,
		{Registry: "y.example", Name: "secret/app"}:      policy.PullThrough,
	} {
		require.Equal(t, mode, p.For(repo).Mode, repo)
	}
}

func TestThePolicyInForceIsKnownBeforeTheAgentRuns(t *testing.T) {
	t.Parallel()
	log, base := slog.New(slog.DiscardHandler), policy.Default()
	m := memory{}
	_, ok := RememberedPolicy(m, base, log)
	require.False(t, ok)
	large := v1alpha1.EffectivePolicy{Policies: []string{"large"},
		Storage: v1alpha1.StoragePolicy{Capacity: resource.NewQuantity(1<<40, resource.BinarySI)}}
	remember(m, log, keyPolicy, large)
	p, ok := RememberedPolicy(m, base, log)
	require.True(t, ok)
	require.Equal(t, compile(large, base), p)
	large.Rules = []v1alpha1.RepositoryRule{{Match: []string{"docker.io"}, Mode: new(v1alpha1.ModeBypass)}}
	remember(m, log, keyPolicy, large)
	p, ok = RememberedPolicy(m, base, log)
	require.True(t, ok, "for a pattern that the API server has not always refused, nothing else is given up")
	require.Equal(t, int64(1<<40), p.Store.Capacity.Bytes)
	large.Storage.Eviction = new(v1alpha1.EvictionAlgorithm("ARC"))
	remember(m, log, keyPolicy, large)
	_, ok = RememberedPolicy(m, base, log)
	require.False(t, ok, "of an agent that knew more")
}

func TestDamagedMemoryCountsAsNone(t *testing.T) {
	t.Parallel()
	m := memory{keyMembers: []byte(`{"admitted": [`)}
	_, ok := recall[knownPeers](m, slog.New(slog.DiscardHandler), keyMembers)
	require.False(t, ok)
	remember(m, slog.New(slog.DiscardHandler), keyMembers, knownPeers{Admitted: []knownPeer{{ID: "x"}}})
	got, ok := recall[knownPeers](m, slog.New(slog.DiscardHandler), keyMembers)
	require.True(t, ok)
	require.Equal(t, "x", got.Admitted[0].ID)
}

type memory map[string][]byte

func (m memory) Get(key string) ([]byte, bool)      { v, ok := m[key]; return v, ok }
func (m memory) Put(key string, value []byte) error { m[key] = value; return nil }

// BenchmarkPeersInMemory shows what an agent holds for each peer of the cluster.
func BenchmarkPeersInMemory(b *testing.B) {
	const n = 5000
	peers := make([]any, 0, n)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for b.Loop() {
		peers = peers[:0]
		for i := range n {
			p := &v1alpha1.Peer{
				ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("node-", i),
					ManagedFields: make([]metav1.ManagedFieldsEntry, 2), Labels: map[string]string{"a": "b"}},
				Spec: v1alpha1.PeerSpec{NodeName: fmt.Sprint("node-", i), PeerID: fmt.Sprintf("12D3KooW%044d", i),
					Addresses: []string{fmt.Sprint("/ip4/10.0.0.1/tcp/", i)}, Proof: make([]byte, 64)},
				Status: v1alpha1.PeerStatus{Conditions: make([]metav1.Condition, 1)},
			}
			kept, err := strip(p)
			require.NoError(b, err)
			peers = append(peers, kept)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "heap-B/peer")
	runtime.KeepAlive(peers)
}

func TestPins_ANodeCacheMadeAnewReleasesOnlyWhatItHasListed(t *testing.T) {
	t.Parallel()
	cache := func(uid types.UID, pins ...string) *v1alpha1.NodeCache {
		c := &v1alpha1.NodeCache{ObjectMeta: metav1.ObjectMeta{UID: uid}}
		for _, p := range pins {
			c.Spec.Pins = append(c.Spec.Pins, v1alpha1.PinAssignment{UID: p})
		}
		return c
	}
	var by listing
	var known []v1alpha1.PinAssignment
	for _, step := range []struct {
		what           string
		cache          *v1alpha1.NodeCache
		keep, unlisted string
	}{
		{"the first lists two", cache("1", "a", "b", "c"), "a b c", ""},
		{"what leaves it is released", cache("1", "a", "b"), "a b", ""},
		{"one made anew lists another", cache("2", "x"), "x a b", "a b"},
		{"it still lists neither", cache("2", "x", "y"), "x y a b", "a b"},
		{"it lists one of them", cache("2", "a"), "a b", "b"},
		{"what it has listed it may release", cache("2"), "b", "b"},
		{"made anew once more", cache("3"), "b", "b"},
		{"the last is listed", cache("3", "b"), "b", ""},
		{"and released", cache("3"), "", ""},
	} {
		by, known = by.follow(step.cache, known)
		var keep []string
		for _, k := range known {
			keep = append(keep, k.UID)
		}
		require.Equal(t, step.keep, strings.Join(keep, " "), step.what)
		require.Equal(t, step.unlisted, strings.Join(by.Unlisted, " "), step.what)
	}

	lets := cache("1", "a", "b")
	lets.Spec.Pins[0].Action, lets.Spec.Pins[1].Action = v1alpha1.ActionKeep, v1alpha1.ActionPurge
	_, known = listing{Cache: "1"}.follow(cache("2"), lets.Spec.Pins)
	require.Equal(t, lets.Spec.Pins[1:], known, "what was let go of is no copy, and what is to be purged still is to be")

	_, known = listing{}.follow(cache("1"), cache("", "a").Spec.Pins)
	require.Empty(t, known, "what an earlier version remembered was listed by the NodeCache that stands")

	many := cache("1")
	for i := range v1alpha1.MaxPinsPerNode {
		many.Spec.Pins = append(many.Spec.Pins, v1alpha1.PinAssignment{UID: fmt.Sprint(i)})
	}
	_, known = listing{Cache: "1"}.follow(cache("2", "a"), many.Spec.Pins)
	require.Len(t, known, v1alpha1.MaxPinsPerNode, "a report holds no more")
}

func TestConditions_WhatIsToldNoLongerGoes(t *testing.T) {
	t.Parallel()
	earlier, now := metav1.Unix(1000, 0), time.Unix(2000, 0)
	before := []metav1.Condition{
		{Type: v1alpha1.ConditionModelsFit, Status: metav1.ConditionFalse, LastTransitionTime: earlier},
		{Type: v1alpha1.ConditionPinsReady, Status: metav1.ConditionTrue, LastTransitionTime: earlier},
	}
	got := since(before, []metav1.Condition{{Type: v1alpha1.ConditionPinsReady, Status: metav1.ConditionTrue},
		{Type: v1alpha1.ConditionStoreUsable, Status: metav1.ConditionTrue}}, now)
	require.Equal(t, []metav1.Condition{before[1],
		{Type: v1alpha1.ConditionStoreUsable, Status: metav1.ConditionTrue, LastTransitionTime: metav1.NewTime(now)}}, got)
	require.Len(t, before, 2, "the informer's own is left as it is")
	require.Equal(t, v1alpha1.ConditionModelsFit, before[0].Type)
}

func TestMirrorConfigured_NamesTheReasonsOfAllFindings(t *testing.T) {
	t.Parallel()
	a := &Agent{}
	a.findings.Store(&[]Finding{{Reason: v1alpha1.ReasonConfigPathUnset, Message: "a: names none"},
		{Reason: v1alpha1.ReasonRestartNeeded, Message: "b: is newer"}})
	c := a.mirrorConfigured()
	require.Equal(t, v1alpha1.ReasonConfigPathUnset, c.Reason)
	require.Equal(t, "a: names none; RestartNeeded: b: is newer", c.Message)
}
