package main

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/test/registrytest"
)

// A policy that changes while an agent runs holds for what is asked from then on.
func TestRates_AnAgentHasAsManyRequestsUnderWayAsThePolicyInForceLets(t *testing.T) {
	t.Parallel()
	origin := registrytest.New(t)
	crowd := registrytest.NewCrowd(origin.Files, 2)
	origin.Handle(crowd)
	n := traced(t, "", origin.URL, nil, `
policy: {rules: [{match: ["registry.test/**"], rateLimit: {connections: 2}}]}`)
	defer func() { assert.NoError(t, n.close(t.Context())) }()
	pull := func() {
		var pulls sync.WaitGroup
		for range 16 {
			d := origin.AddRandom(64 << 10)
			pulls.Go(func() {
				r := httptest.NewRequestWithContext(t.Context(), http.MethodGet,
					"/v2/team/app/blobs/"+d.String()+"?ns=registry.test", nil)
				w := httptest.NewRecorder()
				n.front.ServeHTTP(w, r)
				assert.Equal(t, http.StatusOK, w.Code)
				assert.Equal(t, d, digest.FromBytes(w.Body.Bytes()))
			})
		}
		pulls.Wait()
	}
	pull()
	require.Equal(t, 2, crowd.Most())

	for _, most := range []int{12, 1} {
		changed := *n.policy.Load()
		changed.Rules = slices.Clone(changed.Rules)
		changed.Rules[0].RateLimit.Connections = most
		n.policy.Store(&changed)
		crowd.Gather(most)
		pull()
		require.Equal(t, most, crowd.Most())
	}
}

func TestRates_EachRuleHasItsOwnConnections(t *testing.T) {
	t.Parallel()
	p := policy.Default()
	rule := func(match string, most int) policy.Rule {
		return policy.Rule{Match: []string{match}, RateLimit: policy.RateLimit{Connections: most}}
	}
	p.Rules = []policy.Rule{rule("a.test/x/**", 1), rule("a.test/y/**", 2), rule("a.test/z/**", 0)}
	r := newRates(policy.NewLive(p))
	of := func(name string) any { return r.of(content.Repository{Registry: "a.test", Name: name}).Connections }
	require.Same(t, of("x/1"), of("x/2"))
	require.NotSame(t, of("x/1"), of("y/1"))
	require.Nil(t, of("z/1"))
	require.Nil(t, of("other"))
}
