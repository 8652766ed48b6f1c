package admin_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/admin"
	"github.com/shoal-cache/shoal/node/internal/content"
)

// contentsInMemory holds content in memory.
func contentsInMemory() admin.Shelf {
	held := map[digest.Digest][]byte{}
	return admin.Shelf{
		Open: func(d digest.Digest) (io.ReadCloser, int64, error) {
			data, ok := held[d]
			if !ok {
				return nil, 0, fmt.Errorf("%s: %w", d, content.ErrNotFound)
			}
			return io.NopCloser(bytes.NewReader(data)), int64(len(data)), nil
		},
		Put: func(_ context.Context, d digest.Digest, body io.Reader, size int64) error {
			data, err := io.ReadAll(content.NewVerifier(body, d, size))
			if err == nil {
				held[d] = data
			}
			return err
		},
	}
}

func TestContents_AreTakenInAndGivenByTheirDigest(t *testing.T) {
	t.Parallel()
	handler := admin.NewContents(contentsInMemory(), slog.New(slog.DiscardHandler))
	ask := func(method, name, body string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(method, "/contents/"+name, strings.NewReader(body)))
		return w
	}
	d := digest.FromString("hello").String()
	require.Equal(t, http.StatusNotFound, ask("GET", d, "").Code, "before")
	require.Equal(t, http.StatusBadRequest, ask("PUT", d, "other").Code, "what is other than its digest says")
	require.Equal(t, http.StatusNotFound, ask("GET", d, "").Code, "is not kept")
	require.Equal(t, http.StatusNoContent, ask("PUT", d, "hello").Code)
	got := ask("GET", d, "")
	require.Equal(t, http.StatusOK, got.Code)
	require.Equal(t, "hello", got.Body.String())
	require.Equal(t, "5", got.Header().Get("Content-Length"))
	bad := ask("PUT", "sha256:short", "x")
	require.Equal(t, http.StatusBadRequest, bad.Code)
	require.Contains(t, bad.Body.String(), `"sha256:short" is no digest`)
	require.Equal(t, http.StatusMethodNotAllowed, ask("DELETE", d, "").Code)
}
