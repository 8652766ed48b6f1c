package hub

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/swarm"
	"github.com/shoal-cache/shoal/test/hubtest"
)

// liar is an admitted agent that was taken over. It signs whatever it says.
type liar struct {
	*agent
	evil record // what it says of a branch

	mu   sync.Mutex
	said []string // of what it was asked
}

// lying has an agent lie to the others, as a home and as one that remembers.
func lying(a *agent, evil string) *liar {
	l := &liar{agent: a, evil: record{Commit: evil, Yes: true}}
	l.errands = swarm.NewErrands(a.swarm, l.lie, l.lie, func(string, []byte, time.Duration) {})
	return l
}

func (l *liar) lie(meet string) (value []byte, age time.Duration, ok bool) {
	k := strings.TrimPrefix(meet, againKind+"\x00")
	var rec record
	switch kindOf(k) {
	case "revision":
		rec = l.evil
	case openKind:
		rec = record{Yes: true}
	case "tree":
		doc := []byte(`[]`)
		rec = l.keep(context.Background(), doc)
	default:
		return nil, 0, false
	}
	l.mu.Lock()
	l.said = append(l.said, kindOf(k))
	l.mu.Unlock()
	raw, err := json.Marshal(l.memo.vouch(k, rec))
	return raw, 0, err == nil
}

func (l *liar) asked(kind string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Contains(l.said, kind)
}

// outdate has agents have all that they know asked anew.
func outdate(agents ...*agent) {
	rule := policy.DefaultRule()
	rule.TagTTL, rule.Authorization.TTL = 0, 0
	for _, a := range agents {
		a.rule.Store(&rule)
	}
}

const evilCommit = "e71e71e71e71e71e71e71e71e71e71e71e71e71e"

// Whichever node is the home of a question, and whoever asks it first, what it says alone is not what a branch is, what
// is in it, or who may read.
func TestSwarm_OneNodeThatLiesDecidesNothingWhileTheHubIsUp(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	agents := newAgents(t, h, 4)
	evil := lying(agents[3], evilCommit)
	agents = agents[:3]
	const most = 40 // until it was the home of each kind of question
	for i := 0; i < most && !(evil.asked("revision") && evil.asked("tree") && evil.asked(openKind)); i++ {
		id, secret := fmt.Sprint("org/m", i), fmt.Sprint("org/secret", i)
		_, commit, files := model(h, id)
		repo, _, _ := model(h, secret)
		repo.SetPrivate("good")
		if i%2 == 0 { // it has come first, too
			for _, k := range []string{revisionKey(repoOf(id), "main"), againKind + "\x00" + revisionKey(repoOf(id), "main")} {
				raw, err := json.Marshal(evil.memo.vouch(revisionKey(repoOf(id), "main"), evil.evil))
				require.NoError(t, err)
				_, _, err = evil.errands.Do(t.Context(), k, 0, func(context.Context) ([]byte, error) { return raw, nil })
				require.NoError(t, err)
			}
		}
		for _, a := range agents {
			g := a.ask(t, http.MethodGet, resolve(id, "main", "config.json"))
			require.Equal(t, http.StatusOK, g.status, "%s: %s", id, g.body)
			require.Equal(t, commit, g.header.Get("X-Repo-Commit"))
			require.Equal(t, read(t, files["config.json"].Data), g.body)
			require.Equal(t, http.StatusUnauthorized, a.ask(t, http.MethodGet, resolve(secret, "main", "config.json")).status)
			require.Equal(t, http.StatusUnauthorized, a.ask(t, http.MethodGet, "/api/models/"+secret).status)
		}
	}
	require.True(t, evil.asked("revision") && evil.asked("tree") && evil.asked(openKind))
}

func repoOf(id string) repo { return repo{"models", id} }

// The words of those who have it from the hub go first while it is away, and one that was taken over is one.
func TestSwarm_WhileTheHubIsAwayOneNodeThatLiesIsBelievedByThoseAloneWhoHearNothingElse(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	_, commit, _ := model(h, "org/m")
	repo, secret, _ := model(h, "org/secret")
	repo.SetPrivate("good")
	agents := newAgents(t, h, 4)
	branch := func(a *agent) string {
		return a.ask(t, http.MethodHead, resolve("org/m", "main", "config.json")).header.Get("X-Repo-Commit")
	}
	for _, a := range agents[:2] {
		require.Equal(t, commit, branch(a))
		require.Equal(t, http.StatusUnauthorized, a.ask(t, http.MethodGet, "/api/models/org/secret").status)
	}
	evil := lying(agents[3], evilCommit)
	outdate(agents[:3]...)
	h.Set(hubtest.Trouble{Down: true})
	for i, a := range agents[:3] {
		require.Equal(t, commit, branch(a), "node %d", i)
		for _, revision := range []string{"main", secret} {
			g := a.ask(t, http.MethodGet, resolve("org/secret", revision, "config.json"))
			require.GreaterOrEqual(t, g.status, 400, "node %d: %s of what two know to be private", i, revision)
		}
	}
	require.True(t, evil.asked("revision") && evil.asked(openKind))

	// What nobody else knows is taken from one, and is not kept, and not passed on.
	unknown := agents[2]
	unknown.ask(t, http.MethodHead, resolve("org/other", "main", "config.json"))
	k := revisionKey(repoOf("org/other"), "main")
	r, heard := unknown.memo.overheard(k)
	require.True(t, heard)
	require.Equal(t, evilCommit, r.record.Commit)
	_, _, known := unknown.memo.own(k)
	require.False(t, known)
	_, _, known = unknown.Remembers(k)
	require.False(t, known)
	_, kept := unknown.memo.memory.Get(k)
	require.False(t, kept)
}

// A node that has not asked for long knows nothing of what the hub has said meanwhile.
func TestSwarm_WhatHasBecomePrivateIsShutOnNodesThatHaveNotAskedSince(t *testing.T) {
	t.Parallel()
	for name, ask := range map[string]func(t testing.TB, a *agent, commit string) got{
		"who asked for a file": func(t testing.TB, a *agent, commit string) got {
			return a.ask(t, http.MethodGet, resolve("org/m", commit, "config.json"))
		},
		"who asked what it tells": func(t testing.TB, a *agent, _ string) got {
			return a.ask(t, http.MethodGet, "/api/models/org/m")
		},
	} {
		t.Run(name+" was refused", func(t *testing.T) {
			t.Parallel()
			h := newHub(t)
			repo, commit, _ := model(h, "org/m")
			agents := newAgents(t, h, 3)
			file := func(a *agent, revision string) int {
				return a.ask(t, http.MethodGet, resolve("org/m", revision, "config.json")).status
			}
			require.Equal(t, http.StatusOK, file(agents[0], "main"))
			require.Equal(t, http.StatusOK, file(agents[1], "main"))
			outdate(agents...)
			repo.SetPrivate("good")
			require.Equal(t, http.StatusUnauthorized, ask(t, agents[1], commit).status)
			h.Set(hubtest.Trouble{Down: true})
			for i, a := range agents {
				for _, revision := range []string{"main", commit} {
					require.GreaterOrEqual(t, file(a, revision), 400, "node %d: %s", i, revision)
				}
				require.GreaterOrEqual(t, a.ask(t, http.MethodGet, "/api/models/org/m").status, 400, "node %d", i)
			}
		})
	}
}
