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

// owed counts the blocks that peers wait for this node to send, those that it waits for itself among them. Coordinators
// are told the number, since each of them sees but one blob.
type owed struct {
	mu sync.Mutex
	to map[peer.ID]map[cid.Cid]time.Time // since when
	n  int
}

func newOwed() *owed { return &owed{to: map[peer.ID]map[cid.Cid]time.Time{}} }

func (o *owed) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.n
}

func (o *owed) add(p peer.ID, c cid.Cid) {
	o.mu.Lock()
	defer o.mu.Unlock()
	wants := o.to[p]
	if wants == nil {
		wants = map[cid.Cid]time.Time{}
		o.to[p] = wants
	}
	if _, known := wants[c]; known || len(wants) >= maxOwed {
		return
	}
	wants[c] = time.Now()
	o.n++
}

// settle notes that p has got a block, or does not wait for it any more.
func (o *owed) settle(p peer.ID, c cid.Cid) {
	o.mu.Lock()
	defer o.mu.Unlock()
	wants := o.to[p]
	if _, known := wants[c]; !known {
		return
	}
	delete(wants, c)
	o.n--
	if len(wants) == 0 {
		delete(o.to, p)
	}
}

// before lists what peers have waited for since an earlier time than that, and any of it where it is more than most.
func (o *owed) before(then time.Time, most int) (waited []asked) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for p, wants := range o.to {
		for c, since := range wants {
			if len(waited) == most {
				return waited
			}
			if since.Before(then) {
				waited = append(waited, asked{p, c})
			}
		}
	}
	return waited
}

func (o *owed) forget(p peer.ID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.n -= len(o.to[p])
	delete(o.to, p)
}
