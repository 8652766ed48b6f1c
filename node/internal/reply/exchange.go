package reply

import (
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/shoal-cache/shoal/node/internal/trace"
)

// StatusClientGone is what logs and metrics say of a caller that left before an answer. Nobody receives it.
const StatusClientGone = 499

// Exchange is one request and what is known of its answer.
type Exchange struct {
	W     http.ResponseWriter
	R     *http.Request
	Start time.Time

	Status    int // 0 until the header is written
	FirstByte time.Duration
	Err       error // that ended the answer
}

// New begins an exchange.
func New(w http.ResponseWriter, r *http.Request) Exchange {
	return Exchange{W: w, R: r, Start: time.Now()}
}

// WriteHeader sends the header of the answer.
func (x *Exchange) WriteHeader(status int) {
	x.Status, x.FirstByte = status, time.Since(x.Start)
	x.W.WriteHeader(status)
}

// Authorization is what the caller shows.
func (x *Exchange) Authorization() string { return x.R.Header.Get("Authorization") }

// Code is the answer's status for logs and metrics; "aborted": the answer began and could not be ended.
func (x *Exchange) Code() string {
	if x.Err != nil && x.Status < http.StatusBadRequest {
		return "aborted"
	}
	return strconv.Itoa(x.Status)
}

// Level is how an exchange is logged.
func (x *Exchange) Level() slog.Level {
	if x.Code() == "aborted" || x.Status >= http.StatusInternalServerError {
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

const (
	// giveWithin is how long who asked may take for a document that is in memory, and a second more for each giveRate
	// bytes.
	giveWithin = 15 * time.Second
	giveRate   = 512 << 10
)

// Hurry cuts the answer off where the n bytes that follow are not taken in time. Others wait for the memory in which
// they are. Leisure ends that.
func (x *Exchange) Hurry(n int64) {
	within := giveWithin + time.Duration(n/giveRate)*time.Second
	// A writer that knows no deadline is no connection.
	_ = http.NewResponseController(x.W).SetWriteDeadline(time.Now().Add(within))
}

// Leisure lets what is written next take as long as it does.
func (x *Exchange) Leisure() { _ = http.NewResponseController(x.W).SetWriteDeadline(time.Time{}) }

// Give writes a document that is in memory.
func (x *Exchange) Give(document []byte) error {
	x.Hurry(int64(len(document)))
	defer x.Leisure()
	_, err := x.W.Write(document)
	return err
}

// Settle ends an exchange that serve has answered with err. fail answers with an error while there is no answer yet. Of
// one that has begun nothing can be told any more: Settle panics with http.ErrAbortHandler, as http.Handler allows.
func (x *Exchange) Settle(err error, fail func(error)) {
	switch {
	case err == nil:
	case x.Status == 0:
		fail(err)
	default:
		x.Err = err
		panic(http.ErrAbortHandler)
	}
}

// Metrics count the answers of a front.
type Metrics struct {
	requests            *prometheus.CounterVec
	duration, firstByte *prometheus.HistogramVec
}

// NewMetrics makes the metrics shoal_FRONT_…, in which label tells what was asked for.
func NewMetrics(r prometheus.Registerer, front, label string) *Metrics {
	reg, labels := promauto.With(r), []string{label, "code"}
	return &Metrics{
		requests: reg.NewCounterVec(prometheus.CounterOpts{
			Namespace: "shoal", Subsystem: front, Name: "requests_total",
			Help: "Requests to the " + front + " front by " + label +
				` and status code; "aborted": the answer began and could not be ended.`,
		}, labels),
		duration: reg.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "shoal", Subsystem: front, Name: "request_duration_seconds",
			Help:    "Time from a request to the " + front + " front to the end of its answer.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10),
		}, labels),
		firstByte: reg.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "shoal", Subsystem: front, Name: "first_byte_seconds",
			Help: "Time from a request to the " + front +
				" front to the header of its answer, which goes out with the first byte.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 3, 10),
		}, labels),
	}
}

// Observe counts an exchange about what.
func (m *Metrics) Observe(x *Exchange, what string) {
	code, id := x.Code(), trace.ID(x.R.Context())
	m.requests.WithLabelValues(what, code).Inc()
	observe(m.duration.WithLabelValues(what, code), time.Since(x.Start), id)
	if x.Status != 0 {
		observe(m.firstByte.WithLabelValues(what, code), x.FirstByte, id)
	}
}

// observe counts a time, with the trace that shows where it went as its exemplar.
func observe(o prometheus.Observer, took time.Duration, id string) {
	if e, ok := o.(prometheus.ExemplarObserver); ok && id != "" {
		e.ObserveWithExemplar(took.Seconds(), prometheus.Labels{"trace_id": id})
		return
	}
	o.Observe(took.Seconds())
}
