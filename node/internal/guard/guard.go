package guard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/shoal-cache/shoal/node/internal/mirror"
)

// Options say what to guard.
type Options struct {
	// Mirror is the mirror to keep installed. Its endpoint is the agent's registry front.
	Mirror mirror.Options
	// Health is the URL of the agent's liveness, such as http://127.0.0.1:5051/healthz. An answer of 503 counts as
	// silence. Empty: only the front is looked at.
	Health string
	// Every is the time between two looks, and the time that an answer may take is twice that. Default: 1 s.
	Every time.Duration
	// Patience is how long an agent may be silent before it is ended. Default: 5 s.
	Patience time.Duration
	// Recheck is how often a mirror that is installed is compared with what it should be. Default: 30 s.
	Recheck time.Duration
	Logger  *slog.Logger
}

// guard is one run of the guard.
type guard struct {
	Options
	client *http.Client
	port   uint64
	state  State
	// files is held by whoever works on the mirror's files, which is done beside the looks: a disk that hangs holds it
	// up, and the agent, which then hangs as well, has to be ended all the same.
	files     chan struct{}
	installed time.Time // when the mirror was last found or put in place; zero when it is not installed
	problem   string    // why it could not be put in place
}

// leaveWithin is how long the guard tries to remove the mirror when it is told to end.
const leaveWithin = 10 * time.Second

// Run guards the agent until ctx ends, and then removes the mirror. An error of a single look or action is logged, and
// the guard goes on.
func Run(ctx context.Context, o Options) error {
	g, err := newGuard(o)
	if err != nil {
		return fmt.Errorf("guard: %w", err)
	}
	g.Logger.Info("guard started", "endpoint", g.Mirror.Endpoint, "runtime", string(g.Mirror.Runtime))
	tick := time.NewTicker(g.Every)
	defer tick.Stop()
	for {
		g.look(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return g.leave()
		}
	}
}

func newGuard(o Options) (*guard, error) {
	u, err := url.Parse(o.Mirror.Endpoint)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("endpoint %q: want the URL of the registry front, such as http://127.0.0.1:5050",
			o.Mirror.Endpoint)
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("endpoint %q: port %q is not a number", o.Mirror.Endpoint, port)
	}
	for _, d := range []struct {
		at       *time.Duration
		standard time.Duration
	}{{&o.Every, time.Second}, {&o.Patience, 5 * time.Second}, {&o.Recheck, 30 * time.Second}} {
		if *d.at <= 0 {
			*d.at = d.standard
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &guard{
		Options: o, port: number, files: make(chan struct{}, 1),
		state: State{Patience: o.Patience, Grace: 2 * o.Every},
		// Each look is a connection of its own, for an old one says nothing about who accepts new ones.
		client: &http.Client{Timeout: 2 * o.Every, Transport: &http.Transport{DisableKeepAlives: true, Proxy: nil}},
	}, nil
}

// look looks at the agent once and does what follows.
func (g *guard) look(ctx context.Context) {
	began := time.Now()
	answer, reason := g.ask(ctx)
	if ctx.Err() != nil {
		return
	}
	switch g.state.Next(began, answer) {
	case Install:
		g.work(func() { g.install(began) })
	case End:
		killed, err := end(g.port)
		g.Logger.Warn("agent does not answer; its process was ended, so that pulls go on without it",
			"endpoint", g.Mirror.Endpoint, "silence", g.Patience, "reason", reason, "processes", killed, "error", err)
	case Remove:
		g.work(func() { g.remove(reason) })
	case Nothing:
	}
}

// work does something to the mirror's files, unless the last such work is still under way: the next look asks for it
// again.
func (g *guard) work(do func()) {
	select {
	case g.files <- struct{}{}:
		go func() {
			do()
			<-g.files
		}()
	default:
	}
}

// ask looks at the agent: first at the front, then at what the agent says of itself.
func (g *guard) ask(ctx context.Context) (answer Answer, reason string) {
	_, err := g.get(ctx, strings.TrimSuffix(g.Mirror.Endpoint, "/")+"/v2/")
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return Away, ""
	case err != nil:
		return Silent, err.Error()
	case g.Health == "":
		return Well, ""
	}
	status, err := g.get(ctx, g.Health)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return Well, "" // its health is served elsewhere; the front answers
	case err != nil:
		return Silent, err.Error()
	case status == http.StatusServiceUnavailable:
		return Silent, "the agent says that it cannot serve: " + g.Health
	}
	return Well, ""
}

// get asks for one URL and returns the status of the answer. A connection that is reset counts as an answer of nobody:
// what refuses in that way does not hold a runtime up.
func (g *guard) get(ctx context.Context, at string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return 0, err
	}
	resp, err := g.client.Do(req)
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF) {
		err = errors.Join(err, syscall.ECONNREFUSED)
	}
	if err != nil {
		return 0, err
	}
	_ = resp.Body.Close() // whoever sent the status has answered
	return resp.StatusCode, nil
}

func (g *guard) install(now time.Time) {
	if !g.installed.IsZero() && now.Sub(g.installed) < g.Recheck {
		return
	}
	result, err := mirror.Install(g.Mirror)
	if err != nil {
		if g.problem != err.Error() { // it is tried again with every look
			g.Logger.Error("mirror was not installed; the runtime pulls from the registry", "error", err)
		}
		g.problem = err.Error()
		return
	}
	g.problem = ""
	if g.installed.IsZero() || len(result.Changed) > 0 {
		g.Logger.Info("mirror is installed", "changed", result.Changed)
		for _, f := range result.Findings {
			g.Logger.Warn("mirror needs a look", "finding", f.String())
		}
	}
	g.installed = now
}

func (g *guard) remove(reason string) {
	if g.installed.IsZero() {
		return
	}
	result, err := mirror.Remove(g.Mirror)
	if err != nil {
		g.Logger.Error("mirror of an agent that does not answer was not removed", "error", err)
		return
	}
	g.installed = time.Time{}
	g.Logger.Warn("mirror is removed until the agent answers again", "restored", result.Changed, "reason", reason)
}

// leave removes the mirror, whoever installed it.
func (g *guard) leave() error {
	late := time.NewTimer(leaveWithin)
	defer late.Stop()
	left := make(chan error, 1)
	go func() {
		g.files <- struct{}{}
		result, err := mirror.Remove(g.Mirror)
		g.Logger.Info("guard ends, and the runtime goes to the registry itself", "restored", result.Changed, "error",
			err)
		left <- err
	}()
	select {
	case err := <-left:
		return err
	case <-late.C:
		return fmt.Errorf("the mirror is not removed: a disk has not answered for %s; "+
			"run shoal-node mirror remove when it does", leaveWithin)
	}
}
