package v1alpha1_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/shoal-cache/shoal/api/v1alpha1"
)

func policy(name string, priority int32, spec v1alpha1.CachePolicySpec) v1alpha1.CachePolicy {
	spec.Priority = priority
	return v1alpha1.CachePolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}
}

func capacity(size string) v1alpha1.CachePolicySpec {
	q := resource.MustParse(size)
	return v1alpha1.CachePolicySpec{Storage: &v1alpha1.StoragePolicy{Capacity: &q}}
}

func rule(mode v1alpha1.RepositoryMode, match ...string) v1alpha1.CachePolicySpec {
	return v1alpha1.CachePolicySpec{Rules: []v1alpha1.RepositoryRule{{Match: match, Mode: &mode}}}
}

func connections(most int32, match ...string) v1alpha1.CachePolicySpec {
	return v1alpha1.CachePolicySpec{Rules: []v1alpha1.RepositoryRule{{Match: match,
		RateLimit: &v1alpha1.RateLimit{Connections: &most}}}}
}

func TestEffective(t *testing.T) {
	t.Parallel()
	share := int32(40)
	gpu := capacity("3Gi")
	gpu.NodeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"gpu": "yes"}}
	malformed := capacity("9Gi")
	malformed.NodeSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a",
		Operator: "Near"}}}

	for name, tc := range map[string]struct {
		policies  []v1alpha1.CachePolicy
		capacity  string
		percent   *int32
		taken     []string
		conflicts []v1alpha1.Conflict
	}{
		"no policy leaves everything to the agent's defaults": {},
		"the higher priority decides without a conflict": {
			policies: []v1alpha1.CachePolicy{policy("a", 1, capacity("1Gi")), policy("b", 2, capacity("2Gi"))},
			capacity: "2Gi", taken: []string{"b", "a"},
		},
		"of equal priorities the first name decides, and the disagreement shows": {
			policies: []v1alpha1.CachePolicy{policy("b", 0, capacity("2Gi")), policy("a", 0, capacity("1Gi"))},
			capacity: "1Gi", taken: []string{"a", "b"},
			conflicts: []v1alpha1.Conflict{{Field: "storage.capacity", Winner: "a", Loser: "b"}},
		},
		"equal values are no conflict, however they are written": {
			policies: []v1alpha1.CachePolicy{policy("a", 0, capacity("1Gi")), policy("b", 0, capacity("1024Mi"))},
			capacity: "1Gi", taken: []string{"a", "b"},
		},
		"capacity and capacityPercent are one decision": {
			policies: []v1alpha1.CachePolicy{policy("a", 0, capacity("1Gi")),
				policy("b", 5, v1alpha1.CachePolicySpec{Storage: &v1alpha1.StoragePolicy{CapacityPercent: &share}})},
			percent: &share, taken: []string{"b", "a"},
		},
		"a disagreement that a higher priority settles is no conflict": {
			policies: []v1alpha1.CachePolicy{policy("a", 0, capacity("1Gi")), policy("b", 0, capacity("2Gi")),
				policy("c", 1, capacity("3Gi"))},
			capacity: "3Gi", taken: []string{"c", "a", "b"},
		},
		"policies for other nodes and malformed selectors take no part": {
			policies: []v1alpha1.CachePolicy{policy("a", 0, capacity("1Gi")), policy("gpu", 9, gpu),
				policy("malformed", 10, malformed)},
			capacity: "1Gi", taken: []string{"a"},
		},
		"rules for one pattern that differ are a conflict": {
			policies: []v1alpha1.CachePolicy{policy("a", 0, rule(v1alpha1.ModeBypass, "x.example/**")),
				policy("b", 0, rule(v1alpha1.ModePeersOnly, "y", "x.example/**"))},
			taken:     []string{"a", "b"},
			conflicts: []v1alpha1.Conflict{{Field: "rules[x.example/**]", Winner: "a", Loser: "b"}},
		},
		"rules for one pattern that let another number of connections be are one": {
			policies: []v1alpha1.CachePolicy{policy("a", 0, connections(4, "x.example/**")),
				policy("b", 0, connections(5, "x.example/**")), policy("c", 0, connections(4, "x.example/**"))},
			taken: []string{"a", "b", "c"},
			conflicts: []v1alpha1.Conflict{{Field: "rules[x.example/**]", Winner: "a", Loser: "b"},
				{Field: "rules[x.example/**]", Winner: "b", Loser: "c"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, conflicts := v1alpha1.Effective(tc.policies, map[string]string{"zone": "a"})
			if tc.capacity == "" {
				require.Nil(t, e.Storage.Capacity)
			} else {
				require.Equal(t, tc.capacity, e.Storage.Capacity.String())
			}
			require.Equal(t, tc.percent, e.Storage.CapacityPercent)
			require.Equal(t, tc.taken, e.Policies)
			require.Equal(t, tc.conflicts, conflicts)
		})
	}
}

// TestEffectiveDoesNotDependOnOrder is what lets agents and operator merge for themselves.
func TestEffectiveDoesNotDependOnOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z]{1,4}`), 0, 6, rapid.ID[string]).Draw(t, "names")
		policies := make([]v1alpha1.CachePolicy, len(names))
		for i, name := range names {
			spec := v1alpha1.CachePolicySpec{}
			if rapid.Bool().Draw(t, "storage") {
				spec = capacity(rapid.SampledFrom([]string{"1Gi", "2Gi", "1024Mi"}).Draw(t, "capacity"))
			}
			if rapid.Bool().Draw(t, "rules") {
				ttl := metav1.Duration{Duration: time.Duration(rapid.IntRange(0, 2).Draw(t, "ttl")) * time.Minute}
				spec.Rules = []v1alpha1.RepositoryRule{{Match: []string{"a/**"}, TagTTL: &ttl}}
			}
			policies[i] = policy(name, int32(rapid.IntRange(0, 1).Draw(t, "priority")), spec)
		}
		a, conflictsA := v1alpha1.Effective(policies, nil)
		rand.Shuffle(len(policies), func(i, j int) { policies[i], policies[j] = policies[j], policies[i] })
		b, conflictsB := v1alpha1.Effective(policies, nil)
		require.Equal(t, a.Revision, b.Revision)
		require.Equal(t, a.Policies, b.Policies)
		require.ElementsMatch(t, conflictsA, conflictsB)
	})
}
