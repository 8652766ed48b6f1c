// Package admin is the HTTP handler of the agent's admin address: liveness, readiness, metrics, profiles, and a
// read-only view of the node in JSON. It shows no credentials, for the agent keeps none.
//
//	GET /healthz              200 while the process answers and does not say itself that it cannot serve, else 503
//	GET /readyz               200 when every check passes, else 503; a line for each check
//	GET /metrics              Prometheus and OpenMetrics
//	GET /debug/pprof/         profiles, as of net/http/pprof; block and mutex with ?seconds=N
//	GET /debug/shoal/…        the views of package view, in JSON
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-cache/shoal/api/view"
)

// Check reports whether one part of the agent is able to do its job.
type Check struct {
	// Name is one word: "store".
	Name string
	// Ready returns nil, or the reason why not. It ends when ctx does.
	Ready func(ctx context.Context) error
}

// checkTimeout bounds one check. Kubelet's default patience with a probe is a second.
const checkTimeout = 800 * time.Millisecond

// Options are what the handler shows. The functions are called once for each request, concurrently, and return
// snapshots that nobody changes afterwards. All are required.
type Options struct {
	Checks []Check
	// Alive returns why the agent had better be passed by, nil for no reason.
	Alive    func() error
	Gatherer prometheus.Gatherer
	Node     func() view.Node
	Peers    func() []view.Peer
	Fetches  func() []view.Fetch
	Pulls    func() []view.Pull
	// Blobs lists those of the digests that are here; all, where no digest is named.
	Blobs func(digests []string) []view.Blob
	// Image tells what is here of an image. It fails for a name that is none.
	Image func(name string) (view.Image, error)
	// Registries tells which registries answer.
	Registries func(ctx context.Context) []view.Registry
	Log        *slog.Logger
}

// New returns the handler.
func New(o Options) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if err := o.Alive(); err != nil {
			text(w, http.StatusServiceUnavailable, err.Error()+"\n")
			return
		}
		text(w, http.StatusOK, "ok\n")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ready(r.Context(), w, o.Checks)
	})
	mux.Handle("GET /metrics", Metrics(o.Gatherer, o.Log))

	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	waiting := &waits{}
	mux.Handle("GET /debug/pprof/block", waiting)
	mux.Handle("GET /debug/pprof/mutex", waiting)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)

	mux.Handle("GET "+view.NodePath, show(o.Log, func(*http.Request) (any, error) { return o.Node(), nil }))
	mux.Handle("GET "+view.PeersPath, show(o.Log, func(*http.Request) (any, error) { return list(o.Peers()), nil }))
	mux.Handle("GET "+view.FetchesPath, show(o.Log, func(*http.Request) (any, error) { return list(o.Fetches()), nil }))
	mux.Handle("GET "+view.PullsPath, show(o.Log, func(*http.Request) (any, error) { return list(o.Pulls()), nil }))
	mux.Handle("GET "+view.BlobsPath, show(o.Log, func(r *http.Request) (any, error) {
		return list(o.Blobs(r.URL.Query()["digest"])), nil
	}))
	mux.Handle("GET "+view.RegistriesPath, show(o.Log, func(r *http.Request) (any, error) {
		return list(o.Registries(r.Context())), nil
	}))
	mux.Handle("GET "+view.ImagePath, show(o.Log, func(r *http.Request) (any, error) {
		name := r.URL.Query().Get("name")
		if name == "" {
			return nil, errors.New("name an image: ?name=registry.example/team/app:1.2")
		}
		return o.Image(name)
	}))
	return mux
}

// ready runs the checks side by side, each within checkTimeout, and lists them in their order.
func ready(ctx context.Context, w http.ResponseWriter, checks []Check) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	reasons := make([]error, len(checks))
	var running sync.WaitGroup
	for i, c := range checks {
		running.Go(func() { reasons[i] = c.Ready(ctx) })
	}
	running.Wait()

	status := http.StatusOK
	var b strings.Builder
	for i, c := range checks {
		if reasons[i] == nil {
			fmt.Fprintf(&b, "%s: ready\n", c.Name)
			continue
		}
		status = http.StatusServiceUnavailable
		fmt.Fprintf(&b, "%s: not ready: %v\n", c.Name, reasons[i])
	}
	text(w, status, b.String())
}

func text(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body)) // the client has gone; there is nobody to tell
}

// list makes nil an empty list, so that readers find [] and not null.
func list[T any](all []T) []T {
	if all == nil {
		return []T{}
	}
	return all
}

// show answers with what snapshot gives. Its error is the caller's.
func show(log *slog.Logger, snapshot func(*http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		value, err := snapshot(r)
		if err != nil {
			text(w, http.StatusBadRequest, err.Error()+"\n")
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		if err := e.Encode(value); err != nil {
			log.DebugContext(r.Context(), "admin view was not delivered", "path", r.URL.Path, "cause", err)
		}
	})
}
