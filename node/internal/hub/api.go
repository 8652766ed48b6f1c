package hub

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-cache/shoal/api/registries"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/room"
)

const (
	// maxQuestion is the longest body in bytes of a question about paths.
	maxQuestion = 8 << 20
	// questionTimes is how many times over it is in memory: as it came, taken apart, and as it goes to the hub.
	questionTimes = 4
	// questionWithin is how long it may take to come.
	questionWithin = 20 * time.Second
	// harnessesTTL is for how long the list of harnesses is used. Clients keep it for a day.
	harnessesTTL = time.Hour
	// pageSize is how many elements a page of a tree has, as at the hub.
	pageSize = 1000
)

// info tells of a repository at a revision. What is told of a commit is remembered by the commit, so that no answer
// mixes two.
func (f *Front) info(x *exchange) error {
	ctx, r := x.R.Context(), x.route.repo
	query := canonical(x.R.URL.Query())
	if x.R.URL.Query().Has("revision") { // names the revision in another way
		return f.pass(x)
	}
	commit, err := f.enter(ctx, x)
	switch {
	case errors.Is(err, errNoRepository): // what has the form of a name need be none: /api/models/gpt2/likers
		return f.pass(x)
	case err != nil:
		return err
	}
	k := infoKey(r, commit, query)
	doc, _, err := f.document(ctx, x, k, f.sinceWrite(r, infoTTL), func(ctx context.Context) (record, error) {
		a, err := f.askOpen(ctx, call{
			method: http.MethodGet, path: r.api() + "/revision/" + commit, query: query,
			authorization: x.Authorization(),
		})
		if err != nil {
			return record{}, err
		}
		clean, err := withoutXet(a.body, 0)
		if err != nil {
			return record{}, err
		}
		return f.keep(ctx, clean), nil
	})
	if err != nil {
		return err
	}
	x.W.Header().Set("X-Repo-Commit", commit)
	return x.json(doc)
}

// canonical is a query in one spelling.
func canonical(q url.Values) string { return q.Encode() }

// tree lists files at a revision, out of the listing of the whole where there is one.
func (f *Front) tree(x *exchange) error {
	ctx, q := x.R.Context(), x.R.URL.Query()
	commit, err := f.enter(ctx, x)
	if err != nil {
		return err
	}
	x.W.Header().Set("X-Repo-Commit", commit)
	if truth(q.Get("expand")) { // what was found in each, and when it was changed, is told page by page
		return f.page(ctx, x, commit, f.sinceWrite(x.route.repo, infoTTL))
	}
	l, err := f.list(ctx, x, commit)
	if err != nil {
		return err
	}
	if l.large {
		return f.page(ctx, x, commit, forever)
	}
	elements, ok := l.under(x.route.path, truth(q.Get("recursive")))
	if !ok {
		return &httpError{errNoEntry.status, errNoEntry.code, fmt.Sprintf("%+q does not exist on %+q", x.route.path,
			x.route.revision)}
	}
	first, err := strconv.Atoi(q.Get("cursor"))
	if err != nil || first < 0 || first > len(elements) {
		first = 0
	}
	size, err := strconv.Atoi(q.Get("limit"))
	if err != nil || size < 1 || size > pageSize {
		size = pageSize
	}
	last := min(first+size, len(elements))
	if last < len(elements) {
		q.Set("cursor", strconv.Itoa(last))
		x.next(x.R.URL.EscapedPath() + "?" + q.Encode())
	}
	return x.elements(elements[first:last])
}

// page gives a page of a tree that is not known as a whole.
func (f *Front) page(ctx context.Context, x *exchange, commit string, maxAge time.Duration) error {
	r := x.route.repo
	path := r.api() + "/tree/" + commit
	if x.route.path != "" {
		path += "/" + escape(x.route.path)
	}
	query := canonical(x.R.URL.Query())
	k := key("page", r.name(), commit, x.route.path, query)
	doc, rec, err := f.document(ctx, x, k, maxAge, func(ctx context.Context) (record, error) {
		a, err := f.askOpen(ctx, call{method: http.MethodGet, path: path, query: query,
			authorization: x.Authorization()})
		if err != nil {
			return record{}, err
		}
		clean, err := withoutXet(a.body, plainLimit)
		if err != nil {
			return record{}, err
		}
		if outside(a.next) {
			return record{}, unending(r, commit, a.next)
		}
		rec := f.keep(ctx, clean)
		rec.Next = a.next
		return rec, nil
	})
	if err != nil {
		return err
	}
	if rec.Next != "" {
		x.next(rec.Next)
	}
	return x.json(doc)
}

// next names the page that follows. Clients take its URL as it is, so it is the front's own.
func (x *exchange) next(target string) {
	x.W.Header().Set("Link", "<"+x.host()+target+`>; rel="next"`)
}

