package store

import "sync"

// events delivers the store's events one after the other, in the order in which they happened, without a goroutine of
// its own and without a lock held, but that of trims, while the listener runs.
type events struct {
	listener func(Event)

	mu      sync.Mutex // a leaf: taken while Store.mu is held
	queue   []Event
	running bool
}

// push queues an event. It is called under the lock that makes the change, which gives the order.
func (q *events) push(ev Event) {
	if q.listener == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.queue = append(q.queue, ev)
}

// deliver calls the listener with what is queued, unless another goroutine is at it, which then sees to these too.
func (q *events) deliver() {
	for {
		ev, ok := q.pop()
		if !ok {
			return
		}
		q.listener(ev)
		q.mu.Lock()
		q.running = false
		q.mu.Unlock()
	}
}

func (q *events) pop() (ev Event, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.running || len(q.queue) == 0 {
		return Event{}, false
	}
	ev, q.queue = q.queue[0], q.queue[1:]
	q.running = true
	return ev, true
}
