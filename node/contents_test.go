package main

import (
	"bytes"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/config"
	"github.com/shoal-cache/shoal/node/internal/store"
)

// administered is an agent of which the administrator's socket alone answers.
func administered(t *testing.T) string {
	t.Helper()
	c, err := config.Load("", nil, []string{"SHOAL_STORE_PATH=" + t.TempDir()})
	require.NoError(t, err)
	s, err := store.Open(t.Context(), store.Options{Path: c.Store.Path})
	require.NoError(t, err)
	n := &node{config: c, log: slog.New(slog.DiscardHandler), store: s}
	server, ok := n.contentsServer(t.Context())
	require.True(t, ok)
	h := &http.Server{Handler: server.handler}
	served := make(chan error, 1)
	go func() { served <- h.Serve(server.listener) }()
	t.Cleanup(func() {
		require.NoError(t, h.Close())
		require.ErrorIs(t, <-served, http.ErrServerClosed)
		require.NoError(t, s.Close())
	})
	return socketOf(c)
}

func TestGet_GivesWhatAddHasTaken(t *testing.T) {
	t.Parallel()
	socket := administered(t)
	file := filepath.Join(t.TempDir(), "in")
	data := strings.Repeat("shoal", 1<<19)
	require.NoError(t, os.WriteFile(file, []byte(data), 0o600))
	for _, body := range []string{data, ""} {
		require.NoError(t, os.WriteFile(file, []byte(body), 0o600))
		r, d, size, err := toAdd(file, "", -1, nil)
		require.NoError(t, err)
		require.Equal(t, digest.FromString(body), d)
		require.NoError(t, add(t.Context(), socket, d, r, size))
		require.NoError(t, add(t.Context(), socket, d, strings.NewReader(body), size), "once more is no error")
		_ = r.Close() // the client may have closed it
		var out bytes.Buffer
		require.NoError(t, get(t.Context(), socket, d.String(), "-", &out))
		require.Equal(t, body, out.String())
		saved := filepath.Join(t.TempDir(), "out")
		require.NoError(t, get(t.Context(), socket, d.String(), saved, nil))
		got, err := os.ReadFile(saved)
		require.NoError(t, err)
		require.Equal(t, body, string(got))
	}
}

func TestGet_SaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	socket := administered(t)
	saved := filepath.Join(t.TempDir(), "out")
	d := digest.FromString("not here")
	require.ErrorContains(t, get(t.Context(), socket, d.String(), saved, nil), "this machine does not hold "+d.String())
	require.NoFileExists(t, saved)
	require.ErrorContains(t, get(t.Context(), socket, "latest", saved, nil), `"latest" is an image, and a digest is wanted here`)
	require.ErrorContains(t, get(t.Context(), socket+"x", d.String(), saved, nil), "no agent answers at")
	require.ErrorContains(t, add(t.Context(), socket, d, strings.NewReader("another"), 7), "digest")
	require.ErrorContains(t, get(t.Context(), socket, d.String(), saved, nil), "does not hold", "what is wrong is not kept")
	_, _, _, err := toAdd("-", "", -1, nil)
	require.ErrorContains(t, err, "--digest and --size")
	_, _, _, err = toAdd("/nonexistent", "", -1, nil)
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestSocket_IsEnteredByTheAgentsUserAlone(t *testing.T) {
	t.Parallel()
	socket := administered(t)
	folder, err := os.Stat(filepath.Dir(socket))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), folder.Mode().Perm())
	l, err := listenPrivately(t.Context(), socket) // an agent that was killed has left one
	require.NoError(t, err)
	require.NoError(t, l.Close())
}
