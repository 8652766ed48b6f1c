package page

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/netutil"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/operator/internal/survey"
)

// Options are the page's settings.
type Options struct {
	// Address to listen at.
	Address string
	// Live reads the API server itself, and Cached what the operator holds in memory anyway.
	Live, Cached client.Reader
	// Agents reaches agents; nil: the page shows what the API server knows alone.
	Agents survey.Agents
	// Namespace of the agents.
	Namespace string
	Version   string
	Clock     clock.WithTicker
	// Now is the API server's time.
	Now func() time.Time
	Log *slog.Logger
}

// Page is the status page. Every replica of the operator serves it.
type Page struct {
	o       Options
	gather  *gatherer
	history history

	mu    sync.Mutex
	of    *gathered // what drawn is drawn of
	drawn map[string][]byte
}

// maxConnections bounds the readers at one time. A reader beyond that waits.
const maxConnections = 128

// New makes a Page, which serves once it is started.
func New(o Options) *Page {
	return &Page{o: o, gather: &gatherer{
		api: reader{o.Cached, o.Live}, agents: o.Agents, namespace: o.Namespace, clock: o.Clock, now: o.Now,
	}}
}

// NeedLeaderElection reports that each replica serves the page, whoever leads.
func (*Page) NeedLeaderElection() bool { return false }

// Start serves the page until ctx ends.
func (p *Page) Start(ctx context.Context) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", p.o.Address)
	if err != nil {
		return fmt.Errorf("status page: %w", err)
	}
	listener = netutil.LimitListener(listener, maxConnections)
	server := &http.Server{Handler: p, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 2 * gatherTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: 32 << 10,
		ErrorLog: slog.NewLogLogger(p.o.Log.Handler(), slog.LevelDebug)}
	ended := make(chan struct{})
	var why error
	go func() { defer close(ended); why = server.Serve(listener) }()
	p.remember(ctx, ended)
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := server.Shutdown(closing); err != nil {
		_ = server.Close()
	}
	<-ended
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("status page: %w", why)
}

// remember takes down the sums every few minutes, at times that all replicas share, until ctx or the server ends.
func (p *Page) remember(ctx context.Context, ended <-chan struct{}) {
	for {
		p.note(ctx)
		now := p.o.Now()
		select {
		// The time is the API server's, and known to within a second: it may be just before the point that was waited
		// for.
		case <-p.o.Clock.After(now.Round(every).Add(every).Sub(now)):
		case <-ended:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (p *Page) note(ctx context.Context) {
	var caches v1alpha1.NodeCacheList
	if err := p.o.Cached.List(ctx, &caches); err != nil {
		p.o.Log.Debug("status page: its history got no new point", "error", err)
		return
	}
	c := survey.Cluster{Caches: caches.Items}
	p.history.add(p.o.Now(), c.Sums())
}

// policy lets the page load its own files and nothing else.
const policy = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// ServeHTTP answers by the last part of the path alone, so that the page works below any path that a proxy gives it.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "this page can only be read", http.StatusMethodNotAllowed)
		return
	}
	if misled(r) {
		http.Error(w, "through a port-forward this page is at localhost, or at an address, and not at "+r.Host,
			http.StatusMisdirectedRequest)
		return
	}
	dir, file := path.Split(r.URL.Path)
	switch file {
	case "":
		p.answer(w, r, "page", "text/html; charset=utf-8")
	case "main":
		p.answer(w, r, "main", "text/html; charset=utf-8")
	case "state.json":
		p.answer(w, r, file, "application/json")
	case "page.css":
		http.ServeFileFS(w, r, assets, "assets/page.css")
	case "page.js":
		http.ServeFileFS(w, r, assets, "assets/page.js")
	case "icon.svg":
		http.ServeFileFS(w, r, assets, "assets/icon.svg")
	default:
		if strings.Contains(file, ".") {
			http.Error(w, fmt.Sprintf("there is no %s here; the page is at %s", file, dir), http.StatusNotFound)
			return
		}
		// A path that lacks its slash. What is before it is the proxy's business, so the address is relative to it.
		h.Set("Location", "./"+url.PathEscape(file)+"/")
		w.WriteHeader(http.StatusFound)
	}
}

// misled reports whether a name of somebody else's led a browser through the port-forward of its user: a site may have
// its name point at the user's own machine, and would read the page. A port-forward arrives on loopback, and the API
// server's proxy and an Ingress, which have names of their own, do not.
func misled(r *http.Request) bool {
	at, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	host := (&url.URL{Host: r.Host}).Hostname()
	return ok && at.IP.IsLoopback() && host != "localhost" && net.ParseIP(host) == nil
}

// shown is what the templates are given.
type shown struct {
	Picture
	Version string
}

func pointNow(g *gathered) Point {
	s := g.cluster.Sums()
	return Point{At: g.at, Hits: s.Hits, Requests: s.Requests, Saved: s.Saved, Upstream: s.Upstream}
}

func (p *Page) answer(w http.ResponseWriter, r *http.Request, name, mediaType string) {
	g, err := p.gather.get(r.Context())
	var body []byte
	if err == nil {
		body, err = p.draw(g, name)
	}
	if err != nil {
		p.fail(w, err)
		return
	}
	w.Header().Set("Content-Type", mediaType)
	_, _ = w.Write(body) // the reader has gone; there is nobody to tell
}

// draw draws what was gathered, once for all readers.
func (p *Page) draw(g *gathered, name string) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.of != g {
		p.of, p.drawn = g, map[string][]byte{}
	}
	if body, ok := p.drawn[name]; ok {
		return body, nil
	}
	s := shown{picture(g, append(p.history.list(), pointNow(g))), p.o.Version}
	var b bytes.Buffer
	var err error
	if name == "state.json" {
		e := json.NewEncoder(&b)
		e.SetIndent("", "  ")
		err = e.Encode(s.Picture)
	} else {
		err = pages.ExecuteTemplate(&b, name, s)
	}
	if err != nil {
		return nil, err
	}
	p.drawn[name] = b.Bytes()
	return b.Bytes(), nil
}

// fail says that there is nothing to show. What the API server said may name what a reader should not know, so it is
// logged.
func (p *Page) fail(w http.ResponseWriter, err error) {
	p.o.Log.Warn("status page has nothing to show", "error", err)
	http.Error(w, "The operator cannot read the state of the cache from the API server. Pulls do not depend on that. "+
		"The operator's log says more.", http.StatusServiceUnavailable)
}
