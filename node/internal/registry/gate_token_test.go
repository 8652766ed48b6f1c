package registry_test

import (
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
	"github.com/shoal-cache/shoal/test/registrytest"
)

// tokens makes an origin want Bearer tokens, as most public registries do: anyone reads with theirs what is not
// private, and alice reads everything.
type tokens struct {
	*registrytest.Tokens

	mu      sync.Mutex
	private map[string]bool // by repository
	anyones int             // tokens given to anyone
	hang    bool            // whoever asks as anyone gets no answer
}

func (w *world) giveTokens(private ...string) *tokens {
	k := &tokens{private: map[string]bool{}}
	for _, repo := range private {
		k.private[repo] = true
	}
	k.Tokens = registrytest.NewTokens(w.origin.Front(), k.issue)
	w.origin.Handle(k)
	return k
}

func (k *tokens) issue(r *http.Request) registrytest.Token {
	user, _, _ := r.BasicAuth()
	k.mu.Lock()
	hang := k.hang
	k.mu.Unlock()
	if hang && user == "" {
		<-r.Context().Done()
		return registrytest.Token{Status: -1}
	}
	return k.token(user == "alice")
}

func (k *tokens) token(ofAlice bool) registrytest.Token {
	k.mu.Lock()
	defer k.mu.Unlock()
	if ofAlice {
		return registrytest.Token{Requests: registrytest.Forever}
	}
	k.anyones++
	return registrytest.Token{Requests: registrytest.Forever, Reads: func(path string) bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		for repo := range k.private {
			if strings.HasPrefix(path, "/v2/"+repo+"/") {
				return false
			}
		}
		return true
	}}
}

// give gives out a token, as an Authorization header.
func (k *tokens) give(toAlice bool) string { return k.Give(k.token(toAlice)) }

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

				w.origin.SetDown(true)
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
		w.origin.SetDown(true)
		time.Sleep(24 * time.Hour)
		require.Equal(t, allServed, w.pull(img, "team/app", token))
		require.Equal(t, allLater, w.pull(img, "team/app", ""))
	})
}

// Others may not have asked since it became private, and remember that anyone could read it.
func TestARepositoryThatHasBecomePrivateIsNotOpenedByWhatOtherNodesRemember(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		others := &word{public: true}
		w := newWorld(t)
		w.witness = others
		w.restart()
		img := w.origin.pushImage(t, "team/app", "v1", "x")
		k := w.giveTokens("team/app")
		token := k.give(true)
		require.Equal(t, allServed, w.pull(img, "team/app", token))
		synctest.Wait()
		for _, when := range []string{"", "and after a restart"} {
			if when != "" {
				w.stop()
				w.restart()
			}
			w.origin.SetDown(true)
			time.Sleep(time.Hour)
			require.Equal(t, allLater, w.pull(img, "team/app", ""), when)
		}
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
