package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/reply"
	"github.com/shoal-cache/shoal/node/internal/room"
)

// apiError is an error of the distribution specification, section "Error Codes".
type apiError struct {
	status  int
	code    string
	message string
}

func (e *apiError) Error() string { return e.message }

var (
	errNoSuchPath = &apiError{http.StatusNotFound, "UNSUPPORTED", "no such path in the distribution pull API"}
	errReadOnly   = &apiError{http.StatusMethodNotAllowed, "UNSUPPORTED",
		"this registry is a cache: push to the registry itself"}
	errBypass = &apiError{http.StatusNotFound, "NAME_UNKNOWN", "the policy has this repository bypass the cache"}
	errLoop   = &apiError{http.StatusLoopDetected, "UNSUPPORTED",
		"the request comes from an agent: a registry leads back to the cache"}
	errDraining = &apiError{http.StatusServiceUnavailable, "UNAVAILABLE", "shutting down"}
)

// errSlow is the cause of a context that ended because nothing came within the time to the first byte. Where bytes did,
// see patience.slow.
var errSlow = fmt.Errorf("no byte within the time allowed: %w", content.ErrUnavailable)

// retrySoon is the Retry-After in seconds of an answer that may be better in a moment.
const retrySoon = "2"

// fail answers with the OCI error document for err. Upstream's own verdict reaches the caller as it is, challenge
// included, so that the caller can do what it would do at the registry.
func (x *exchange) fail(err error) {
	x.Err = err
	h := x.W.Header()
	h.Set("Cache-Control", "no-store")
	api := x.classify(err)
	body, _ := json.Marshal(map[string]any{ // strings always marshal
		"errors": []map[string]string{{"code": api.code, "message": api.message}},
	})
	if up, ok := errors.AsType[*content.UpstreamError](err); ok && up.Status == api.status {
		for _, c := range up.Challenge {
			h.Add("WWW-Authenticate", c)
		}
		if up.RetryAfter > 0 {
			h.Set("Retry-After", strconv.FormatInt(int64(math.Ceil(up.RetryAfter.Seconds())), 10))
		}
		if isErrorDocument(up.Body) {
			body = up.Body
		}
	}
	if errors.Is(err, room.ErrFull) {
		h.Set("Retry-After", retrySoon)
	}
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	x.WriteHeader(api.status)
	if x.R.Method != http.MethodHead {
		_, _ = x.W.Write(body) // the caller has gone, if it fails
	}
}

func (x *exchange) classify(err error) *apiError {
	if api, ok := errors.AsType[*apiError](err); ok {
		return api
	}
	if up, ok := errors.AsType[*content.UpstreamError](err); ok {
		status := relayed(up.Status)
		// A client that names the registry by ns has the registry to go to. containerd asks a host that throttles six
		// times over before it does, and one that is not available once.
		if content.Throttled(up) && x.R.URL.Query().Has("ns") {
			status = http.StatusServiceUnavailable
		}
		return &apiError{status, x.codeOf(status), up.Error()}
	}
	switch {
	case errors.Is(err, reply.ErrUnsatisfiable):
		return &apiError{http.StatusRequestedRangeNotSatisfiable, "SIZE_INVALID", err.Error()}
	case errors.Is(err, content.ErrNotFound):
		return &apiError{http.StatusNotFound, x.codeOf(http.StatusNotFound), err.Error()}
	case errors.Is(err, content.ErrDigestMismatch): // who names a registry of his own is not told whose bytes differ
		return &apiError{http.StatusServiceUnavailable, "UNAVAILABLE", "its bytes are not those of the digest"}
	case x.R.Context().Err() != nil:
		return &apiError{reply.StatusClientGone, "UNAVAILABLE", "the caller has gone"}
	}
	return &apiError{http.StatusServiceUnavailable, "UNAVAILABLE", err.Error()}
}

// relayed is the status that tells the caller of a registry's answer that was no success. What is no error either would
// be taken for content, or end a pull: containerd goes to no other host after a 3xx. And 416 is about a range that this
// node asked for.
func relayed(status int) int {
	if status < http.StatusBadRequest || status == http.StatusRequestedRangeNotSatisfiable {
		return http.StatusBadGateway
	}
	return status
}

func (x *exchange) codeOf(status int) string {
	switch status {
	case http.StatusUnauthorized:
		return "UNAUTHORIZED"
	case http.StatusForbidden:
		return "DENIED"
	case http.StatusTooManyRequests:
		return "TOOMANYREQUESTS"
	case http.StatusNotFound:
		switch x.route.endpoint {
		case endManifest, endReferrers:
			return "MANIFEST_UNKNOWN"
		case endBlob:
			return "BLOB_UNKNOWN"
		}
		return "NAME_UNKNOWN"
	}
	if status >= 500 {
		return "UNAVAILABLE"
	}
	return "UNSUPPORTED"
}

// isErrorDocument reports whether body is a whole OCI error document; the start of a long one is not.
func isErrorDocument(body []byte) bool {
	var doc struct {
		Errors []json.RawMessage `json:"errors"`
	}
	return json.Unmarshal(body, &doc) == nil && len(doc.Errors) > 0
}
