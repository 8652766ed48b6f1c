package hub

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/shoal-cache/shoal/node/internal/content"
)

const (
	// locatedFor is for how long it is used where a file lies, if the URL itself does not say for how long it holds.
	locatedFor = 30 * time.Second
	// directFor is for how long it is taken that the hub serves a file itself.
	directFor = 10 * time.Minute
	// expiryMargin is how long before its end a signed URL is used no more. Requests may take as long to come there.
	expiryMargin = time.Minute
)

// Locate finds where the bytes of a file of the hub's lie: as a rule at a signed URL, which holds for an hour. One node
// asks for all, because each question counts against the hub's limits. It is upstream.Options.Locate. It does so for
// the hub's own front, which asks before who may read a file. Of a file by its URL the hub's answer decides that: such
// is asked for in each caller's name.
func (f *Front) Locate(ctx context.Context, repo content.Repository, file, authorization string,
	anew bool) (*url.URL, error) {
	if repo.Registry != f.opts.Hub || IsURL(repo) {
		return nil, nil //nolint:nilnil // says Options.Locate
	}
	k := key("at", repo.Name, file)
	rec, age, known := f.memo.own(k)
	if !known || anew || !rec.good(age) {
		maxAge := directFor
		if anew || known {
			maxAge = 0 // what others have is as old
		}
		select {
		case r := <-f.memo.anew(ctx, k, maxAge, f.memo.mark("who", authorization),
			func(ctx context.Context) (record, error) {
				return f.askWhere(ctx, file, authorization)
			}):
			if r.Err != nil {
				return nil, upstreamError(r.Err)
			}
			rec = r.Val.(record)
		case <-ctx.Done():
			return nil, fmt.Errorf("where %s lies: %w", file, context.Cause(ctx))
		}
	}
	if rec.URL == "" {
		return nil, nil //nolint:nilnil // says Options.Locate
	}
	at, err := url.Parse(rec.URL)
	if err != nil || at.Scheme != "http" && at.Scheme != "https" || at.Host == "" {
		return nil, fmt.Errorf("where %s lies: %w: no URL", file, content.ErrUnavailable)
	}
	return at, nil
}

// good reports whether a place of that age is to be used.
func (r record) good(age time.Duration) bool {
	if r.URL == "" {
		return age < directFor
	}
	return time.Now().Before(time.Unix(r.Expires, 0))
}

func (f *Front) askWhere(ctx context.Context, file, authorization string) (record, error) {
	a, err := f.origin.ask(ctx, call{
		method: http.MethodGet, path: file, authorization: authorization, headerOnly: true,
		header: http.Header{"Range": {"bytes=0-0"}},
	})
	if err != nil || a.location == nil {
		return record{}, err
	}
	return record{URL: a.location.String(), Expires: expiry(a.location, time.Now()).Unix()}, nil
}

// expiry is until when a signed URL is used, by the parameters of S3 and of CloudFront and others.
func expiry(u *url.URL, now time.Time) time.Time {
	q := u.Query()
	end := time.Time{}
	if at, err := time.Parse("20060102T150405Z", q.Get("X-Amz-Date")); err == nil {
		if s, err := strconv.Atoi(q.Get("X-Amz-Expires")); err == nil {
			end = at.Add(time.Duration(s) * time.Second)
		}
	}
	if unix, err := strconv.ParseInt(q.Get("Expires"), 10, 64); err == nil {
		if at := time.Unix(unix, 0); end.IsZero() || at.Before(end) {
			end = at
		}
	}
	left := end.Sub(now)
	switch {
	case end.IsZero(), left <= 0: // it was given just now, so the clock here is ahead
		return now.Add(locatedFor)
	case left > 2*expiryMargin:
		return end.Add(-expiryMargin)
	}
	return now.Add(left / 2)
}

// upstreamError is err as the upstream client says it.
func upstreamError(err error) error {
	if r, ok := errors.AsType[*refusal](err); ok {
		return &content.UpstreamError{
			Op: r.op, Status: r.status, Challenge: r.header.Values("Www-Authenticate"),
			RetryAfter: retryAfter(r.header),
		}
	}
	return err
}
