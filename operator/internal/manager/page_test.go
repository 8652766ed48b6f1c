package manager_test

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"

	"github.com/shoal-cache/shoal/operator/internal/manager"
)

// freeAddress is one of loopback that nobody listens at.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func TestTheStatusPageReadsAllThatItShowsByTheOperatorsOwnRights(t *testing.T) {
	address := freeAddress(t)
	newWorldOf(t, 3, 2, func(ctx context.Context, config *rest.Config) error {
		o := options()
		o.StatusPage, o.StatusPageLive = address, true
		o.Clock = clockOff{by: 2 * time.Hour}
		config.QPS, config.Burst = 500, 1000
		mgr, err := manager.New(ctx, config, o)
		if err != nil {
			return err
		}
		return mgr.Start(ctx)
	})
	var shown struct {
		State struct {
			Admitted    int
			Nodes       []struct{ Name string }
			NotReadable []string
		}
		Live bool
		At   time.Time
	}
	require.Eventually(t, func() bool {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/proxy/state.json", nil)
		require.NoError(t, err)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return false // it is about to start
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode == http.StatusOK && json.Unmarshal(body, &shown) == nil && shown.State.Admitted == 3
	}, 2*time.Minute, 100*time.Millisecond)
	require.Len(t, shown.State.Nodes, 3)
	require.Empty(t, shown.State.NotReadable, "the role has a right for all of it")
	require.True(t, shown.Live)
	require.WithinDuration(t, time.Now(), shown.At, time.Hour, "the API server's time, though the operator's clock is off")
}
