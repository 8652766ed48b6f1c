package hub

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/reply"
	"github.com/shoal-cache/shoal/node/internal/room"
	"github.com/shoal-cache/shoal/node/internal/store"
)

const (
	// infoTTL is for how long what changes of a commit (downloads, likes, gated) is used.
	infoTTL = 10 * time.Minute
	// maxPages bounds the pages of a listing that is made of the whole of a repository. Of a larger one single paths
	// are asked for.
	maxPages = 10
	// maxListing and maxElements bound such a listing in bytes and in elements. In memory an element takes far more
	// than its shortest spelling, {}.
	maxListing  = 8 << 20
	maxElements = maxPages * pageSize
	// maxEndless is how much is told of a page that comes after itself, or cannot be had.
	maxEndless = 200
	// heldTimeout bounds the getting of a document that a peer has, with a second more for each heldRate bytes.
	heldTimeout = 5 * time.Second
	heldRate    = 1 << 20
	// keptTimes is how many times over such a document is in memory while it is read.
	keptTimes = 2
)

// element is what a listing says of one path.
type element struct {
	Type string `json:"type"` // "file" or "directory"
	OID  string `json:"oid"`
	Size int64  `json:"size"`
	Path string `json:"path"`
	LFS  *struct {
		OID  string `json:"oid"`
		Size int64  `json:"size"`
	} `json:"lfs"`
	XetHash string `json:"xetHash"`

	raw json.RawMessage // as it is given to clients
}

// etag is the hub's: the sha256 of a file in large file storage, the git object name of another.
func (e *element) etag() string {
	if e.LFS != nil {
		return strings.TrimPrefix(e.LFS.OID, "sha256:")
	}
	return e.OID
}

// digest is that of a file in large file storage. Some hubs write it in capitals, which names the same.
func (e *element) digest() digest.Digest {
	return digest.NewDigestFromEncoded(digest.SHA256, strings.ToLower(e.etag()))
}

// usable reports whether e says what is needed to give the file.
func (e *element) usable() bool {
	if e.Size < 0 || e.Size > content.MaxSize {
		return false
	}
	if e.LFS != nil {
		return e.digest().Validate() == nil && e.LFS.Size == e.Size
	}
	// git's names have one form; the hub has what is above 10 MB in large file storage
	return isCommit(strings.ToLower(e.OID)) && e.Size <= maxDoc
}

// listing is the files of a repository at a commit.
type listing struct {
	elements []*element
	byPath   map[string]*element
	large    bool // there are too many: it holds none
}

// perElement is about how many bytes an element takes in memory beside its texts, which are there as they came and
// taken apart.
const perElement = 400

// size is about how many bytes a listing takes in memory.
func (l *listing) size() (n int64) {
	for _, e := range l.elements {
		n += perElement + 2*int64(len(e.raw))
	}
	return n
}

// errLarge: a listing is longer than maxListing or maxElements.
var errLarge = errors.New("the listing is too long to be held")

// split takes a listing apart. It fails with errLarge before it takes much memory.
func split(doc []byte) (elements []json.RawMessage, err error) {
	if len(doc) > maxListing {
		return nil, errLarge
	}
	d := json.NewDecoder(bytes.NewReader(doc))
	if start, err := d.Token(); err != nil || start != json.Delim('[') {
		return nil, errors.Join(errors.New("it is no list"), err)
	}
	for d.More() {
		if len(elements) == maxElements {
			return nil, errLarge
		}
		var e json.RawMessage
		if err := d.Decode(&e); err != nil {
			return nil, err
		}
		elements = append(elements, e)
	}
	_, err = d.Token() // its end
	return elements, err
}

func newListing(doc []byte) (*listing, error) {
	raws, err := split(doc)
	switch {
	case errors.Is(err, errLarge):
		return &listing{large: true}, nil
	case err != nil:
		return nil, fmt.Errorf("listing: %w", err)
	}
	l := &listing{byPath: make(map[string]*element, len(raws))}
	for _, raw := range raws {
		e := new(element)
		if err := json.Unmarshal(raw, e); err != nil {
			return nil, fmt.Errorf("listing: %w", err)
		}
		e.raw = raw
		l.elements = append(l.elements, e)
		l.byPath[e.Path] = e
	}
	return l, nil
}

