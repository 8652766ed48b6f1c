package agent_test

import (
	"io"
	"net"
	"net/url"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"
)

// cable carries the TCP connections of one client to the API server. Cut, it closes them all and refuses new ones, as
// an API server does that has stopped.
type cable struct {
	t            *testing.T
	target, here string

	mu       sync.Mutex
	listener net.Listener
	conns    map[net.Conn]bool
	carriers sync.WaitGroup
}

// plug puts a cable between config and its API server.
func plug(t *testing.T, config *rest.Config) *cable {
	t.Helper()
	u, err := url.Parse(config.Host)
	require.NoError(t, err)
	c := &cable{t: t, target: u.Host, here: "127.0.0.1:0"}
	c.mend()
	u.Host = c.here
	config.Host = u.String()
	t.Cleanup(c.cut)
	return c
}

func (c *cable) mend() {
	c.t.Helper()
	l, err := net.Listen("tcp", c.here)
	require.NoError(c.t, err)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.listener, c.here, c.conns = l, l.Addr().String(), map[net.Conn]bool{}
	c.carriers.Go(func() { c.accept(l) })
}

func (c *cable) cut() {
	c.mu.Lock()
	_ = c.listener.Close()
	for conn := range c.conns {
		_ = conn.Close()
	}
	c.conns = nil
	c.mu.Unlock()
	c.carriers.Wait()
}

func (c *cable) accept(l net.Listener) {
	for {
		near, err := l.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", c.target)
		if err != nil {
			_ = near.Close()
			continue
		}
		if c.keep(near, far) {
			c.carriers.Go(func() { carry(near, far) })
			c.carriers.Go(func() { carry(far, near) })
		}
	}
}

// keep notes the connections for cut. It closes them and tells false where that has come first.
func (c *cable) keep(conns ...net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range conns {
		if c.conns == nil {
			_ = conn.Close()
			continue
		}
		c.conns[conn] = true
	}
	return c.conns != nil
}

func carry(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	_ = to.Close()
	_ = from.Close()
}
