package guard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/shoal-cache/shoal/node/internal/mirror"
)

// Options say what to guard.
type Options struct {
	// Mirror is the mirror to keep installed. Its endpoint is the agent's registry front.
	Mirror mirror.Options
	// Health is the URL of the agent's liveness, such as http://127.0.0.1:5051/healthz. An answer of 503 says that the
	// agent cannot serve. Empty: only the front is looked at.
	Health string
	// Every is the time between the beginnings of two looks. Default: 1 s.
	Every time.Duration
	// Patience is how long an agent may be silent before it is ended, and how long one look may take. Default: 5 s.
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
	reason string // of the last answer that was none, or a bad one
	node   node
	// files is held by whoever works on the mirror's files, killing by whoever ends the agent. Both is done beside the
	// looks: a disk that hangs holds it up, and the agent, which then hangs as well, has to be ended all the same.
	files, killing chan struct{}
	installed      time.Time // when the mirror was last found or put in place; zero when it is not installed
	removed        bool      // the mirror is known to be away; a guard before this one may have left it
	problem        string    // why it could not be put in place

	looking sync.Mutex  // guards agent and sought
	agent   held        // what the agent's process listens by; zero while it was not seen to
	sought  time.Time   // when it was looked for
	doubt   atomic.Bool // it is looked for, for the first time or since it was seen last
}

// node is what the guard looks at and works on.
type node interface {
	// ask looks at the agent.
	ask(ctx context.Context) (a Answer, reason string)
	install()
	remove(reason string)
	end(reason string)
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
	g.watch(ctx)
	return g.leave()
}

func newGuard(o Options) (*guard, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	u, err := url.Parse(o.Mirror.Endpoint)
	if err != nil {
		return nil, err
	}
	port := cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("endpoint %q: %w", o.Mirror.Endpoint, err)
	}
	for _, d := range []struct {
		at       *time.Duration
		standard time.Duration
	}{{&o.Every, time.Second}, {&o.Patience, 5 * time.Second}, {&o.Recheck, 30 * time.Second}} {
		if *d.at <= 0 {
			*d.at = d.standard
		}
	}
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	g := &guard{
		Options: o, port: number, files: make(chan struct{}, 1), killing: make(chan struct{}, 1),
		state: State{Patience: o.Patience, Every: o.Every},
		// Each look is a connection of its own, for an old one says nothing about who accepts new ones.
		client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true, Proxy: nil}},
	}
	g.node = g
	return g, nil
}

// check refuses what Install would refuse with every look, and times and addresses that make no sense.
func (o Options) check() error {
	if err := o.Mirror.Installable(); err != nil {
		return err
	}
	if o.Patience < 0 {
		return fmt.Errorf("patience %s: want how long an agent may be silent, such as 5s", o.Patience)
	}
	if u, err := url.Parse(o.Health); o.Health != "" &&
		(err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https") {
		return fmt.Errorf("health %q: want the URL of the agent's liveness, such as http://127.0.0.1:5051/healthz, "+
			"or nothing", o.Health)
	}
	return nil
}

// heard is the answer to a look.
type heard struct {
	began  time.Time
	answer Answer
	reason string
}

// watch begins a look with each tick, and does what follows from the answers and from their absence.
func (g *guard) watch(ctx context.Context) {
	tick := time.NewTicker(g.Every)
	defer tick.Stop()
	answers := make(chan heard)
	var looks sync.WaitGroup
	defer looks.Wait()
	for {
		g.act(g.state.Tick(time.Now()))
		looks.Go(func() { g.look(ctx, answers) })
		for ticked := false; !ticked; {
			select {
			case h := <-answers:
				g.reason = h.reason
				g.act(g.state.Heard(h.began, h.answer))
			case <-tick.C:
				ticked = true
			case <-ctx.Done():
				return
			}
		}
	}
}

// look looks at the agent once, for as long as the agent may be silent.
func (g *guard) look(ctx context.Context, answers chan<- heard) {
	began := time.Now()
	within, cancel := context.WithTimeout(ctx, g.Patience)
	defer cancel()
	answer, reason := g.node.ask(within)
	select {
	case answers <- heard{began, answer, reason}:
	case <-ctx.Done():
	}
}

func (g *guard) act(a Action) {
	reason := cmp.Or(g.reason, "no answer yet")
	switch a {
	case Install:
		beside(g.files, g.node.install)
	case End:
		beside(g.killing, func() { g.node.end(reason) })
	case Remove:
		beside(g.files, func() { g.node.remove(reason) })
	case Nothing:
	}
}

// beside does something beside the looks, unless the last such work is still under way: the next look asks for it
// again.
func beside(work chan struct{}, do func()) {
	select {
	case work <- struct{}{}:
		go func() {
			do()
			<-work
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
	}
	if a := g.holder(); a != Well {
		return a, fmt.Sprintf("port %d is not held by the agent's process, as far as is known", g.port)
	}
	if g.Health == "" {
		return Well, ""
	}
	status, err := g.get(ctx, g.Health)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return Well, "" // its health is served elsewhere; the front answers
	case err != nil:
		return Silent, err.Error()
	case status == http.StatusServiceUnavailable:
		return Sick, "the agent says that it cannot serve: " + g.Health
	}
	return Well, ""
}

// holder is Stranger where another program than the agent listens at its port, and Well where it is the agent or the
// guard cannot tell. To find out takes long among many processes. Meanwhile it is Somebody where there is doubt: nobody
// is ended who answers.
func (g *guard) holder() Answer {
	if !g.looking.TryLock() {
		if g.doubt.Load() {
			return Somebody
		}
		return Well
	}
	defer g.looking.Unlock()
	seen := g.agent != held{}
	if seen && g.agent.still() || !seen && time.Since(g.sought) < g.Recheck {
		return Well
	}
	g.doubt.Store(seen || g.sought.IsZero())
	defer g.doubt.Store(false)
	g.sought = time.Now()
	now, listens, err := agentAt(g.port)
	switch {
	case err != nil:
		g.Logger.Warn("who listens at the agent's port is not known", "error", err)
	case now != held{}:
		g.agent = now
	case listens && seen: // else it has ended since it answered
		return Stranger
	}
	return Well
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

func (g *guard) end(reason string) {
	killed, err := end(g.port)
	if killed == 0 {
		g.Logger.Warn("agent does not answer, and its process cannot be ended", "endpoint", g.Mirror.Endpoint,
			"silence", g.Patience, "reason", reason, "error", err)
		return
	}
	g.Logger.Warn("agent does not answer; its process was ended, so that pulls go on without it",
		"endpoint", g.Mirror.Endpoint, "silence", g.Patience, "reason", reason, "processes", killed, "error", err)
}

func (g *guard) install() {
	now := time.Now()
	if !g.installed.IsZero() && now.Sub(g.installed) < g.Recheck {
		return
	}
	g.removed = false
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
	if g.removed {
		return
	}
	result, err := mirror.Remove(g.Mirror)
	if err != nil {
		g.Logger.Error("mirror of an agent that does not answer was not removed", "error", err, "findings",
			result.Findings)
		return
	}
	g.installed, g.removed = time.Time{}, true
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
		g.Logger.Info("guard ends, and the runtime goes to the registry itself", "restored", result.Changed, "findings",
			result.Findings, "error", err)
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