// under lists what is below a folder, or in it alone. ok is false where there is no such folder.
func (l *listing) under(folder string, recursive bool) (out []*element, ok bool) {
	prefix := ""
	if folder != "" {
		prefix = folder + "/"
		d := l.byPath[folder]
		ok = d != nil && d.Type == "directory"
	}
	for _, e := range l.elements {
		rest, below := strings.CutPrefix(e.Path, prefix)
		if below && (recursive || !strings.Contains(rest, "/")) {
			out = append(out, e)
		}
	}
	return out, ok || folder == "" || len(out) > 0
}

// anyFile is the path of a file, "" where there is none.
func (l *listing) anyFile() string {
	for _, e := range l.elements {
		if e.Type == "file" {
			return e.Path
		}
	}
	return ""
}

// enter finds the commit that the exchange's revision is, for a caller who may read what the hub tells of it. All of a
// request is answered at that one commit.
func (f *Front) enter(ctx context.Context, x *exchange) (commit string, err error) {
	r, revision := x.route.repo, x.route.revision
	revision = cmp.Or(revision, mainRevision)
	if isCommit(revision) {
		return revision, f.enterAt(ctx, x, revision)
	}
	rev, err := f.memo.do(ctx, revisionKey(r, revision), f.sinceWrite(r, x.rule.TagTTL), f.who(x),
		func(ctx context.Context) (record, error) {
			return f.askRevision(ctx, x)
		})
	if err != nil {
		return "", err
	}
	if !isCommit(rev.Commit) {
		return "", fmt.Errorf("revision %q of %s: %w: the hub names no commit", revision, r.name(),
			content.ErrUnavailable)
	}
	if err := x.age(rev); err != nil {
		return "", err
	}
	f.learnInfo(r, revision, rev.record)
	if rev.Yes && !provoked(rev.cause) && f.access.open(ctx, r, rev.stale) {
		return rev.Commit, nil
	}
	return rev.Commit, f.enterAt(ctx, x, rev.Commit)
}

// enterAt returns an error where the exchange's caller may not read what the hub tells of a commit. Who may read the
// files may read that, so a caller for whom it is not known is asked about with a file, where one is known: it asks for
// files next.
func (f *Front) enterAt(ctx context.Context, x *exchange, commit string) error {
	r := x.route.repo
	look := func(ctx context.Context, authorization string) error {
		_, err := f.askInfo(ctx, r, commit, "", authorization)
		return err
	}
	if l, ok := f.listings.Get(treeKey(r, commit)); ok && x.Authorization() != "" && !f.access.open(ctx, r, false) {
		for _, path := range []string{x.route.path, l.anyFile()} {
			if e := l.byPath[path]; e != nil && e.Type == "file" &&
				f.admit(ctx, x, levelFiles, f.head(r, commit, path)) == nil {
				return nil
			}
		}
	}
	return f.admit(ctx, x, levelInfo, look)
}

func treeKey(r repo, commit string) string { return key("tree", r.name(), commit) }

// refusedKey is that of the page of a listing that was refused to one caller.
func (f *Front) refusedKey(r repo, commit, authorization string) string {
	who := f.memo.mark("who", authorization)
	return key(callerKind, "page", r.name(), commit, string(who[:]))
}

func revisionKey(r repo, revision string) string { return key("revision", r.name(), revision) }

func infoKey(r repo, commit, query string) string { return key("info", r.name(), commit, query) }

// learnInfo takes what comes with a revision: what is told of its commit, and that anyone may read it, unless everyone
// was refused since.
func (f *Front) learnInfo(r repo, revision string, rev record) {
	if rev.heard {
		return
	}
	k := infoKey(r, rev.Commit, "")
	if _, age, known := f.memo.own(k); rev.Digest != "" && (!known || age > infoTTL) {
		f.memo.learn(k, record{Digest: rev.Digest, Size: rev.Size, Inline: rev.Inline}, 0, true)
	}
	if _, age, known := f.memo.own(revisionKey(r, revision)); known && rev.Yes {
		f.access.learn(r, levelInfo, true, age)
	}
}

