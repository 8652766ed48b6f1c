package content

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

var (
	// ErrNotFound: neither this node nor a peer nor upstream has the content (HTTP 404).
	ErrNotFound = errors.New("not found")
	// ErrUnavailable: the content may exist but cannot be had now, within the time allowed (HTTP 503).
	ErrUnavailable = errors.New("unavailable")
	// ErrBadAnswer: upstream answered, and that was no answer to the question: another range, a page for people,
	// redirects without an end. To ask again brings the same, as a rule. Like all ErrUnavailable it says nothing of the
	// content.
	ErrBadAnswer = fmt.Errorf("upstream's answer cannot be used: %w", ErrUnavailable)
	// ErrRateLimit: the policy's own limit kept this node from asking upstream, or from reading on. It is as if
	// upstream throttled.
	ErrRateLimit = fmt.Errorf("rate limit of the policy: %w", ErrUnavailable)
	// ErrDigestMismatch: bytes did not match the digest or CID that names them. Nothing of them is kept.
	ErrDigestMismatch = errors.New("digest mismatch")
	// ErrMisled goes with ErrDigestMismatch where other nodes' word was among what did not match. Whoever asks
	// MisledAtMost times more gets what the registry alone says.
	ErrMisled = errors.New("other nodes may have been wrong about it")
	// ErrNoSpace: the store cannot take the content: the disk or the capacity is full of what may not be evicted.
	ErrNoSpace = errors.New("no space in the store")
	// ErrStorage: the node's own disk cannot be read or written, or hangs. Like ErrNoSpace it says nothing about the
	// content: who asked for it can be given it from elsewhere.
	ErrStorage = errors.New("the disk of the store fails")
	// ErrClosed: the component was shut down.
	ErrClosed = errors.New("closed")
)

// UpstreamError is an answer of the upstream registry other than success. Its status reaches the caller as it is, with
// the registry's authentication challenge, so that the caller can do what it would do at the registry itself.
type UpstreamError struct {
	// Op says what was attempted, on what: "GET https://registry.example/v2/a/manifests/1".
	Op string
	// Status is the HTTP status code.
	Status int
	// Challenge holds the WWW-Authenticate headers of a 401.
	Challenge []string
	// RetryAfter is the registry's wish, 0 where it sent none.
	RetryAfter time.Duration
	// Body is the start of the answer's body (an OCI error document, as a rule), at most 8 KiB.
	Body []byte
}

func (e *UpstreamError) Error() string {
	return fmt.Sprintf("%s: upstream answered %d %s", e.Op, e.Status, http.StatusText(e.Status))
}

// Is makes a 404 an ErrNotFound and a 429 or 5xx an ErrUnavailable.
func (e *UpstreamError) Is(target error) bool {
	switch {
	case e.Status == http.StatusNotFound:
		return target == ErrNotFound
	case e.Status == http.StatusTooManyRequests || e.Status >= 500:
		return target == ErrUnavailable
	}
	return false
}

// Throttled reports whether err is upstream's wish to be asked less often, or later (429 or 408), or the policy's.
func Throttled(err error) bool {
	var u *UpstreamError
	return errors.Is(err, ErrRateLimit) ||
		errors.As(err, &u) && (u.Status == http.StatusTooManyRequests || u.Status == http.StatusRequestTimeout)
}

// Denied reports whether err is upstream's refusal of the caller's credentials (401 or 403).
func Denied(err error) bool {
	var u *UpstreamError
	return errors.As(err, &u) && (u.Status == http.StatusUnauthorized || u.Status == http.StatusForbidden)
}

// RetryAfter reads the value of Retry-After (RFC 9110, section 10.2.3): seconds, or a date. after is not negative, and
// at most a day. said reports whether it is one of the two.
func RetryAfter(v string) (after time.Duration, said bool) {
	const most = 24 * time.Hour
	s, err := strconv.ParseUint(v, 10, 64)
	if err == nil || errors.Is(err, strconv.ErrRange) { // then s is the largest there is
		return time.Duration(min(s, uint64(most/time.Second))) * time.Second, true
	}
	if at, err := http.ParseTime(v); err == nil {
		return min(max(time.Until(at), 0), most), true
	}
	return 0, false
}

// MisledAtMost is how often other nodes' word is taken for one blob: what all have read, then what one has read anew,
// and then another.
const MisledAtMost = 3
