package lru

import (
	"container/list"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/net/publicsuffix"
)

// Owner is on whose account an entry is: from the widest to the narrowest, such as a domain and a host in it. What is
// not known is empty.
type Owner struct{ Wide, Narrow string }

// OwnerOf is on whose account something of a host is, with its port if it names one: the host's domain, and the host.
func OwnerOf(host string) Owner {
	name := host
	if without, _, err := net.SplitHostPort(host); err == nil {
		name = without
	}
	domain, err := publicsuffix.EffectiveTLDPlusOne(name)
	if _, notIP := netip.ParseAddr(name); err != nil || notIP == nil {
		domain = name
	}
	return Owner{Wide: domain, Narrow: host}
}

// Fair is a map of bounded size whose keys others make up, and in which nobody pushes out more than his own entries.
// Where it is full, the wide owner with the most entries loses one: of the narrow owner with the most of these, the one
// that was used last the longest ago. Of owners with as many it is who used one last the longest ago. It is safe for
// concurrent use.
type Fair[K comparable, V any] struct {
	size int

	mu      sync.Mutex
	entries map[K]*list.Element
	owned   map[Owner]*list.List // used last first
	wide    *tally
	narrow  map[string]*tally // by wide owner
}

type entry[K comparable, V any] struct {
	key   K
	value V
	owner Owner
}

// NewFair returns a map of size entries. The size must be positive.
func NewFair[K comparable, V any](size int) *Fair[K, V] {
	return &Fair[K, V]{
		size: size, entries: map[K]*list.Element{}, owned: map[Owner]*list.List{}, wide: newTally(),
		narrow: map[string]*tally{},
	}
}

// Get returns the value of a key, as used now by its owner.
func (f *Fair[K, V]) Get(owner Owner, key K) (value V, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, ok := f.entries[key]
	if !ok {
		return value, false
	}
	e := f.take(at)
	e.owner = owner // that of an earlier run was not known
	f.put(e)
	return e.value, true
}

// GetOrAdd returns the value of a key, as used now by its owner. Where there is none it adds fresh.
func (f *Fair[K, V]) GetOrAdd(owner Owner, key K, fresh V) V {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := &entry[K, V]{key, fresh, owner}
	if at, ok := f.entries[key]; ok {
		e.value = f.take(at).value
	}
	f.add(e)
	return e.value
}

// Contains reports whether there is a key. That is no use of it.
func (f *Fair[K, V]) Contains(key K) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.entries[key]
	return ok
}

// Add sets the value of a key.
func (f *Fair[K, V]) Add(owner Owner, key K, value V) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if at, ok := f.entries[key]; ok {
		f.take(at)
	}
	f.add(&entry[K, V]{key, value, owner})
}

func (f *Fair[K, V]) add(e *entry[K, V]) {
	f.put(e)
	if len(f.entries) > f.size {
		f.take(f.victim())
	}
}

// Remove takes a key away. It reports whether it was there.
func (f *Fair[K, V]) Remove(key K) (was bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, was := f.entries[key]
	if was {
		f.take(at)
	}
	return was
}

// All is a copy of what there is.
func (f *Fair[K, V]) All() map[K]V {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make(map[K]V, len(f.entries))
	for key, at := range f.entries {
		all[key] = at.Value.(*entry[K, V]).value
	}
	return all
}

func (f *Fair[K, V]) put(e *entry[K, V]) {
	own := f.owned[e.owner]
	if own == nil {
		own = list.New()
		f.owned[e.owner] = own
	}
	f.entries[e.key] = own.PushFront(e)
	if f.narrow[e.owner.Wide] == nil {
		f.narrow[e.owner.Wide] = newTally()
	}
	f.wide.count(e.owner.Wide, 1)
	f.narrow[e.owner.Wide].count(e.owner.Narrow, 1)
}

func (f *Fair[K, V]) take(at *list.Element) *entry[K, V] {
	e := at.Value.(*entry[K, V])
	delete(f.entries, e.key)
	own := f.owned[e.owner]
	if own.Remove(at); own.Len() == 0 {
		delete(f.owned, e.owner)
	}
	f.wide.count(e.owner.Wide, -1)
	f.narrow[e.owner.Wide].count(e.owner.Narrow, -1)
	if f.wide.of[e.owner.Wide] == 0 {
		delete(f.narrow, e.owner.Wide)
	}
	return e
}

func (f *Fair[K, V]) victim() *list.Element {
	wide := f.wide.largest()
	return f.owned[Owner{wide, f.narrow[wide].largest()}].Back()
}

// tally counts what owners have, and knows at any time who has the most.
type tally struct {
	of   map[string]int
	with map[int]*list.List // the owners of so many, who was counted last first
	at   map[string]*list.Element
	most int
}

func newTally() *tally {
	return &tally{of: map[string]int{}, with: map[int]*list.List{}, at: map[string]*list.Element{}}
}

// count adds one, or takes one away.
func (t *tally) count(who string, by int) {
	was := t.of[who]
	now := was + by
	if was > 0 {
		if t.with[was].Remove(t.at[who]); t.with[was].Len() == 0 {
			delete(t.with, was)
		}
	}
	if now == 0 {
		delete(t.of, who)
		delete(t.at, who)
	} else {
		if t.with[now] == nil {
			t.with[now] = list.New()
		}
		t.of[who], t.at[who] = now, t.with[now].PushFront(who)
	}
	if now > t.most || t.with[t.most] == nil {
		t.most = now
	}
}

// largest is who has the most.
func (t *tally) largest() string {
	if all := t.with[t.most]; all != nil {
		return all.Back().Value.(string)
	}
	return ""
}