// errNoRepository: what the hub tells under the name of a repository is about something else.
var errNoRepository = fmt.Errorf("the hub's answer is about no repository: %w", content.ErrUnavailable)

// askRevision asks which commit the exchange's revision is, as anyone, or else with the caller's token. Yes of its
// record says that anyone may ask.
func (f *Front) askRevision(ctx context.Context, x *exchange) (record, error) {
	r := x.route.repo
	doc, err := f.askInfo(ctx, r, x.route.revision, "", "")
	open := err == nil
	if was, _, _ := f.memo.own(revisionKey(r, cmp.Or(x.route.revision, mainRevision))); denied(err) && !absent(err) &&
		(was.Yes || !errors.Is(err, content.ErrNotFound)) { // some hubs say so of a revision, too
		f.access.learn(r, levelInfo, false, 0)
	}
	if err != nil && x.Authorization() != "" && !absent(err) && (denied(err) || throttling(err)) {
		if doc, err = f.askInfo(ctx, r, x.route.revision, "", x.Authorization()); err == nil {
			f.access.accept(r, levelInfo, x.Authorization())
		}
	}
	if err != nil {
		return record{}, err
	}
	var info struct {
		SHA string `json:"sha"`
	}
	err = json.Unmarshal(doc, &info)
	switch {
	case x.route.revision == "" && info.SHA == "":
		return record{}, errNoRepository
	case err != nil:
		return record{}, fmt.Errorf("the hub's answer about %s: %w: %w", r.name(), content.ErrUnavailable, err)
	}
	rec := f.keep(ctx, doc)
	rec.Commit, rec.Yes = info.SHA, open
	return rec, nil
}

// askInfo asks what there is to know of a repository at a revision ("": the default branch).
func (f *Front) askInfo(ctx context.Context, r repo, revision, query, authorization string) ([]byte, error) {
	path := r.api()
	if revision != "" {
		path += "/revision/" + url.PathEscape(revision)
	}
	a, err := f.origin.ask(ctx, call{method: http.MethodGet, path: path, query: query, authorization: authorization})
	if err != nil {
		return nil, err
	}
	var info struct{ ID, ModelID, SHA string }
	if err := json.Unmarshal(a.body, &info); err != nil || cmp.Or(info.ID, info.ModelID, info.SHA) == "" {
		return nil, fmt.Errorf("%s: %w", path, errNoRepository) // but some page, which would let in everyone
	}
	return withoutXet(a.body, 0)
}

// document is a JSON document of the hub's at a commit: remembered, or else what ask gives.
func (f *Front) document(ctx context.Context, x *exchange, k string, maxAge time.Duration,
	ask func(context.Context) (record, error)) ([]byte, record, error) {
	return openDocument(ctx, f, x, k, maxAge, ask, f.kept)
}

// openDocument is what open makes of a document. It is empty where the record names none.
func openDocument[T any](ctx context.Context, f *Front, x *exchange, k string, maxAge time.Duration,
	ask func(context.Context) (record, error), open func(context.Context, record) (T, error)) (T, record, error) {
	var none T
	for range 2 {
		rec, err := f.memo.do(ctx, k, maxAge, f.who(x), ask)
		if err != nil {
			return none, record{}, err
		}
		if maxAge != forever {
			if err := x.age(rec); err != nil {
				return none, record{}, err
			}
		}
		if rec.Digest == "" {
			return none, rec.record, nil
		}
		opened, err := open(ctx, rec.record)
		switch {
		case err == nil:
			return opened, rec.record, nil
		case ctx.Err() != nil:
			return none, record{}, context.Cause(ctx)
		case errors.Is(err, room.ErrFull):
			return none, record{}, err
		}
		f.log.Debug("a document that was known is gone", "repository", x.route.repo.name(), "digest", rec.Digest,
			"cause", err)
		f.memo.forget(k)
	}
	return none, record{}, fmt.Errorf("the hub's answer about %s: %w", x.route.repo.name(), content.ErrUnavailable)
}

