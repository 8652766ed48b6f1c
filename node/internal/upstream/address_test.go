package upstream

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/api/registries"
)

// Anyone may have files asked for at the hosts of URLs, so those must not lead into the network around.
func TestOutward_AFilesHostLeadsIntoNoPrivateNetwork(t *testing.T) {
	t.Parallel()
	base, err := url.Parse("https://files.example/models/")
	require.NoError(t, err)
	c, err := New(Options{Outward: []*url.URL{base}, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	for name, want := range map[string]bool{"files.example": true, "images.example": false} {
		client, err := c.newClient(Upstream{Registry: name})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // nothing is sent in any case
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://10.0.0.1/admin", nil)
		require.NoError(t, err)
		_, err = client.Do(req)
		require.Equal(t, want, errors.Is(err, registries.ErrAddress), "%s: %v", name, err)
	}
}
