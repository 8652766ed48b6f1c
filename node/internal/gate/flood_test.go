package gate_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/gate"
	"github.com/shoal-cache/shoal/node/internal/policy"
)

func of(host, name string) gate.Source {
	return gate.Repository(content.Repository{Registry: host, Name: name})
}

// stale says of one source that anyone may read it, which was so once.
type stale gate.Source

func (s stale) Hear(_ context.Context, source gate.Source, _ []digest.Digest) gate.Testimony {
	said := gate.Testimony{Everyone: true}
	if source == gate.Source(s) {
		said.Public = []time.Duration{0, 0}
	}
	return said
}

// Callers without credentials choose what they ask for, and at which registries.
func TestGate_NamesThatAreMadeUpPushOutNothingThatIsRemembered(t *testing.T) {
	t.Parallel()
	const registry, alice, many = "images.corp.test", "Basic alice", 80_000
	basic := &content.UpstreamError{Status: http.StatusUnauthorized, Challenge: []string{`Basic realm="corp"`}}
	private, public := of(registry, "team/app"), of(registry, "base/os")
	var rule policy.Rule
	rule.Authorization.TTL, rule.Authorization.OnUnreachable = time.Hour, policy.Remembered
	for name, flood := range map[string]func(g *gate.Gate, i int){
		"refusals of that registry": func(g *gate.Gate, i int) {
			g.Refused(of(registry, fmt.Sprint("x", i)), "", basic)
		},
		"refusals of credentials that are made up": func(g *gate.Gate, i int) {
			g.Refused(private, fmt.Sprint("Basic x", i), basic)
		},
		"refusals of a registry of one's own": func(g *gate.Gate, i int) {
			g.Refused(of("evil.test", fmt.Sprint("x", i)), "", basic)
		},
		"acceptances of a registry of one's own": func(g *gate.Gate, i int) {
			g.Accept(of("10.1.2.3:5000", fmt.Sprint("x", i)), "", time.Now())
		},
		"acceptances of many registries of a domain of one's own": func(g *gate.Gate, i int) {
			g.Accept(of(fmt.Sprintf("x%d.evil.test", i), "x"), "Basic x", time.Now())
		},
		"tokens that anyone gets": func(g *gate.Gate, i int) {
			g.Accept(of(registry, "base/os"), fmt.Sprint("Bearer x", i), time.Now())
		},
		"silences of a registry of one's own": func(g *gate.Gate, i int) {
			g.Silence(of("evil.test", fmt.Sprint("x", i)), "")
		},
		"content of a registry of one's own": func(g *gate.Gate, i int) {
			repo := content.Repository{Registry: "evil.test", Name: "x"}
			g.Prove(content.Request{Repository: repo, Digest: digest.FromString(fmt.Sprint(i))})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			saved := memory{}
			open := func() *gate.Gate {
				g, err := gate.New(gate.Options{Cache: nothing{}, Memory: saved, Witness: stale(private)})
				require.NoError(t, err)
				return g
			}
			g := open()
			layer := content.Request{Digest: digest.FromString("layer"), Repository: content.Repository{
				Registry: registry, Name: "team/app",
			}}
			g.Refused(private, "", basic)
			g.Confirm(t.Context(), rule, gate.Request{Source: private, Credentials: alice})
			g.Confirm(t.Context(), rule, gate.Request{Source: public})
			g.Prove(layer)
			for i := range many {
				flood(g, i)
			}
			for _, when := range []string{"then", "after a restart"} {
				require.True(t, g.Accepts(rule, private, alice), when)
				require.True(t, g.Public(public), when)
				require.True(t, g.Proved(layer), when)
				require.False(t, g.HeardPublic(t.Context(), private), "%s: it refuses whoever comes", when)
				require.NoError(t, g.Offline(t.Context(), rule, private, alice, content.ErrUnavailable), when)
				require.NoError(t, g.Close())
				g = open()
			}
			require.NoError(t, g.Close())
		})
	}
}

func TestGate_TheChallengeOfARegistryOutlastsThoseOfNamesThatAreMadeUp(t *testing.T) {
	t.Parallel()
	const registry = "images.corp.test"
	var rule policy.Rule
	rule.Authorization.OnUnreachable = policy.Remembered
	for _, flooder := range []string{"evil.test", registry} {
		t.Run(flooder, func(t *testing.T) {
			t.Parallel()
			g, err := gate.New(gate.Options{Cache: nothing{}})
			require.NoError(t, err)
			defer g.Close()
			refuse := func(host, name string) {
				g.Refused(of(host, name), "", &content.UpstreamError{Status: http.StatusUnauthorized,
					Challenge: []string{`Basic realm="` + host + `"`}})
			}
			refuse(registry, "team/app")
			g.Confirm(t.Context(), rule, gate.Request{Source: of(registry, "team/app"), Credentials: "Basic alice"})
			for i := range 4096 {
				refuse(flooder, fmt.Sprint("x", i))
			}
			err = g.Offline(t.Context(), rule, of(registry, "team/app"), "", content.ErrUnavailable)
			up, ok := errors.AsType[*content.UpstreamError](err)
			require.True(t, ok, err)
			require.Equal(t, []string{`Basic realm="` + registry + `"`}, up.Challenge)
			err = g.Offline(t.Context(), rule, of(registry, "never/asked"), "", content.ErrUnavailable)
			require.Equal(t, content.ErrUnavailable, err, "it may be public")
		})
	}
}

func TestGate_AChallengeWithoutAnEndIsNotRemembered(t *testing.T) {
	t.Parallel()
	for n, remembered := range map[int]bool{100: true, 60 << 10: false} {
		g, err := gate.New(gate.Options{Cache: nothing{}})
		require.NoError(t, err)
		defer g.Close()
		g.Refused(of("evil.test", "a"), "", &content.UpstreamError{Status: http.StatusUnauthorized,
			Challenge: []string{`Basic realm="` + strings.Repeat("x", n) + `"`}})
		err = g.Offline(t.Context(), policy.DefaultRule(), of("evil.test", "a"), "", content.ErrUnavailable)
		require.Equal(t, remembered, content.Denied(err), "%d", n)
	}
}