// paths tells of the paths that the body names.
func (f *Front) paths(x *exchange) error {
	ctx := x.R.Context()
	reading, end := f.opts.Questions.Lease(ctx)
	defer end()
	paths, expand, err := readPaths(reading, x.R)
	if err != nil {
		return err
	}
	commit, err := f.enter(ctx, x)
	if err != nil {
		return err
	}
	x.W.Header().Set("X-Repo-Commit", commit)
	if expand {
		doc, err := f.askPaths(ctx, x, commit, paths, true, f.sinceWrite(x.route.repo, infoTTL))
		if err != nil {
			return err
		}
		return x.json(doc)
	}
	l, err := f.list(ctx, x, commit)
	if err != nil {
		return err
	}
	if l.large {
		doc, err := f.askPaths(ctx, x, commit, paths, false, forever)
		if err != nil {
			return err
		}
		return x.json(doc)
	}
	found, told := []*element{}, map[*element]bool{}
	for _, p := range paths {
		// Once, for a path takes far less of a question than of the answer.
		if e := l.byPath[strings.Trim(p, "/")]; e != nil && !told[e] {
			found, told[e] = append(found, e), true
		}
	}
	return x.elements(found)
}

// readPaths reads a question about paths. The server gives bodies all the time that they take, for most are uploads.
func readPaths(ctx context.Context, r *http.Request) (paths []string, expand bool, err error) {
	if b, ok := r.Body.(interface{ Within(all time.Duration) }); ok {
		b.Within(questionWithin)
	}
	body, err := room.ReadAll(ctx, r.Body, r.ContentLength, maxQuestion, questionTimes)
	switch {
	case errors.Is(err, room.ErrTooLong), bytes.Count(body, []byte(",")) > registries.MaxElements,
		bytes.Count(body, []byte("&")) > registries.MaxElements:
		return nil, false, errTooLong
	case err != nil:
		return nil, false, fmt.Errorf("read the question: %w", err)
	}
	if paths, expand, err = pathsOf(r.Header.Get("Content-Type"), body); err != nil {
		return nil, false, errQuestion
	}
	return paths, expand, nil
}

// refs lists branches and tags.
func (f *Front) refs(x *exchange) error {
	ctx, r := x.R.Context(), x.route.repo
	ask := func(ctx context.Context, authorization string) (*answer, error) {
		return f.origin.ask(ctx, call{
			method: http.MethodGet, path: r.api() + "/refs", query: canonical(x.R.URL.Query()),
			authorization: authorization,
		})
	}
	err := f.admit(ctx, x, levelInfo, func(ctx context.Context, authorization string) error {
		_, err := ask(ctx, authorization)
		return err
	})
	if err != nil {
		return err
	}
	k := key("refs", r.name(), canonical(x.R.URL.Query()))
	doc, _, err := f.document(ctx, x, k, f.sinceWrite(r, x.rule.TagTTL), func(ctx context.Context) (record, error) {
		a, err := ask(ctx, x.Authorization())
		if refused, ok := errors.AsType[*refusal](err); ok && refused.status == http.StatusUnauthorized &&
			x.Authorization() != "" {
			a, err = ask(ctx, "")
		}
		if err != nil {
			return record{}, err
		}
		return f.keep(ctx, a.body), nil
	})
	if err != nil {
		return err
	}
	return x.json(doc)
}

// harnesses gives the list by which clients tell what they run in. All nodes ask for it once.
func (f *Front) harnesses(x *exchange) error {
	if x.R.URL.RawQuery != "" {
		return f.pass(x)
	}
	doc, _, err := f.document(x.R.Context(), x, key("harnesses"), harnessesTTL,
		func(ctx context.Context) (record, error) {
			a, err := f.origin.ask(ctx, call{method: http.MethodGet, path: "/api/agent-harnesses"})
			if err != nil {
				return record{}, err
			}
			if !json.Valid(a.body) {
				return record{}, fmt.Errorf("the hub's list of harnesses is no JSON: %w", content.ErrUnavailable)
			}
			return f.keep(ctx, a.body), nil
		})
	if err != nil {
		return err
	}
	return x.json(doc)
}

func (x *exchange) elements(elements []*element) error {
	raws, size := make([]json.RawMessage, len(elements)), int64(0)
	for i, e := range elements {
		raws[i] = e.raw
		size += int64(len(e.raw))
	}
	if err := room.Hold(x.R.Context(), keptTimes*size); err != nil {
		return err
	}
	doc, err := json.Marshal(raws)
	if err != nil {
		return err
	}
	return x.json(doc)
}

func (x *exchange) json(doc []byte) error {
	h := x.W.Header()
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(doc)))
	x.WriteHeader(http.StatusOK)
	return x.Give(doc)
}
