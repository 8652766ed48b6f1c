package room

import (
	"context"
	"sync"
)

type callerKey struct{}

// asker is in whose name places are held.
type asker struct {
	mu     sync.Mutex
	name   string // "": nobody's
	leases map[*lease]struct{}
}

// For is ctx for what is done for a caller of that name, and behind his request. Without a name it is for anybody.
func For(ctx context.Context, caller string) context.Context {
	return context.WithValue(ctx, callerKey{}, &asker{name: caller, leases: map[*lease]struct{}{}})
}

func askerOf(ctx context.Context) *asker {
	a, _ := ctx.Value(callerKey{}).(*asker)
	return a
}

// Caller is the name of the caller for whom ctx is, "" for anybody.
func Caller(ctx context.Context) string {
	a := askerOf(ctx)
	if a == nil {
		return ""
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.name
}

// Join has what is done for the caller of ctx be done for another too. What is held for both is in nobody's name: the
// first alone would pay for it, and where he may hold no more the other would wait.
func Join(ctx context.Context, caller string) {
	askerOf(ctx).join(caller)
}

func (a *asker) join(caller string) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.name == caller {
		return
	}
	a.name = ""
	for l := range a.leases {
		l.disown()
	}
}

func (a *asker) add(l *lease) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	l.inSmall.caller, l.inLarge.caller = a.name, a.name
	a.leases[l] = struct{}{}
}

func (a *asker) remove(l *lease) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.leases, l)
}

// Flights puts each question once for all who ask the same at one time. It goes on when a caller leaves. Its zero value
// is ready.
type Flights struct {
	mu      sync.Mutex
	running map[string]*flight
}

// Answer is what came of a question.
type Answer struct {
	Val any
	Err error
}

type flight struct {
	of *asker
	to []chan<- Answer
}

// Do calls ask for all who ask key meanwhile. What it holds needs a lease of its own; see Join.
func (f *Flights) Do(ctx context.Context, key string,
	ask func(context.Context) (any, error)) <-chan Answer {
	answer := make(chan Answer, 1)
	f.mu.Lock()
	defer f.mu.Unlock()
	if running := f.running[key]; running != nil {
		running.to = append(running.to, answer)
		running.of.join(Caller(ctx))
		return answer
	}
	if f.running == nil {
		f.running = map[string]*flight{}
	}
	own := For(context.WithoutCancel(ctx), Caller(ctx))
	begun := &flight{askerOf(own), []chan<- Answer{answer}}
	f.running[key] = begun
	go func() {
		val, err := ask(own)
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.running, key)
		for _, to := range begun.to {
			to <- Answer{val, err}
		}
	}()
	return answer
}
