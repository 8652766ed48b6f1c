package hub

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/reply"
)

// smallAtOnce is how many files in git are fetched at one time.
const smallAtOnce = 4

// Files lists what a node that is to keep a repository's files has to hold: what the hub tells of the commit, and the
// files whose paths keep takes. It goes the way of any caller, with that caller's token, so that the node can serve all
// of it afterwards, and with the hub away too. Files in git are fetched, for their digests are not known before. Where
// get is false nothing is asked or fetched, and content.ErrNotFound says that something is not here.
func (f *Front) Files(ctx context.Context, repository content.Repository, revision, commit, authorization string,
	keep func(path string) bool, get bool) ([]content.Request, error) {
	x, err := f.internal(ctx, repository, revision, commit, authorization)
	if err != nil {
		return nil, err
	}
	files, err := f.filesAt(x.R.Context(), x, revision, commit, keep, get) //nolint:contextcheck // ctx and the rule
	if err != nil {
		return nil, upstreamError(err)
	}
	return files, nil
}

// internal is an exchange without a client.
func (f *Front) internal(ctx context.Context, repository content.Repository, revision, commit, authorization string) (
	*exchange, error) {
	if repository.Registry != f.opts.Hub {
		return nil, fmt.Errorf("%s: this agent is a front for %s (hub.endpoint): %w", repository, f.opts.Hub,
			content.ErrNotFound)
	}
	r, ok := parseRepo(repository.Name)
	if !ok || !isCommit(commit) {
		return nil, fmt.Errorf("%s at %q: no commit of a repository: %w", repository, commit, content.ErrNotFound)
	}
	rule := f.opts.Rules(repository)
	req, err := http.NewRequestWithContext(ruled(ctx, rule), http.MethodGet, "/", nil)
	if err != nil {
		return nil, err
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	x := &exchange{Exchange: reply.New(nowhere{}, req), rule: rule}
	x.route = route{action: actTree, repo: r, revision: revision}
	return x, nil
}

// nowhere is the writer of an exchange without a client.
type nowhere struct{}

func (nowhere) Header() http.Header         { return http.Header{} }
func (nowhere) WriteHeader(int)             {}
func (nowhere) Write(p []byte) (int, error) { return len(p), nil }

// parseRepo reads what repo.name writes.
func parseRepo(name string) (r repo, ok bool) {
	r = repo{kind: kinds[0], id: name}
	if kind, id, cut := strings.Cut(name, "/"); cut && slices.Contains(kinds[1:], kind) {
		r = repo{kind, id}
	}
	parts := strings.Split(r.id, "/")
	return r, len(parts) <= 2 && !slices.ContainsFunc(parts, func(p string) bool {
		return p == "" || p == "." || p == ".."
	})
}

func (f *Front) filesAt(ctx context.Context, x *exchange, revision, commit string, keep func(path string) bool,
	get bool) ([]content.Request, error) {
	if get {
		if _, err := f.enter(ctx, x); err != nil && !isCommit(revision) && !away(err) && !absent(err) {
			return nil, err // of the revision: a branch that is gone leaves its commit
		}
		x.route.revision = commit
		if err := f.enterAt(ctx, x, commit); err != nil {
			return nil, err
		}
	}
	known, rec, err := f.listed(ctx, x, commit, get)
	if err != nil {
		return nil, err
	}
	if get {
		if err := f.admit(ctx, x, levelFiles, f.head(x.route.repo, commit, known.anyFile())); err != nil {
			return nil, err
		}
	}
	out := []content.Request{{Digest: rec.Digest, Size: rec.Size}}
	if info, _, ok := f.memo.own(infoKey(x.route.repo, commit, "")); ok && info.Digest != "" && f.holds(info) {
		out = append(out, content.Request{Digest: info.Digest, Size: info.Size})
	}
	var kept []*element
	for _, e := range known.elements {
		if e.Type == "file" && keep(e.Path) {
			kept = append(kept, e)
		}
	}
	if len(kept) == 0 {
		return nil, fmt.Errorf("no file of commit %s is to be kept: %w", commit, content.ErrNotFound)
	}
	files := make([]content.Request, len(kept))
	var group errgroup.Group
	group.SetLimit(smallAtOnce)
	for i, e := range kept {
		group.Go(func() (err error) {
			files[i], err = f.pinned(ctx, x, e, commit, get)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return append(out, files...), nil
}

// listed is the listing of a commit, and the record of its document.
func (f *Front) listed(ctx context.Context, x *exchange, commit string, get bool) (*listing, record, error) {
	k := treeKey(x.route.repo, commit)
	rec, _, ok := f.memo.own(k)
	if !get && (!ok || rec.Digest != "" && !f.holds(rec)) {
		return nil, record{}, fmt.Errorf("the listing of %s: %w", commit, content.ErrNotFound)
	}
	l, err := f.list(ctx, x, commit)
	if err != nil {
		return nil, record{}, err
	}
	if l.large {
		return nil, record{}, fmt.Errorf("%s has more than %d files, or a listing of more than %d bytes, "+
			"which no pin takes", x.route.repo.name(), maxElements, maxListing)
	}
	if rec, _, ok = f.memo.own(k); !ok {
		return nil, record{}, fmt.Errorf("the listing of %s: %w", commit, content.ErrUnavailable)
	}
	if get && !f.holds(rec) {
		f.listings.Remove(k) // it was evicted
		if _, err = f.list(ctx, x, commit); err == nil && !f.holds(rec) {
			err = fmt.Errorf("the listing of %s: %w", commit, content.ErrNoSpace)
		}
	}
	return l, rec, err
}

func (f *Front) holds(rec record) bool {
	_, err := f.opts.Store.Stat(rec.Digest)
	return err == nil
}

// pinned is what has to be held of one file.
func (f *Front) pinned(ctx context.Context, x *exchange, e *element, commit string, get bool) (content.Request, error) {
	r := x.route.repo
	file := r.file(commit, e.Path)
	if !e.usable() {
		return content.Request{}, fmt.Errorf("%s: the hub says neither its digest nor its size as it should", file)
	}
	if e.LFS != nil {
		req := content.Request{Repository: r.source(f.opts.Hub), Kind: content.Blob, Digest: e.digest(), Size: e.Size,
			File: file, Authorization: x.Authorization()}
		if get {
			if _, err := f.prove(ctx, x, req); err != nil {
				return req, err
			}
		}
		req.Authorization = ""
		return req, nil
	}
	k := key("git", r.name(), e.OID)
	rec, _, ok := f.memo.own(k)
	if ok && f.holds(rec) {
		return content.Request{Digest: rec.Digest, Size: rec.Size}, nil
	}
	if !get {
		return content.Request{}, fmt.Errorf("%s: %w", file, content.ErrNotFound)
	}
	got, rec, err := f.gitFile(ctx, x, e, commit)
	if err != nil {
		return content.Request{}, err
	}
	defer func() { _ = got.Close() }()
	if m, ok := got.(inMemory); ok {
		rec = f.keep(ctx, m.data)
	}
	if !f.holds(rec) {
		return content.Request{}, fmt.Errorf("%s: %w", file, content.ErrNoSpace)
	}
	return content.Request{Digest: rec.Digest, Size: rec.Size}, nil
}
