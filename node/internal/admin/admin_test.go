package admin_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/node/internal/admin"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func options() admin.Options {
	return admin.Options{
		Gatherer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
		Alive: func() error { return nil }, Node: func() (v view.Node) { return v },
		Peers: func() []view.Peer { return nil }, Fetches: func() []view.Fetch { return nil },
		Pulls: func() []view.Pull { return nil }, Blobs: func([]string) []view.Blob { return nil },
		Registries: func(context.Context) []view.Registry { return nil },
	}
}

func call(t *testing.T, o admin.Options, method, path string) (int, string, http.Header) {
	t.Helper()
	w := httptest.NewRecorder()
	admin.New(o).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, nil))
	body, err := io.ReadAll(w.Result().Body)
	require.NoError(t, err)
	return w.Code, string(body), w.Result().Header
}

func TestReadinessNamesEveryCheck(t *testing.T) {
	t.Parallel()
	check := func(name string, err error) admin.Check {
		return admin.Check{Name: name, Ready: func(context.Context) error { return err }}
	}
	for name, c := range map[string]struct {
		checks []admin.Check
		status int
		body   string
	}{
		"an agent without checks is ready": {nil, 200, ""},
		"all checks pass": {[]admin.Check{check("store", nil), check("swarm", nil)}, 200,
			"store: ready\nswarm: ready\n"},
		"one check fails": {[]admin.Check{check("store", nil),
			check("swarm", errors.New("no address"))}, 503, "store: ready\nswarm: not ready: no address\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := options()
			o.Checks = c.checks
			status, body, _ := call(t, o, http.MethodGet, "/readyz")
			require.Equal(t, c.status, status)
			require.Equal(t, c.body, body)
			status, _, _ = call(t, o, http.MethodGet, "/healthz")
			require.Equal(t, http.StatusOK, status, "an agent that is not ready is alive")
		})
	}
}

func TestHealthz_AnAgentThatSaysItCannotServeIsPassedBy(t *testing.T) {
	t.Parallel()
	o := options()
	o.Alive = func() error { return errors.New("the disk hangs") }
	status, body, _ := call(t, o, http.MethodGet, "/healthz")
	require.Equal(t, http.StatusServiceUnavailable, status)
	require.Equal(t, "the disk hangs\n", body)
}

func TestAStuckCheckDoesNotHangTheProbe(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		stuck := func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}
		o := options()
		o.Checks = []admin.Check{{Name: "store", Ready: stuck}, {Name: "swarm", Ready: stuck}}
		start := time.Now()
		status, body, _ := call(t, o, http.MethodGet, "/readyz")
		require.Equal(t, http.StatusServiceUnavailable, status)
		require.Contains(t, body, "store: not ready: context deadline exceeded")
		require.Less(t, time.Since(start), time.Second, "within kubelet's default patience")
	})
}

func TestViewsAreJSON(t *testing.T) {
	t.Parallel()
	o := options()
	started := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	o.Node = func() view.Node {
		return view.Node{PeerID: "12D3", Started: started, Policy: map[string]any{"mode": "Cache"}}
	}
	o.Fetches = func() []view.Fetch { return []view.Fetch{{Digest: "sha256:ab", Size: 10, Present: 3, FromPeers: 3}} }

	status, body, header := call(t, o, http.MethodGet, "/debug/shoal/node")
	require.Equal(t, http.StatusOK, status)
	require.Equal(t, "application/json", header.Get("Content-Type"))
	var node view.Node
	require.NoError(t, json.Unmarshal([]byte(body), &node))
	require.Equal(t, o.Node(), node)

	_, body, _ = call(t, o, http.MethodGet, "/debug/shoal/fetches")
	var fetches []view.Fetch
	require.NoError(t, json.Unmarshal([]byte(body), &fetches))
	require.Equal(t, o.Fetches(), fetches)

	for _, path := range []string{"/debug/shoal/peers", "/debug/shoal/blobs", "/debug/shoal/pulls",
		"/debug/shoal/registries"} {
		_, body, _ = call(t, o, http.MethodGet, path)
		require.JSONEq(t, "[]", body, "nothing is an empty list")
	}
}

func TestNothingCanBeChanged(t *testing.T) {
	t.Parallel()
	for _, path := range []string{
		"/healthz", "/readyz", "/metrics", "/debug/pprof/", "/debug/pprof/symbol", "/debug/shoal/node",
		"/debug/shoal/peers", "/debug/shoal/blobs", "/debug/shoal/fetches",
		"/debug/shoal/pulls", "/debug/shoal/registries",
	} {
		for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete} {
			status, _, _ := call(t, options(), method, path)
			require.Equal(t, http.StatusMethodNotAllowed, status, "%s %s", method, path)
		}
		status, _, _ := call(t, options(), http.MethodGet, path)
		require.Equal(t, http.StatusOK, status, path)
	}
	status, _, _ := call(t, options(), http.MethodGet, "/")
	require.Equal(t, http.StatusNotFound, status)
}

//nolint:paralleltest // the rate is the process's
func TestWaitsAreRecordedWhileSomebodyAsks(t *testing.T) {
	recording := func() bool { return runtime.SetMutexProfileFraction(-1) > 0 }
	require.False(t, recording())
	ctx, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/debug/pprof/mutex?seconds=3600", nil)
		admin.New(options()).ServeHTTP(httptest.NewRecorder(), r)
	}()
	require.Eventually(t, recording, time.Minute, time.Millisecond)
	hangUp()
	<-answered
	require.False(t, recording())
}

func TestMetricsAreThoseOfTheGatherer(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "shoal_test_total", Help: "A test."})
	registry.MustRegister(counter)
	counter.Add(3)
	o := options()
	o.Gatherer = registry
	_, body, _ := call(t, o, http.MethodGet, "/metrics")
	require.Contains(t, body, "shoal_test_total 3")
}