// keep puts a document into the store, and gives the record that names it. Where the store has no room the record holds
// it.
func (f *Front) keep(ctx context.Context, doc []byte) record {
	rec := record{Digest: digest.FromBytes(doc), Size: int64(len(doc))}
	if len(doc) <= maxInline {
		rec.Inline = doc
	}
	if err := f.opts.Store.PutInto(ctx, store.Models, rec.Digest, bytes.NewReader(doc), rec.Size); err != nil {
		f.log.Debug("document not kept", "size", rec.Size, "cause", err)
	}
	return rec
}

// kept is the document or small file that a record names: with the record itself, here, or with a peer.
func (f *Front) kept(ctx context.Context, rec record) ([]byte, error) {
	if int64(len(rec.Inline)) == rec.Size && digest.FromBytes(rec.Inline) == rec.Digest {
		if _, err := f.opts.Store.Stat(rec.Digest); err != nil { // it came from a peer
			f.keep(ctx, rec.Inline)
		}
		return rec.Inline, room.Hold(ctx, rec.Size)
	}
	if rec.Size < 0 || rec.Size > maxDoc {
		return nil, fmt.Errorf("document of %d bytes: %w", rec.Size, content.ErrUnavailable)
	}
	ctx, cancel := context.WithTimeout(ctx, f.opts.Slack.of(heldTimeout+time.Duration(rec.Size/heldRate)*time.Second))
	defer cancel()
	reader, err := f.opts.Fetcher.Open(ctx, content.Request{Digest: rec.Digest, Size: rec.Size})
	if err != nil {
		return nil, err
	}
	defer func() { _ = reader.Close() }()
	if reader.Size() != rec.Size {
		return nil, fmt.Errorf("%s is of %d bytes, want %d: %w", rec.Digest, reader.Size(), rec.Size,
			content.ErrDigestMismatch)
	}
	body, err := reader.Range(ctx, 0, rec.Size)
	if err != nil {
		return nil, err
	}
	defer func() { _ = body.Close() }()
	return room.ReadAll(ctx, content.NewVerifier(body, rec.Digest, rec.Size), rec.Size, maxDoc, keptTimes)
}

// list is the listing of a repository at a commit.
func (f *Front) list(ctx context.Context, x *exchange, commit string) (*listing, error) {
	r := x.route.repo
	k := treeKey(r, commit)
	if l, ok := f.listings.Get(k); ok {
		return l, nil
	}
	maxAge := forever
	if old, _, known := f.memo.own(k); known && old.Endless != "" {
		maxAge = infoTTL // a hub may mend its listing
	}
	if mine, age, known := f.memo.own(f.refusedKey(r, commit, x.Authorization())); known && age <= infoTTL {
		return nil, unending(r, commit, mine.Endless)
	}
	l, rec, err := openDocument(ctx, f, x, k, maxAge,
		func(ctx context.Context) (record, error) { return f.askTree(ctx, r, commit, x.Authorization()) },
		func(ctx context.Context, rec record) (*listing, error) { return f.build(ctx, k, rec) })
	switch {
	case err != nil:
		return nil, err
	case rec.Endless != "":
		return nil, unending(r, commit, rec.Endless)
	case rec.Large:
		l = &listing{large: true}
		f.listings.Add(listingKey(k, rec), l, l.size())
	case l == nil:
		f.memo.forget(k)
		return nil, fmt.Errorf("the listing of %s at %s: %w", r.name(), commit, content.ErrUnavailable)
	}
	return l, nil
}

