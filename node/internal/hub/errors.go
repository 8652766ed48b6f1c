package hub

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"

	"github.com/shoal-cache/shoal/api/message"
	"github.com/shoal-cache/shoal/api/registries"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/reply"
	"github.com/shoal-cache/shoal/node/internal/room"
)

// httpError is a failure that the front itself finds. Its code is one of the hub's (X-Error-Code), "" where the hub has
// none for it.
type httpError struct {
	status  int
	code    string
	message string
}

func (e *httpError) Error() string { return e.message }

var (
	errNoEntry  = &httpError{http.StatusNotFound, "EntryNotFound", "Entry not found"}
	errReplaced = &httpError{http.StatusPreconditionFailed, "", "If-Match names another file than there is"}
	errBadPath  = &httpError{http.StatusBadRequest, "", "the path is malformed"}
	errLoop     = &httpError{http.StatusLoopDetected, "",
		"the request comes from an agent: hub.endpoint leads back to the cache"}
	errDraining = &httpError{http.StatusServiceUnavailable, "", "shutting down"}
	errTooLong  = &httpError{http.StatusRequestEntityTooLarge, "",
		fmt.Sprintf("the body is longer than %d bytes, or has more than %d paths", maxQuestion, registries.MaxElements)}
	errQuestion = &httpError{http.StatusBadRequest, "", "the body is neither a form nor JSON with paths"}
)

// errOutside refuses a caller by its address.
func errOutside(remote string) error {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		host = remote
	}
	return &httpError{http.StatusForbidden, "", fmt.Sprintf("address %s may not use this cache: it is in none of the "+
		"ranges of hub.allowFrom, to which whoever runs the agents can add it", host)}
}

// errPeersOnly stands for the hub's answer where the policy has it not asked.
var errPeersOnly = fmt.Errorf("the policy takes this repository from peers only, and none has what is asked for: %w",
	content.ErrUnavailable)

// retrySoon is the Retry-After in seconds of an answer that may be better in a moment.
const retrySoon = 2

// fail answers with an error. What the hub itself said reaches the caller as it is: clients branch on status and code,
// and do not use what they have on disk after a 401 or 404. So an outage never is one.
func (x *exchange) fail(err error) {
	x.Err = err
	h := x.W.Header()
	for _, name := range []string{"Age", "Etag", "Content-Length", "Content-Disposition", "X-Linked-Etag",
		"X-Linked-Size", "X-Xet-Hash", "Link", "X-Hf-Warning", "Accept-Ranges"} {
		h.Del(name) // of the answer that did not come about
	}
	h.Set("Cache-Control", "no-store")
	status, body := x.verdict(err)
	if h.Get("Content-Type") == "" || body == nil {
		h.Set("Content-Type", "text/plain; charset=utf-8")
	}
	if body == nil {
		body = []byte(err.Error())
	}
	if status != http.StatusRequestedRangeNotSatisfiable {
		h.Del("Content-Range")
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if status == http.StatusServiceUnavailable && x.repeatsOnThrottle() {
		status = http.StatusTooManyRequests
	}
	x.WriteHeader(status)
	if x.R.Method != http.MethodHead {
		_, _ = x.W.Write(body) // the caller has gone, if it fails
	}
}

// repeatsOnThrottle reports whether the caller is one that asks again for the bytes of a file after a 429, and gives up
// on a 503: huggingface_hub since 1.0. It asks for parts by other means, which repeat on both.
func (x *exchange) repeatsOnThrottle() bool {
	if x.R.Method != http.MethodGet || x.route.action != actFile {
		return false
	}
	if part := x.R.Header.Get("Range"); part != "" && !strings.HasSuffix(part, "-") {
		return false
	}
	_, version, ok := strings.Cut(x.R.UserAgent(), "hf_hub/")
	major, _, _ := strings.Cut(version, ".")
	n, isNumber := reply.Number(major)
	return ok && isNumber && n > 0
}

// verdict sets the header of an error's answer and gives its status, and its body where that is not the error's text.
func (x *exchange) verdict(err error) (int, []byte) {
	h := x.W.Header()
	h.Del("Content-Type")
	if r, ok := errors.AsType[*refusal](err); ok {
		maps.Copy(h, r.header)
		return r.status, r.body
	}
	if e, ok := errors.AsType[*httpError](err); ok {
		if e.code != "" {
			h.Set("X-Error-Code", e.code)
		}
		h.Set("X-Error-Message", e.message)
		return e.status, nil
	}
	switch up, ok := errors.AsType[*content.UpstreamError](err); {
	case errors.Is(err, errPeersOnly): // waiting helps nobody. Without a code of the hub's, clients use what they have
		h.Set("X-Error-Message", errPeersOnly.Error())
		return http.StatusForbidden, nil
	case ok && (up.Status == http.StatusTooManyRequests || content.Denied(err) || up.Status == http.StatusNotFound):
		if up.RetryAfter > 0 {
			h.Set("Retry-After", strconv.FormatInt(int64(math.Ceil(up.RetryAfter.Seconds())), 10))
		}
		return up.Status, nil
	case errors.Is(err, room.ErrFull):
		h.Set("Retry-After", strconv.Itoa(retrySoon))
		h.Set("X-Error-Message", room.ErrFull.Error())
		return http.StatusServiceUnavailable, nil
	case errors.Is(err, reply.ErrUnsatisfiable):
		return http.StatusRequestedRangeNotSatisfiable, nil
	case x.R.Context().Err() != nil:
		return reply.StatusClientGone, nil
	case errors.Is(err, content.ErrDigestMismatch):
		h.Set("X-Error-Message", "the hub's bytes are not those that it names")
		return http.StatusBadGateway, nil
	}
	h.Set("Retry-After", strconv.Itoa(retrySoon))
	h.Set("X-Error-Message", "the hub, or the host of the URL, gives no answer that can be used, and what is "+
		"asked for is not known here: "+message.Plain(err.Error()))
	return http.StatusServiceUnavailable, nil
}

// age tells the caller, by the headers Age and Warning (RFC 7234, section 5), that an answer may be out of date, and
// refuses to give one where the policy has nothing given while the hub cannot be asked.
func (x *exchange) age(found found) error {
	if !found.stale {
		return nil
	}
	x.W.Header().Set("Age", strconv.FormatInt(int64(found.age.Seconds()), 10))
	return x.outage(found.cause)
}

func (x *exchange) outage(cause error) error {
	if x.rule.Authorization.OnUnreachable == policy.Deny {
		return fmt.Errorf("the policy denies %s while the hub cannot be asked: %w", x.route.repo.name(), cause)
	}
	x.stale = true
	x.W.Header().Set("Warning", `110 shoal "Response is Stale"`)
	return nil
}
