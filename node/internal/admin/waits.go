package admin

import (
	"net/http"
	"net/http/pprof"
	"runtime"
	"sync"
	"time"
)

const (
	// waitSample: a wait is recorded with a chance of its length over this.
	waitSample = 100 * time.Microsecond
	// lockSample: one contended lock in so many is recorded.
	lockSample = 10
)

// waits serves the profiles of waiting, block and mutex. The runtime records waits at a cost, so it does only while
// somebody asks for ?seconds=N of them.
type waits struct {
	mu     sync.Mutex
	asking int
}

func (w *waits) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if r.FormValue("seconds") != "" {
		w.ask(1)
		defer w.ask(-1)
	}
	pprof.Index(rw, r)
}

func (w *waits) ask(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asking += n
	if w.asking > 0 {
		runtime.SetBlockProfileRate(int(waitSample))
		runtime.SetMutexProfileFraction(lockSample)
	} else {
		runtime.SetBlockProfileRate(0)
		runtime.SetMutexProfileFraction(0)
	}
}
