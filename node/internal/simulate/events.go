package simulate

import "time"

// events is the future: what happens when, earliest first, and first scheduled first where two happen at once.
type events struct {
	heap []event
	seq  uint64
	now  time.Duration // virtual time since the start
}

type event struct {
	at  time.Duration
	seq uint64
	do  func()
}

func (e event) before(o event) bool { return e.at < o.at || e.at == o.at && e.seq < o.seq }

// at has do happen at a virtual time, which must not be in the past.
func (es *events) at(at time.Duration, do func()) {
	es.seq++
	es.heap = append(es.heap, event{at: at, seq: es.seq, do: do})
	h := es.heap
	for i := len(h) - 1; i > 0; {
		up := (i - 1) / 2
		if !h[i].before(h[up]) {
			return
		}
		h[i], h[up] = h[up], h[i]
		i = up
	}
}

// after has do happen when d has passed.
func (es *events) after(d time.Duration, do func()) { es.at(es.now+d, do) }

// step lets the next event happen. It reports whether there was one.
func (es *events) step() bool {
	h := es.heap
	if len(h) == 0 {
		return false
	}
	next := h[0]
	last := len(h) - 1
	h[0], h[last] = h[last], event{}
	h = h[:last]
	es.heap = h
	for i := 0; ; {
		least := i
		for k := 2*i + 1; k <= 2*i+2 && k < last; k++ {
			if h[k].before(h[least]) {
				least = k
			}
		}
		if least == i {
			break
		}
		h[i], h[least] = h[least], h[i]
		i = least
	}
	es.now = next.at
	next.do()
	return true
}
