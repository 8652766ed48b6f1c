package view_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/api/view"
)

func TestClient_AnAnswerThatIsTooLongIsAnErrorAndIsNotReadOn(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "["+strings.Repeat("{},", 340)+"{}]") // 1024 bytes
	}))
	defer server.Close()
	c := &view.Client{Base: server.URL, MostBytes: 1024}
	peers, err := view.Get[[]view.Peer](t.Context(), c, view.PeersPath, nil)
	require.NoError(t, err)
	require.Len(t, peers, 341)
	c.MostBytes--
	_, err = view.Get[[]view.Peer](t.Context(), c, view.PeersPath, nil)
	require.ErrorContains(t, err, "the answer is longer than 1023B")
}
