package swarm

import (
	"sync"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
)

// maxOwed bounds how much that one peer waits for is counted, more than an agent asks of another at one time.
const maxOwed = 256

// owed counts the blocks that peers wait for this node to send, those that it waits for itself among them. Coordinators
// are told the number, since each of them sees but one blob.
type owed struct {
	mu sync.Mutex
	to map[peer.ID]map[cid.Cid]struct{}
	n  int
}

func newOwed() *owed { return &owed{to: map[peer.ID]map[cid.Cid]struct{}{}} }

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
		wants = map[cid.Cid]struct{}{}
		o.to[p] = wants
	}
	if _, known := wants[c]; known || len(wants) >= maxOwed {
		return
	}
	wants[c] = struct{}{}
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

func (o *owed) forget(p peer.ID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.n -= len(o.to[p])
	delete(o.to, p)
}
