package upstream

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/shoal-cache/shoal/api/registries"
	"github.com/shoal-cache/shoal/node/internal/content"
)

// idleFor is for how long nobody has to read an answer until it is given up, where others wait for its connection: its
// reader may be a client that takes nothing. It is longer than a document waits for memory. Who reads a blob so goes on
// by another answer when he reads again.
const idleFor = 10 * time.Second

var errIdle = errors.New("nobody read it, and others waited for its connection")

// Connections bounds how many requests are under way at each registry at one time, from when one is sent until its
// answer has been read or is given up. Each registry has connections of its own, so that one that hangs keeps nobody
// from another. Whoever finds none waits, first come first. nil bounds nothing.
type Connections struct {
	mu   sync.Mutex
	most int               // 0: there is no bound
	at   map[string]*queue // by registry, where somebody has one or waits
}

type queue struct {
	taken   int
	waiting list.List // of *connection
}

// connection is what one request has, or waits for. nil is one that nobody counts.
type connection struct {
	of       *Connections
	registry string
	waits    *list.Element
	given    chan struct{} // is closed when it is
	left     bool          // guarded by of.mu
}

// NewConnections bounds them by most. 0: there is no bound.
func NewConnections(most int) *Connections { return &Connections{most: most, at: map[string]*queue{}} }

// SetMost changes the bound, for who waits as well. What is under way goes on.
func (c *Connections) SetMost(most int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.most == most {
		return
	}
	c.most = most
	for registry := range c.at {
		c.give(registry)
	}
}

// give gives those who wait what there is. The caller holds c.mu.
func (c *Connections) give(registry string) {
	q := c.at[registry]
	for q.waiting.Len() > 0 && (q.taken < c.most || c.most == 0) {
		q.taken++
		close(q.waiting.Remove(q.waiting.Front()).(*connection).given)
	}
	if q.taken == 0 && q.waiting.Len() == 0 {
		delete(c.at, registry) // callers choose the names
	}
}

// join takes a connection to a registry, or waits for one behind the others.
func (c *Connections) join(registry string) *connection {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at[registry] == nil {
		c.at[registry] = new(queue)
	}
	mine := &connection{of: c, registry: registry, given: make(chan struct{})}
	mine.waits = c.at[registry].waiting.PushBack(mine)
	c.give(registry)
	return mine
}

// leave gives it back, or waits for it no more.
func (n *connection) leave() {
	if n == nil {
		return
	}
	n.of.mu.Lock()
	defer n.of.mu.Unlock()
	if n.left {
		return
	}
	n.left = true
	q := n.of.at[n.registry]
	select {
	case <-n.given:
		q.taken--
	default:
		q.waiting.Remove(n.waits)
	}
	n.of.give(n.registry)
}

// held reports whether it has not been given back, and whether others wait for one.
func (n *connection) held() (held, wanted bool) {
	n.of.mu.Lock()
	defer n.of.mu.Unlock()
	return !n.left, !n.left && n.of.at[n.registry].waiting.Len() > 0
}

// connect waits until one more request for repo may be under way at its registry.
func (c *Client) connect(ctx context.Context, repo content.Repository) (*connection, error) {
	bound := c.limits(repo).Connections
	if bound == nil {
		return nil, nil //nolint:nilnil // see connection
	}
	defer content.Apart(ctx)()
	mine := bound.join(registries.Canonical(repo.Registry))
	select {
	case <-mine.given:
		return mine, nil
	case <-ctx.Done():
		mine.leave()
		return nil, fmt.Errorf("%w: it has as many requests under way as may be: %w", content.ErrRateLimit,
			context.Cause(ctx))
	}
}

// another is connect for who waits for nothing: ok is false where there is no connection to be had now.
func (c *Client) another(repo content.Repository) (_ *connection, ok bool) {
	bound := c.limits(repo).Connections
	if bound == nil {
		return nil, true
	}
	mine := bound.join(registries.Canonical(repo.Registry))
	select {
	case <-mine.given:
		return mine, true
	default:
		mine.leave()
		return nil, false
	}
}

func (c *Client) limits(repo content.Repository) Limits {
	if c.opts.Limits == nil {
		return Limits{}
	}
	return c.opts.Limits(repo)
}
