package registry_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/gate"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/registry"
)

// tokens makes an origin want Bearer tokens, as most public registries do, and gives out another one each time: to
// anyone, who may read with it what is not private, and to alice, who may read everything.
type tokens struct {
	inner http.Handler

	mu      sync.Mutex
	private map[string]bool // by repository
	given   map[string]bool // by Authorization header; true: to alice
	anyones int             // tokens given to anyone
	hang    bool            // whoever asks as anyone gets no answer
}

// giveTokens comes after what is pushed, which passes by the origin's authentication only.
func (w *world) giveTokens(private ...string) *tokens {
	k := &tokens{inner: w.origin.handler, private: map[string]bool{}, given: map[string]bool{}}
	for _, repo := range private {
		k.private[repo] = true
	}
	w.origin.handler = k
	return k
}

func (k *tokens) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/token" {
		user, _, _ := r.BasicAuth()
		k.mu.Lock()
		hang := k.hang
		k.mu.Unlock()
		if hang && user == "" {
			<-r.Context().Done()
			return
		}
		_, _ = fmt.Fprintf(w, `{"token":%q}`, strings.TrimPrefix(k.give(user == "alice"), "Bearer "))
		return
	}
	k.mu.Lock()
	alice, known := k.given[r.Header.Get("Authorization")]
	for repo := range k.private {
		known = known && (alice || !strings.HasPrefix(r.URL.Path, "/v2/"+repo+"/"))
	}
	k.mu.Unlock()
	if !known {
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://images.test/token",service="images.test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	k.inner.ServeHTTP(w, r)
}

// give gives out a token, as an Authorization header.
func (k *tokens) give(toAlice bool) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	header := fmt.Sprintf("Bearer %d", len(k.given))
	k.given[header] = toAlice
	if !toAlice {
		k.anyones++
	}
	return header
}

func (k *tokens) set(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f()
}

func TestWhileARegistryThatGivesOutTokensIsDown(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		offline policy.UnreachableMode
		private bool
		alice   bool   // it was she who pulled
		shows   string // during the outage; "the same": the token of the pull
		want    map[int]int
	}{
		"a public repository is served without a token": {policy.Remembered, false, false, "", allServed},
		"and to whoever has one": {policy.Remembered, false, false, "Bearer another",
			allServed},
		"also where only one with a pull secret had pulled": {policy.Remembered, false, true, "", allServed},
		"a private one is served to who has the token of a pull": {policy.Remembered, true, true, "the same",
			allServed},
		"but not to who has another": {policy.Remembered, true, true, "Bearer another",
			allLater},
		"nor to who has a password":                               {policy.Remembered, true, true, alice, allLater},
		"nor to who has none":                                     {policy.Remembered, true, true, "", allLater},
		"nobody is let on where the policy denies it":             {policy.Deny, false, false, "the same", allLater},
		"not even to a public repository without any credentials": {policy.Deny, false, false, "", allLater},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				tags := new(tagMemory)
				set := func(o *registry.Options) { o.Tags = tags }
				w := newWorld(t, set)
				w.rule.Authorization.OnUnreachable = tc.offline
				img := w.origin.pushImage(t, "team/app", "v1", "x")
				k := w.giveTokens()
				if tc.private {
					k.private["team/app"] = true
				}
				require.Equal(t, allRefused, w.pull(img, "team/app", ""))
				token := k.give(tc.alice)
				require.Equal(t, allServed, w.pull(img, "team/app", token))
				synctest.Wait()
				require.Equal(t, allRefused, w.pull(img, "team/app", ""),
					"while the registry can be asked, it is its word that counts")

				w.origin.setDown(true)
				time.Sleep(24 * time.Hour)
				shows := tc.shows
				if shows == "the same" {
					shows = token
				}
				require.Equal(t, 200, w.get("/v2/").Code,
					"clients that ask for the challenge first are not sent for a token")
				require.Equal(t, tc.want, w.pull(img, "team/app", shows))
				w.stop()
				w.restart(set)
				require.Equal(t, tc.want, w.pull(img, "team/app", shows), "also after a restart")
			})
		})
	}
}

// What other nodes say of a repository comes from the same memory.
func TestANodeTellsOthersThatARepositoryIsThereForAnyone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		public := w.origin.pushImage(t, "public/app", "v1", "p")
		private := w.origin.pushImage(t, "private/app", "v1", "s")
		k := w.giveTokens("private/app")
		require.Equal(t, allServed, w.pull(public, "public/app", k.give(true)))
		require.Equal(t, allServed, w.pull(private, "private/app", k.give(true)))
		synctest.Wait()
		require.True(t, w.gate.Public(gate.Repository(repository("public/app"))))
		require.False(t, w.gate.Public(gate.Repository(repository("private/app"))))
	})
}

func TestARepositoryThatHasBecomePrivateIsNotThereForAnyone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		img := w.origin.pushImage(t, "team/app", "v1", "x")
		k := w.giveTokens()
		require.Equal(t, allServed, w.pull(img, "team/app", k.give(true)))
		synctest.Wait()
		k.set(func() { k.private["team/app"] = true })
		time.Sleep(w.rule.Authorization.TTL)
		token := k.give(true)
		require.Equal(t, allServed, w.pull(img, "team/app", token))
		synctest.Wait()
		w.origin.setDown(true)
		time.Sleep(24 * time.Hour)
		require.Equal(t, allServed, w.pull(img, "team/app", token))
		require.Equal(t, allLater, w.pull(img, "team/app", ""))
	})
}

func TestWhetherAnyoneMayReadIsAskedOncePerRepositoryAndTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		img := w.origin.pushImage(t, "team/app", "v1", "x")
		k := w.giveTokens("team/app")
		for range 3 {
			require.Equal(t, allServed, w.pull(img, "team/app", k.give(true)))
			synctest.Wait()
		}
		require.Equal(t, 1, k.anyones)
		time.Sleep(w.rule.Authorization.TTL)
		require.Equal(t, allServed, w.pull(img, "team/app", k.give(true)))
		synctest.Wait()
		require.Equal(t, 2, k.anyones)
	})
}

func TestNoCallerWaitsForWhatIsAskedForAnyone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		img := w.origin.pushImage(t, "team/app", "v1", "x")
		k := w.giveTokens()
		k.hang = true
		start := time.Now()
		require.Equal(t, allServed, w.pull(img, "team/app", k.give(true)))
		require.Zero(t, time.Since(start))
		time.Sleep(time.Minute) // which ends the question
	})
}