// build makes a listing of the document that a record names, once for all who wait for it: to read it takes far more
// memory than there is for each of them.
func (f *Front) build(ctx context.Context, k string, rec record) (*listing, error) {
	slot := listingKey(k, rec)
	built := f.building.Do(ctx, slot+"\x00"+rec.Digest.String(), func(ctx context.Context) (any, error) {
		if l, ok := f.listings.Get(slot); ok {
			return l, nil
		}
		ctx, end := f.opts.Documents.Lease(ctx)
		defer end()
		doc, err := f.kept(ctx, rec)
		if err != nil {
			return nil, err
		}
		l, err := newListing(doc)
		if err == nil {
			f.listings.Add(slot, l, l.size())
		}
		return l, err
	})
	select {
	case r := <-built:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*listing), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// listingKey is under what key a listing is kept. One that only one other node knows, while the hub is away, is not to
// be taken for the hub's.
func listingKey(k string, rec record) string {
	if rec.heard {
		return key("heard", k, rec.Digest.String())
	}
	return k
}

// unending refuses a listing that cannot be read to its end.
func unending(r repo, commit, next string) error {
	why := "has no end: the page %.200q comes after itself, or the hub has no such page"
	if outside(next) {
		why = "goes on where nothing can be asked: the next page is %.200q"
	}
	return &httpError{http.StatusBadGateway, "", fmt.Sprintf("the hub's listing of %s at %s "+why, r.name(), commit,
		next)}
}

// askTree walks the pages of the whole tree. One that is too long for a listing is large.
func (f *Front) askTree(ctx context.Context, r repo, commit, authorization string) (record, error) {
	path, query := r.api()+"/tree/"+commit, "recursive=true&expand=false"
	all, size, seen := []json.RawMessage{}, 0, map[string]bool{}
	for range maxPages {
		page, err := f.askOpen(ctx, call{method: http.MethodGet, path: path, query: query,
			authorization: authorization})
		if len(seen) > 0 && denied(err) { // who may read the first page may read them all
			rec := record{Endless: truncated(path + "?" + query)}
			if missing(err) {
				return rec, nil
			}
			f.memo.learn(f.refusedKey(r, commit, authorization), rec, 0, false) // it may be about this caller alone
			return record{}, unending(r, commit, rec.Endless)
		}
		if err != nil {
			return record{}, err
		}
		clean, err := withoutXet(page.body, plainLimit)
		if err != nil {
			return record{}, err
		}
		elements, err := split(clean)
		if err != nil && !errors.Is(err, errLarge) {
			return record{}, fmt.Errorf("tree of %s at %s: %w: %w", r.name(), commit, content.ErrUnavailable, err)
		}
		all, size = append(all, elements...), size+len(clean)
		if err := room.Hold(ctx, keptTimes*int64(min(size, maxListing))); err != nil {
			return record{}, err
		}
		if err != nil || size > maxListing || len(all) > maxElements {
			return record{Large: true}, nil
		}
		if page.next == "" {
			doc, err := json.Marshal(all)
			if err != nil {
				return record{}, err
			}
			return f.keep(ctx, doc), nil
		}
		if seen[page.next] || outside(page.next) {
			return record{Endless: truncated(page.next)}, nil
		}
		seen[page.next] = true
		path, query, _ = strings.Cut(page.next, "?")
	}
	return record{Large: true}, nil
}

// missing reports whether the hub said that there is no such thing, whoever asks for it.
func missing(err error) bool {
	r, ok := errors.AsType[*refusal](err)
	return ok && (r.status == http.StatusNotFound || r.status == http.StatusGone)
}

func truncated(page string) string { return page[:min(len(page), maxEndless)] }

// askOpen asks with the caller's token, and as anyone where the hub does not know that token: what anyone may read is
// then given to this caller as well.
func (f *Front) askOpen(ctx context.Context, c call) (*answer, error) {
	a, err := f.origin.ask(ctx, c)
	if refused, ok := errors.AsType[*refusal](err); ok && refused.status == http.StatusUnauthorized &&
		c.authorization != "" {
		c.authorization = ""
		if open, openErr := f.origin.ask(ctx, c); openErr == nil {
			return open, nil
		}
	}
	return a, err
}

// find is what there is at the exchange's path at a commit; nil: nothing is. other is the path of some file of that
// commit.
func (f *Front) find(ctx context.Context, x *exchange, commit string) (e *element, other string, err error) {
	l, err := f.list(ctx, x, commit)
	switch {
	case err != nil && (ctx.Err() != nil || away(err) || errors.Is(err, room.ErrFull)):
		return nil, "", err
	case err != nil: // a hub without listings, as mirrors are
		e, err = f.findByHead(ctx, x, commit)
	case l.large:
		e, err = f.findAlone(ctx, x, commit)
	default:
		e, other = l.byPath[x.route.path], l.anyFile()
	}
	if e != nil && e.Type != "file" {
		e = nil
	}
	return e, other, err
}

// findAlone asks about one path of a repository whose listing is long.
func (f *Front) findAlone(ctx context.Context, x *exchange, commit string) (*element, error) {
	doc, err := f.askPaths(ctx, x, commit, []string{x.route.path}, false, forever)
	if err != nil {
		return nil, err
	}
	l, err := newListing(doc)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", x.route.repo.name(), content.ErrUnavailable, err)
	}
	return l.byPath[x.route.path], nil
}

