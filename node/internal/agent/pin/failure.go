package pin

import (
	"context"
	"errors"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/shoal-cache/shoal/api/message"
	"github.com/shoal-cache/shoal/api/pullsecret"
	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/node/internal/content"
)

var (
	// ErrSecretNotFound: a pull secret does not exist.
	ErrSecretNotFound = errors.New("pull secret not found")

	errNoSuchPlatform  = errors.New("the index has no manifest for the platform")
	errSizeLimit       = errors.New("larger than the pin's sizeLimit")
	errExceedsCapacity = errors.New("larger than what other pins leave of the cache")
	errTimeLimit       = errors.New("not done within the time limit")
	errRuntime         = errors.New("load into the container runtime")
	errNoHub           = errors.New("files of a model hub")
	errNoPeer          = errors.New("the pin names no repository, and no peer has it")

	// errGap: an attempt that only looks has found something missing, or something that an attempt which fetches has to
	// report.
	errGap = errors.New("not all of it is here")
)

const (
	// MaxMessage is the bound of PinProgress.message in the API.
	MaxMessage = 512
	// maxRetryAfter bounds how long a registry may put a pin off.
	maxRetryAfter = time.Hour
)

// reasons map errors to what the API calls them. The first that matches counts.
var reasons = []struct {
	reason  string
	matches func(error) bool
}{
	{v1alpha1.FetchTimedOut, is(errTimeLimit)},
	{v1alpha1.ReasonSizeLimitExceeded, is(errSizeLimit)},
	{v1alpha1.FetchExceedsCapacity, is(errExceedsCapacity)},
	{v1alpha1.ReasonNoSuchPlatform, is(errNoSuchPlatform)},
	{v1alpha1.FetchRuntimeFailed, is(errRuntime)},
	{v1alpha1.FetchDiskFull, is(content.ErrNoSpace)},
	{v1alpha1.FetchDigestMismatch, is(content.ErrDigestMismatch)},
	{v1alpha1.ReasonSecretNotFound, is(ErrSecretNotFound)},
	{v1alpha1.ReasonInvalidSecret, is(pullsecret.ErrInvalid)},
	{v1alpha1.ReasonUnauthorized, content.Denied},
	{v1alpha1.FetchFailed, is(errNoPeer)},
	{v1alpha1.FetchFailed, is(errNoHub)},
	{v1alpha1.ReasonRateLimited, func(err error) bool {
		var u *content.UpstreamError
		return errors.As(err, &u) && u.Status == http.StatusTooManyRequests
	}},
	{v1alpha1.ReasonNotFoundUpstream, is(content.ErrNotFound)},
	{v1alpha1.ReasonRegistryUnreachable, is(content.ErrUnavailable)},
	{v1alpha1.FetchTimedOut, is(context.DeadlineExceeded)},
}

func is(target error) func(error) bool {
	return func(err error) bool { return errors.Is(err, target) }
}

// explain gives the reason and the message of a failure.
func explain(err error) (reason, said string) {
	reason = v1alpha1.FetchFailed
	for _, r := range reasons {
		if r.matches(err) {
			reason = r.reason
			break
		}
	}
	return reason, Shorten(message.Plain(err.Error()), MaxMessage)
}

// Shorten cuts s to at most n bytes of whole characters.
func Shorten(s string, n int) string {
	if len(s) <= n {
		return s
	}
	const ellipsis = "…"
	n -= len(ellipsis)
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + ellipsis
}

// retryAfter is what a registry asked to wait, 0 where it did not.
func retryAfter(err error) time.Duration {
	if u, ok := errors.AsType[*content.UpstreamError](err); ok {
		return u.RetryAfter
	}
	return 0
}
