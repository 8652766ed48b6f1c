package pin_test

import (
	"bytes"
	"context"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/node/internal/agent/pin"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/store"
)

// model is a hub with one repository: a listing, and one large file for the holders of a token.
type model struct {
	store  *store.Store
	token  string
	asked  atomic.Int32 // with get
	weight []byte
}

const commit = "0123456789abcdef0123456789abcdef01234567"

func (m *model) Files(ctx context.Context, repo content.Repository, _, at, authorization string, keep func(string) bool,
	get bool) ([]content.Request, error) {
	listing := []byte("what there is at " + at)
	if get {
		m.asked.Add(1)
		if authorization != m.token {
			return nil, &content.UpstreamError{Op: "ask the hub", Status: http.StatusUnauthorized}
		}
		err := m.store.Put(ctx, digest.FromBytes(listing), bytes.NewReader(listing), int64(len(listing)))
		if err != nil {
			return nil, err
		}
	} else if _, err := m.store.Stat(digest.FromBytes(listing)); err != nil {
		return nil, err
	}
	files := []content.Request{{Digest: digest.FromBytes(listing), Size: int64(len(listing))}}
	if keep("model.safetensors") {
		files = append(files, content.Request{Repository: repo, Kind: content.Blob, Digest: digest.FromBytes(m.weight),
			Size: int64(len(m.weight)), File: "/" + repo.Name + "/resolve/" + at + "/model.safetensors"})
	}
	return files, nil
}

func (m *model) Ensure(ctx context.Context, req content.Request) error {
	if _, err := m.store.Stat(req.Digest); err == nil || req.File == "" {
		return err
	}
	if req.Authorization != m.token {
		return &content.UpstreamError{Op: "GET", Status: http.StatusUnauthorized}
	}
	return m.store.Put(ctx, req.Digest, bytes.NewReader(m.weight), req.Size)
}

func (m *model) Open(ctx context.Context, req content.Request) (content.Reader, error) {
	if err := m.Ensure(ctx, req); err != nil {
		return nil, err
	}
	return m.store.Get(req.Digest)
}

func hubNode(t *testing.T, m *model) *node {
	t.Helper()
	secrets := vault{}
	secrets.add("token", "hub.example", "anyone", "a-token")
	secrets.add("another", "hub.example", "anyone", "another")
	secrets.add("line", "hub.example", "anyone", "a-token\n")
	n := newNode(t, t.TempDir(), func(o *pin.Options, _ *store.Options) {
		o.Hub, o.Fetcher, o.Secrets = m, m, secrets
	})
	m.store = n.store
	return n
}

func files(patterns ...string) v1alpha1.AssignedArtifact {
	return v1alpha1.AssignedArtifact{Repository: "hub.example/org/m", Tag: "main",
		Hub: &v1alpha1.ResolvedHub{Commit: commit, Files: patterns}}
}

func TestHub_FilesArePinnedWithTheTokenOfAPullSecret(t *testing.T) {
	t.Parallel()
	m := &model{token: "Bearer a-token", weight: []byte("weights")}
	n := hubNode(t, m)
	a := assignment("a", "1", files("*.safetensors"))
	a.PullSecrets = []string{"token"}
	n.Set([]v1alpha1.PinAssignment{a})
	p := n.await(t, "a", in(v1alpha1.PinReady, "1"))
	require.Equal(t, p.BytesWanted, p.BytesHeld)
	require.Contains(t, n.pinned("a"), digest.FromBytes(m.weight))
	require.Len(t, n.pinned("a"), 2, "what the hub tells is held too")

	t.Log("a file that is lost is fetched again")
	require.NoError(t, n.store.Unpin("pin/a"))
	require.NoError(t, n.store.Delete(digest.FromBytes(m.weight)))
	n.await(t, "a", func(p v1alpha1.PinProgress) bool {
		_, err := n.store.Stat(digest.FromBytes(m.weight))
		return err == nil && p.State == v1alpha1.PinReady
	})

	t.Log("a pin that goes leaves nothing pinned, and one that purges nothing behind")
	a.Revision, a.Action = "2", v1alpha1.ActionPurge
	n.Set([]v1alpha1.PinAssignment{a})
	n.await(t, "a", in(v1alpha1.PinPurged, "2"))
	n.requireAbsent(t, digest.FromBytes(m.weight))
}

func TestHub_APinWithoutTheTokenSaysSo(t *testing.T) {
	t.Parallel()
	m := &model{token: "Bearer a-token", weight: []byte("weights")}
	n := hubNode(t, m)
	a := assignment("a", "1", files())
	a.PullSecrets = []string{"another"}
	n.Set([]v1alpha1.PinAssignment{a})
	p := n.await(t, "a", in(v1alpha1.PinFailed, "1"))
	require.Equal(t, v1alpha1.ReasonUnauthorized, p.Reason)
	require.NotContains(t, p.Message, "a-token")
	require.NotContains(t, p.Message, "Bearer another")
	require.Contains(t, p.Message, commit)
}

// A request with such a token would fail as if the hub were down.
func TestHub_ATokenWithALineBreakIsNamedAsTheCause(t *testing.T) {
	t.Parallel()
	m := &model{token: "Bearer a-token", weight: []byte("weights")}
	n := hubNode(t, m)
	a := assignment("a", "1", files())
	a.PullSecrets = []string{"line"}
	n.Set([]v1alpha1.PinAssignment{a})
	p := n.await(t, "a", in(v1alpha1.PinFailed, "1"))
	require.Equal(t, v1alpha1.ReasonUnauthorized, p.Reason)
	require.Contains(t, p.Message, "pull secret: the token holds a line break")
}

func TestHub_AnAgentThatIsNoFrontForOneSaysSo(t *testing.T) {
	t.Parallel()
	n := newNode(t, t.TempDir(), nil)
	n.Set([]v1alpha1.PinAssignment{assignment("a", "1", files())})
	p := n.await(t, "a", in(v1alpha1.PinFailed, "1"))
	require.Equal(t, v1alpha1.FetchFailed, p.Reason)
	require.Contains(t, p.Message, "hub.enabled")
}