// askPaths asks what the hub tells of some paths at a commit.
func (f *Front) askPaths(ctx context.Context, x *exchange, commit string, paths []string, expand bool,
	maxAge time.Duration) ([]byte, error) {
	r := x.route.repo
	question, err := json.Marshal(map[string]any{"paths": paths, "expand": expand})
	if err != nil {
		return nil, err
	}
	k := key("path", r.name(), commit, digest.FromBytes(question).Encoded())
	doc, _, err := f.document(ctx, x, k, maxAge, func(ctx context.Context) (record, error) {
		a, err := f.askOpen(ctx, call{
			method: http.MethodPost, path: r.api() + "/paths-info/" + commit, authorization: x.Authorization(),
			header: http.Header{"Content-Type": {"application/json"}}, body: string(question),
		})
		if err != nil {
			return record{}, err
		}
		clean, err := withoutXet(a.body, plainLimit)
		if err != nil {
			return record{}, err
		}
		return f.keep(ctx, clean), nil
	})
	return doc, err
}

// findByHead learns of a file what the header of an answer tells.
func (f *Front) findByHead(ctx context.Context, x *exchange, commit string) (*element, error) {
	r, path := x.route.repo, x.route.path
	doc, _, err := f.document(ctx, x, key("head", r.name(), commit, path), forever,
		func(ctx context.Context) (record, error) {
			a, err := f.askOpen(ctx, call{method: http.MethodHead, path: r.file(commit, path),
				authorization: x.Authorization()})
			if err != nil {
				return record{}, err
			}
			e, err := entryOf(path, a.header)
			if err != nil {
				return record{}, fmt.Errorf("HEAD of %s: %w: %w", path, content.ErrUnavailable, err)
			}
			doc, err := json.Marshal([]any{e})
			if err != nil {
				return record{}, err
			}
			return f.keep(ctx, doc), nil
		})
	if err != nil {
		return nil, err
	}
	l, err := newListing(doc)
	if err != nil {
		return nil, err
	}
	return l.byPath[path], nil
}

// entryOf reads the header of an answer to HEAD of a file. The size that a redirect's Content-Length tells is that of
// its text.
func entryOf(path string, h http.Header) (map[string]any, error) {
	size, etag := h.Get("X-Linked-Size"), bare(cmp.Or(h.Get("X-Linked-Etag"), h.Get("Etag")))
	if size == "" && h.Get("Location") == "" {
		size = h.Get("Content-Length")
	}
	n, ok := reply.Number(size)
	if !ok {
		return nil, errors.New("no size in the answer")
	}
	e := map[string]any{"type": "file", "path": path, "size": n, "oid": etag}
	if len(etag) == 2*sha256.Size {
		e["lfs"] = map[string]any{"oid": etag, "size": n}
	}
	return e, nil
}

// pathsOf reads the body of a question about paths, which is a form in Python and JSON in the other clients.
func pathsOf(contentType string, body []byte) (paths []string, expand bool, err error) {
	kind, _, _ := strings.Cut(contentType, ";")
	if strings.TrimSpace(kind) == "application/x-www-form-urlencoded" {
		form, err := url.ParseQuery(string(body))
		if err != nil {
			return nil, false, err
		}
		return form["paths"], truth(form.Get("expand")), nil
	}
	var q struct {
		Paths  json.RawMessage `json:"paths"`
		Expand bool            `json:"expand"`
	}
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, false, err
	}
	var one string
	if json.Unmarshal(q.Paths, &one) == nil {
		return []string{one}, q.Expand, nil
	}
	return paths, q.Expand, json.Unmarshal(q.Paths, &paths)
}

// truth reads a boolean as the clients write it.
func truth(s string) bool { return slices.Contains([]string{"true", "1"}, strings.ToLower(s)) }
