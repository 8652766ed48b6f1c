package swarm

import (
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
)

// maxOwed bounds how much that one peer waits for is counted: 256 MiB in the smallest pieces, more than an agent asks
// of another at one time.
const maxOwed = 1024

// owed counts the bytes of the blocks that peers wait for this node to send, those that it waits for itself among them.
// Coordinators are told how much that is, since each of them sees but one blob.
type owed struct {
	mu    sync.Mutex
	to    map[peer.ID]map[cid.Cid]debt
	bytes int64
}

// debt is a block that a peer waits for.
type debt struct {
	since time.Time
	size  int64 // bytes
}

func newOwed() *owed { return &owed{to: map[peer.ID]map[cid.Cid]debt{}} }

// in is how much it is in chunks of so many bytes.
func (o *owed) in(chunk int64) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return int((o.bytes + chunk - 1) / chunk)
}

func (o *owed) add(p peer.ID, c cid.Cid, size int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	wants := o.to[p]
	if wants == nil {
		wants = map[cid.Cid]debt{}
		o.to[p] = wants
	}
	if _, known := wants[c]; known || len(wants) >= maxOwed {
		return
	}
	wants[c] = debt{time.Now(), size}
	o.bytes += size
}

// settle notes that p has got a block, or does not wait for it any more.
func (o *owed) settle(p peer.ID, c cid.Cid) {
	o.mu.Lock()
	defer o.mu.Unlock()
	wants := o.to[p]
	d, known := wants[c]
	if !known {
		return
	}
	delete(wants, c)
	o.bytes -= d.size
	if len(wants) == 0 {
		delete(o.to, p)
	}
}

// before lists what peers have waited for since an earlier time than that, and any of it where it is more than most.
func (o *owed) before(then time.Time, most int) (waited []asked) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for p, wants := range o.to {
		for c, d := range wants {
			if len(waited) == most {
				return waited
			}
			if d.since.Before(then) {
				waited = append(waited, asked{p, c})
			}
		}
	}
	return waited
}

func (o *owed) forget(p peer.ID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, d := range o.to[p] {
		o.bytes -= d.size
	}
	delete(o.to, p)
}
