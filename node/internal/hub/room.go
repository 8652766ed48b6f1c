package hub

import (
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/store"
)

const (
	// worthKeeping is the size in bytes from which it is said of a file that it is not kept.
	worthKeeping = 1 << 20
	// crowdedFor is for how long it is said of a node that a file had no room there.
	crowdedFor = time.Hour
)

// warn tells of a large file that can't be kept here, whatever is evicted for it. A caller that asks for it later, when
// no node has it any more, gets it from the hub again.
func (f *Front) warn(x *exchange, e *element) {
	if e.LFS == nil || e.Size < worthKeeping {
		return
	}
	held := content.Request{Repository: x.route.repo.source(f.opts.Hub), Digest: e.digest()}
	if f.Proved(held) && f.has(e.digest()) { // who only lists a digest learns of nobody's file
		return
	}
	usage, key := f.opts.Store.Usage(), "store.modelCapacity"
	if usage.Models.Capacity == 0 {
		key = "store.capacity"
	}
	room, _, bounded := usage.Room(store.Models)
	if !bounded || e.Size <= room {
		return
	}
	said := fmt.Sprintf("%+q has %d bytes and the node's cache has room for %d (%s), so it is not kept", e.Path, e.Size,
		room, key)
	x.W.Header().Add("X-Hf-Warning", "shoal-room; "+said)
	if x.R.Method != http.MethodHead {
		f.metrics.noRoom.Inc()
		f.log.Warn("a file has no room in the cache and is not kept", "repository", x.route.repo.name(), "path", e.Path,
			"size", e.Size, "room", room, "key", key)
		f.crowded.say(x.route.repo.name() + ": " + said)
	}
}

// Crowded tells of the file that last had no room here, within the last hour. Empty: there is none.
func (f *Front) Crowded() string { return f.crowded.said(time.Now()) }

// crowd remembers what last had no room.
type crowd struct {
	mu   sync.Mutex
	last string
	at   time.Time
}

func (c *crowd) say(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last, c.at = what, time.Now()
}

func (c *crowd) said(now time.Time) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Sub(c.at) > crowdedFor {
		return ""
	}
	return c.last
}
