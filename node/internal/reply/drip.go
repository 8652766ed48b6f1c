package reply

import (
	"io"
	"net/http"
	"sync"
	"time"
)

const (
	// spareSize is how many bytes a drip keeps back, and dripEvery how long it waits for others before it gives one of
	// them. Most clients take an answer for dead when no byte of it comes for 10 s. So they wait for two minutes.
	spareSize = 32
	dripEvery = 4 * time.Second
)

// Drip keeps an answer alive whose bytes stay away for a while: it keeps the last few bytes back that it was given, and
// gives one of them whenever nothing else was written for some seconds. What is written lies in files as a rule, and
// goes on by the connection's ReadFrom, so that file pages move without copying.
type Drip struct {
	mu sync.Mutex // is held for each use of outlet
	outlet
	spare []byte
	timer *time.Timer
	ended bool
}

// outlet is where the bytes go, until that fails.
type outlet struct {
	http.ResponseWriter
	moved time.Time // when the last went
	err   error
}

// NewDrip begins to keep back what is written to w. The header must have been written. The caller calls End or Stop.
func NewDrip(w http.ResponseWriter) *Drip {
	d := &Drip{outlet: outlet{ResponseWriter: w, moved: time.Now()}, spare: make([]byte, 0, spareSize)}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.timer = time.AfterFunc(dripEvery, d.drip)
	return d
}

// drip gives a byte where nothing else was written for dripEvery.
func (d *Drip) drip() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended || d.err != nil {
		return
	}
	wait := dripEvery - time.Since(d.moved)
	if wait <= 0 {
		wait = dripEvery
		if len(d.spare) > 0 {
			if d.put(d.spare[:1]); d.err == nil {
				d.err = http.NewResponseController(d.ResponseWriter).Flush()
			}
			d.spare = d.spare[:copy(d.spare, d.spare[1:])]
		}
	}
	d.timer.Reset(wait)
}

func (w *outlet) put(p []byte) {
	if w.err == nil && len(p) > 0 {
		_, w.err = w.ResponseWriter.Write(p)
		w.moved = time.Now()
	}
}

// Write takes p, and gives all on but the last bytes.
func (d *Drip) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(p) >= spareSize {
		d.put(d.spare)
		d.put(p[:len(p)-spareSize])
		d.spare = append(d.spare[:0], p[len(p)-spareSize:]...)
	} else {
		more := max(0, len(d.spare)+len(p)-spareSize)
		d.put(d.spare[:more])
		d.spare = append(d.spare[:copy(d.spare, d.spare[more:])], p...)
	}
	if d.err != nil {
		return 0, d.err
	}
	return len(p), nil
}

// ReadFrom takes what r gives.
func (d *Drip) ReadFrom(r io.Reader) (int64, error) {
	l, ok := r.(*io.LimitedReader)
	if !ok || l.N <= spareSize {
		return io.Copy(onlyWriter{d}, r)
	}
	sent, err := d.send(l)
	if err != nil {
		return sent, err
	}
	rest, err := io.Copy(onlyWriter{d}, l)
	return sent + rest, err
}

// send gives on all of l but its end.
func (d *Drip) send(l *io.LimitedReader) (n int64, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.put(d.spare)
	d.spare = d.spare[:0]
	if d.err != nil {
		return 0, d.err
	}
	body := &io.LimitedReader{R: l.R, N: l.N - spareSize}
	n, err = io.Copy(d.ResponseWriter, body) // which may be one of reading, and a connection that is gone shows again
	l.N -= n
	d.moved = time.Now()
	return n, err
}

type onlyWriter struct{ io.Writer }

// FlushError sends what was given on; see http.ResponseController.
func (d *Drip) FlushError() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return http.NewResponseController(d.ResponseWriter).Flush()
}

// End gives on what was kept back. It is called when all of the answer was written.
func (d *Drip) End() error {
	d.Stop()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.put(d.spare)
	d.spare = nil
	return d.err
}

// Stop gives nothing on any more.
func (d *Drip) Stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ended = true
	d.timer.Stop()
}
