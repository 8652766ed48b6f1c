package hub

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha1" //nolint:gosec // git names its objects so; the hub's answer over TLS is what vouches for them
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/reply"
)

const (
	// tooLarge is said of files that huggingface_hub does not take by plain HTTP. It shows its user what follows the
	// topic.
	tooLarge = "shoal-xet; above 50 GB huggingface_hub goes past this cache, by Xet: leave HF_HUB_DISABLE_XET unset " +
		"and install hf_xet, or load the file with curl"
	// proofSize is how many bytes are compared to prove that a repository has a file.
	proofSize = 4 << 10
	// incomparableFor is for how long it is not tried again to compare what this node could not keep.
	incomparableFor = time.Minute
	maxIncomparable = 1 << 10
)

// file answers GET and HEAD of a file.
func (f *Front) file(x *exchange) error {
	ctx, r := x.R.Context(), x.route.repo
	if x.R.Method == http.MethodHead {
		// Up to three questions come before the answer. What they find out too late is known to who asks next.
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, x.Start.Add(f.opts.Slack.of(askTimeout)))
		defer cancel()
	}
	commit, err := f.enter(ctx, x)
	if err != nil {
		return err
	}
	x.W.Header().Set("X-Repo-Commit", commit)
	e, other, err := f.find(ctx, x, commit)
	if err != nil {
		return err
	}
	asked := x.route.path
	if e == nil && other != "" {
		asked = other // whether a caller may read the files is found out with one that is there
	}
	switch err := f.admit(ctx, x, levelFiles, f.head(r, commit, asked)); {
	case errors.Is(err, errNoCommit):
		return f.passFile(x)
	case err != nil:
		return err
	}
	if e == nil {
		return errNoEntry
	}
	if !e.usable() {
		return f.passFile(x)
	}
	f.describe(x, e, commit)
	f.warn(x, e)
	peek := f.peekGit(ctx, x, e, commit)
	if e.LFS != nil {
		peek = f.peek(ctx, f.request(x, e, commit))
	}
	return f.give(ctx, x, e.Size, `"`+e.etag()+`"`, func(off, n int64, given *early) (content.Reader, error) {
		if off+n == e.Size && off >= lastChunk(e.Size) {
			return f.open(ctx, x, e, commit, given)
		}
		return f.open(ctx, x, e, commit, nil)
	}, peek, func() error { return f.ready(ctx, x, e, commit) })
}

// passFile passes a request for a file through, of which too little is known to keep it.
func (f *Front) passFile(x *exchange) error {
	x.W.Header().Del("X-Repo-Commit") // what the answer says of it holds
	return f.pass(x)
}

// give answers with the part of a file that the caller wants, once ready, which finds out while a failure can still be
// told by a status whether the bytes may be had. The header that tells of the whole is set.
func (f *Front) give(ctx context.Context, x *exchange, size int64, etag string, open opener, peek peeker,
	ready func() error) error {
	if reply.Replaced(x.R, etag) {
		return errReplaced
	}
	if reply.Unchanged(x.R, etag) {
		x.W.Header().Del("Content-Length")
		x.WriteHeader(http.StatusNotModified)
		return nil
	}
	if x.R.Method == http.MethodHead {
		x.WriteHeader(http.StatusOK)
		return nil
	}
	part, partial, err := reply.ParseRange(reply.RangeHeader(x.R, etag), size)
	x.whole = part.N == size
	if err != nil {
		x.W.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", size))
		x.W.Header().Del("Content-Length")
		return err
	}
	if size == 0 && x.R.Header.Get("Range") != "" {
		x.W.Header().Set("Content-Range", "bytes */0") // where some clients look for the size
	}
	status := http.StatusOK
	if partial {
		status = http.StatusPartialContent
		x.W.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", part.Off, part.Off+part.N-1, size))
	}
	x.W.Header().Set("Content-Length", strconv.FormatInt(part.N, 10))
	if err := ready(); err != nil {
		return err
	}
	body := &steady{ctx: ctx, pos: part.Off, left: part.N, open: open}
	defer func() { _ = body.Close() }()
	return x.stream(status, body, part.N, peek)
}

// errNoCommit: what the hub tells is of a file, but nothing else vouches for that.
var errNoCommit = errors.New("the answer is about a file of a commit that it does not name")

// head asks whether the hub gives a file. That it leads elsewhere for it is a yes. Each names the commit, or the file
// as it was listed; the page of a proxy, which would let in everyone, does not. Nor does it name a file.
func (f *Front) head(r repo, commit, path string) probe {
	file := r.file(commit, path)
	return func(ctx context.Context, authorization string) error {
		a, err := f.origin.ask(ctx, call{method: http.MethodHead, path: file, authorization: authorization, stay: true})
		if err == nil && a.header.Get("X-Repo-Commit") == "" && !f.isListed(r, commit, path, a.header) {
			err = fmt.Errorf("HEAD %s: the hub names no commit: %w", file, content.ErrUnavailable)
			if namesFile(a.header) {
				err = fmt.Errorf("%w: %w", err, errNoCommit)
			}
		}
		return err
	}
}

// namesFile reports whether a header names what it tells of as the hub names files.
func namesFile(h http.Header) bool {
	tag := strings.ToLower(bare(cmp.Or(h.Get("X-Linked-Etag"), h.Get("Etag"))))
	return isCommit(tag) || digest.NewDigestFromEncoded(digest.SHA256, tag).Validate() == nil
}

// isListed reports whether a header is of the file that the hub has listed: by its name, or by a size that no page has.
// Some mirrors lose the commit. What is known of a file by such a header alone does not count.
func (f *Front) isListed(r repo, commit, path string, h http.Header) bool {
	l, ok := f.listings.Get(treeKey(r, commit))
	if !ok || l.byPath[path] == nil {
		return false
	}
	e := l.byPath[path]
	if tag := e.etag(); tag != "" && (bare(h.Get("X-Linked-Etag")) == tag || bare(h.Get("Etag")) == tag) {
		return true
	}
	told, err := entryOf(path, h)
	return err == nil && e.Size > maxErrorDoc && told["size"] == any(e.Size)
}

// describe sets the header that clients read off a file. They name what they keep by the ETag, so it is the hub's very
// own.
func (f *Front) describe(x *exchange, e *element, commit string) {
	h := x.W.Header()
	h.Set("Etag", `"`+e.etag()+`"`)
	h.Set("Accept-Ranges", "bytes")
	h.Set("Content-Length", strconv.FormatInt(e.Size, 10))
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	if d := mime.FormatMediaType("inline", map[string]string{"filename": path.Base(e.Path)}); d != "" {
		h.Set("Content-Disposition", d)
	}
	if e.LFS == nil {
		return
	}
	h.Set("Content-Type", "application/octet-stream")
	h.Set("X-Linked-Etag", `"`+e.etag()+`"`)
	h.Set("X-Linked-Size", strconv.FormatInt(e.Size, 10))
	if e.XetHash != "" { // too large for plain HTTP: its clients go around the cache, or do not come at all
		h.Set("X-Xet-Hash", e.XetHash)
		token := x.host() + x.route.repo.api() + "/xet-read-token/" + commit
		h.Set("Link", "<"+token+`>; rel="xet-auth"`)
		h.Set("X-Hf-Warning", tooLarge)
	}
}

// ready finds out, while a failure can still be told by a status, that a file in large storage may be had: that the
// repository has it, and where the hub has its bytes, or who else.
func (f *Front) ready(ctx context.Context, x *exchange, e *element, commit string) (err error) {
	switch {
	case e.LFS == nil:
		return nil
	case e.Size == 0 && !content.OfNothing(e.digest()):
		return fmt.Errorf("%s is not the digest of no bytes, and the hub says 0: %w", e.digest(),
			content.ErrDigestMismatch)
	case e.Size == 0: // which nobody need be asked for: storage has no first byte to give
		return nil
	}
	req := f.request(x, e, commit)
	x.held, err = f.prove(ctx, x, req)
	if err != nil || x.held {
		return err
	}
	_, err = f.Locate(ctx, req.Repository, req.File, req.Authorization, false)
	if refused, ok := errors.AsType[*content.UpstreamError](err); ok && refused.Status == http.StatusUnauthorized {
		_, err = f.Locate(ctx, req.Repository, req.File, "", false) // anyone may read it; see askOpen
	}
	return err
}

func (f *Front) request(x *exchange, e *element, commit string) content.Request {
	return content.Request{
		Repository: x.route.repo.source(f.opts.Hub), Kind: content.Blob, Digest: e.digest(), Size: e.Size,
		Authorization: x.Authorization(), File: x.route.repo.file(commit, e.Path),
		Part: x.wantsPart(), Held: x.held,
	}
}

// opener opens a file for who reads n bytes of it at off, as the rest of an answer that has given so much early.
type opener func(off, n int64, given *early) (content.Reader, error)

// open opens a file for a caller who may read it. given: it reads no more than what is in the last chunk, of which the
// answer has given so much early.
func (f *Front) open(
	ctx context.Context, x *exchange, e *element, commit string, given *early,
) (content.Reader, error) {
	if e.LFS == nil {
		return newLater(e.Size, func() (content.Reader, error) {
			file, _, err := f.gitFile(ctx, x, e, commit)
			return file, err
		}), nil
	}
	req, open := f.request(x, e, commit), f.opts.Fetcher.Open
	if x.past {
		open = f.opts.Fetcher.OpenPast
	}
	sized := func(req content.Request) (content.Reader, error) {
		reader, err := open(ctx, req)
		if err == nil && reader.Size() != e.Size {
			_ = reader.Close()
			return nil, fmt.Errorf("%s is of %d bytes, and the hub says %d: %w", req.Digest, reader.Size(), e.Size,
				content.ErrDigestMismatch)
		}
		return reader, err
	}
	if given == nil || req.Part || x.past || lastChunk(e.Size) == 0 {
		return sized(req)
	}
	part := req
	part.Part = true
	reader, err := sized(part)
	if err != nil {
		return nil, err
	}
	return &ending{reader, func() (content.Reader, error) { return sized(req) }, given}, nil
}

// prove keeps a caller from reading, through a repository that only claims to have a file, what this node or a peer has
// of it from elsewhere: some bytes of it, at a place that nobody can know before, and the same each time, are compared
// with the hub's. One node compares for all, and who finds nobody that holds the file asks what the others know, too:
// of many nodes only some are asked what they hold. Nothing is compared of what nobody holds yet: until the whole has
// come and matched, the fetch gives what the repository itself has (see fetch.Sources). present tells that it is here
// or with a peer.
func (f *Front) prove(ctx context.Context, x *exchange, req content.Request) (present bool, err error) {
	k, here := heldKey(req), f.has(req.Digest)
	if !f.Proved(req) {
		if !here && f.opts.Fetcher.Serves(req) { // it gives what the repository itself has
			return false, nil
		}
		if at, ok := f.apart.Get(k); ok && time.Since(at) < incomparableFor {
			x.past = true
			return false, nil
		}
	}
	present = here || f.peersHave(ctx, req.Digest)
	if f.Proved(req) {
		return present, nil
	}
	proved, err := f.memo.do(ctx, k, forever, f.who(x), func(ctx context.Context) (record, error) {
		if !present {
			return record{}, errNobody
		}
		return record{Yes: true}, f.compare(ctx, req)
	})
	switch {
	case errors.Is(err, errNobody):
		return false, nil
	case errors.Is(err, errIncomparable):
		f.apart.Add(k, time.Now())
		x.past = true
		return false, nil
	case err == nil && !proved.Yes: // another's word, and nobody says so rightly
		f.memo.forget(k)
		return false, nil
	}
	return present, err
}

// heldKey is that of whether a repository has a file. Agents that say "held" there have not looked whose bytes it was.
func heldKey(req content.Request) string { return key("has", req.Repository.Name, req.Digest.String()) }

// Proved reports whether the repository of a request for a file of the hub has proved to have it, as fetch.Sources has
// it.
func (f *Front) Proved(req content.Request) bool {
	rec, _, known := f.memo.own(heldKey(req))
	return known && rec.Yes
}

// Doubted implements fetch.Sources. The front lets in nobody by a yes that may be about anything.
func (f *Front) Doubted(content.Request) bool { return false }

// Prove notes, for all nodes, that all of a file came from its repository, and matched.
func (f *Front) Prove(req content.Request) {
	k, proved := heldKey(req), record{Yes: true}
	f.memo.learn(k, proved, 0, true)
	f.closing.Lock()
	defer f.closing.Unlock()
	if f.ctx.Err() == nil { // a blob may be whole when the front has been closed
		f.telling.Go(func() { f.memo.tell(f.ctx, k, proved) }) // nobody waits for it
	}
}

// has reports whether this node holds a file.
func (f *Front) has(d digest.Digest) bool {
	_, err := f.opts.Store.Stat(d)
	return err == nil
}

func (f *Front) peersHave(ctx context.Context, d digest.Digest) bool {
	_, _, ok := f.memo.recall(ctx, blobKey(d), record{}, 0, false)
	return ok
}

// blobKey asks a node what has says. Nothing is remembered under it.
func blobKey(d digest.Digest) string { return key("blob", d.String()) }

var (
	// errNobody: nobody is known to give what could be compared with what the hub has.
	errNobody = errors.New("no source of it is known")
	// errIncomparable: this node cannot keep what would have to be compared with what the hub has.
	errIncomparable = errors.New("nothing of it is kept")
)

// compare reads the same bytes of a file from the hub and from where else they are.
func (f *Front) compare(ctx context.Context, req content.Request) error {
	n := min(req.Size, proofSize)
	off := content.Places(f.memo.secret, req.Digest).Int64N(req.Size - n + 1)
	theirs, err := f.opts.Upstream.Open(ctx, req, off, n)
	if err != nil {
		return err
	}
	defer func() { _ = theirs.Close() }()
	want := make([]byte, n)
	if _, err := io.CopyN(io.Discard, theirs, off-theirs.Offset); err != nil {
		return fmt.Errorf("read %s from the hub: %w: %w", req.File, content.ErrUnavailable, err)
	}
	if _, err := io.ReadFull(theirs, want); err != nil {
		return fmt.Errorf("read %s from the hub: %w: %w", req.File, content.ErrUnavailable, err)
	}
	got, err := f.elsewhere(ctx, req, off, n)
	switch {
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, content.ErrNoSpace), errors.Is(err, content.ErrStorage):
		return fmt.Errorf("%w: %w", errIncomparable, err)
	case err != nil: // who holds it is busy, or has dropped it since
		return fmt.Errorf("%w: %w", errNobody, err)
	case !bytes.Equal(got, want):
		f.log.Error("the hub's bytes are not those that it names", "file", req.File, "digest", req.Digest)
		return fmt.Errorf("%s: the hub has other bytes than its listing says: %w", req.File, content.ErrDigestMismatch)
	}
	return nil
}

// elsewhere reads n bytes of a file from off as this node holds them, or peers. The hub is not asked, which would prove
// itself by itself.
func (f *Front) elsewhere(ctx context.Context, req content.Request, off, n int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, heldTimeout)
	defer cancel()
	reader, err := f.opts.Fetcher.OpenHere(ctx, req.WithoutUpstream())
	if err != nil {
		return nil, err
	}
	defer func() { _ = reader.Close() }()
	if reader.Size() != req.Size {
		return nil, fmt.Errorf("%s is of %d bytes, and the hub says %d: %w", req.Digest, reader.Size(), req.Size,
			content.ErrDigestMismatch)
	}
	ours, err := reader.Range(ctx, off, n)
	if err != nil {
		return nil, err
	}
	defer func() { _ = ours.Close() }()
	got := make([]byte, n)
	_, err = io.ReadFull(ours, got)
	return got, err
}

// gitFile is a file out of git: remembered, with a peer, or from the hub. Its name is checked wherever it comes from.
// What is in the store by then is read from there, so that readers hold no copies of it.
func (f *Front) gitFile(ctx context.Context, x *exchange, e *element, commit string) (content.Reader, record, error) {
	ctx, end := f.opts.Documents.Lease(ctx) // gitRoom is for what readers hold
	defer end()
	k := key("git", x.route.repo.name(), e.OID)
	if e.Size <= maxInline {
		data, rec, err := f.gitBytes(ctx, x, e, commit, k)
		return inMemory{data: data}, rec, err
	}
	if file, rec, ok := f.checkedFile(ctx, k); ok {
		return file, rec, nil
	}
	n := min(e.Size, maxGitBytes)
	if err := f.gitRoom.Acquire(ctx, n); err != nil {
		return nil, record{}, context.Cause(ctx)
	}
	release := sync.OnceFunc(func() { f.gitRoom.Release(n) })
	if file, rec, ok := f.checkedFile(ctx, k); ok { // by another reader, meanwhile
		release()
		return file, rec, nil
	}
	data, rec, err := f.gitBytes(ctx, x, e, commit, k)
	if err != nil {
		release()
		return nil, record{}, err
	}
	f.checked.Add(k, record{Digest: rec.Digest, Size: rec.Size})
	if file, rec, ok := f.checkedFile(ctx, k); ok {
		release()
		return file, rec, nil
	}
	return inMemory{data, release}, rec, nil
}

// checkedFile is the file under a key, where it is in the store and its name was checked.
func (f *Front) checkedFile(ctx context.Context, k string) (content.Reader, record, bool) {
	rec, ok := f.checked.Get(k)
	if !ok || !f.holds(rec) {
		return nil, record{}, false
	}
	file, err := f.opts.Fetcher.Open(ctx, content.Request{Digest: rec.Digest, Size: rec.Size})
	return file, rec, err == nil
}

// gitBytes are the bytes of a file out of git, under a key of the memo.
func (f *Front) gitBytes(ctx context.Context, x *exchange, e *element, commit, k string) ([]byte, record, error) {
	r := x.route.repo
	fresh := make(chan record, 1) // what this caller has got from the hub itself; the bytes are inline
	for range 2 {
		data, rec, err := f.document(ctx, x, k, forever, func(ctx context.Context) (record, error) {
			a, err := f.askOpen(ctx, call{method: http.MethodGet, path: r.file(commit, e.Path),
				authorization: x.Authorization()})
			if err != nil {
				return record{}, err
			}
			if !e.names(a.body) {
				return record{}, fmt.Errorf("GET %s: the hub's %d bytes are not those of git object %s: %w",
					r.file(commit, e.Path), len(a.body), e.OID, content.ErrDigestMismatch)
			}
			rec := f.keep(ctx, a.body)
			select {
			case fresh <- record{Digest: rec.Digest, Size: rec.Size, Inline: a.body}:
			default:
			}
			return rec, nil
		})
		if err != nil {
			select {
			case rec = <-fresh: // it has no room in the store
				return rec.Inline, rec, nil
			default:
				return nil, record{}, err
			}
		}
		if e.names(data) {
			return data, rec, nil
		}
		f.log.Error("another node's file does not match its name", "file", r.file(commit, e.Path), "object", e.OID)
		f.memo.forget(k)
	}
	return nil, record{}, fmt.Errorf("%s: %w", e.Path, content.ErrDigestMismatch)
}

// names reports whether data is the git object that e names.
func (e *element) names(data []byte) bool {
	sum := sha1.New() //nolint:gosec // as above
	_, _ = fmt.Fprintf(sum, "blob %d\x00", len(data))
	_, _ = sum.Write(data) // a hash never fails
	return int64(len(data)) == e.Size && hex.EncodeToString(sum.Sum(nil)) == strings.ToLower(e.OID)
}

// later is a reader of a file that comes as a whole. Its size is known before, so that the header of an answer need not
// wait.
type later struct {
	size int64
	done chan struct{}

	mu     sync.Mutex
	closed bool
	file   content.Reader // set before done is closed, as err is
	err    error
}

func newLater(size int64, get func() (content.Reader, error)) *later {
	l := &later{size: size, done: make(chan struct{})}
	go func() {
		defer close(l.done)
		file, err := get()
		if err == nil && file.Size() != size {
			err = fmt.Errorf("%d bytes came of %d: %w", file.Size(), size, content.ErrDigestMismatch)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.file, l.err = file, err; l.closed && file != nil {
			_ = file.Close()
		}
	}()
	return l
}

func (l *later) Size() int64 { return l.size }

// Arrived is all of it or nothing.
func (l *later) Arrived() int64 {
	select {
	case <-l.done:
		if l.err == nil {
			return l.file.Arrived()
		}
	default:
	}
	return 0
}

func (l *later) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.closed
	if l.closed = true; was || l.file == nil {
		return nil
	}
	return l.file.Close()
}

func (l *later) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 || off > l.size-n {
		return nil, errors.New("range outside the file")
	}
	return &laterRange{l: l, ctx: ctx, off: off, n: n}, nil
}

type laterRange struct {
	l      *later
	ctx    context.Context // of the reading
	off, n int64
	part   io.ReadCloser // nil: the file has not come yet
}

func (r *laterRange) Read(p []byte) (int, error) {
	select {
	case <-r.l.done:
	case <-r.ctx.Done():
		return 0, context.Cause(r.ctx)
	}
	if r.l.err != nil {
		return 0, r.l.err
	}
	if r.part == nil {
		var err error
		if r.part, err = r.l.file.Range(r.ctx, r.off, r.n); err != nil {
			return 0, err
		}
	}
	return r.part.Read(p)
}

func (r *laterRange) Close() error {
	if r.part == nil {
		return nil
	}
	return r.part.Close()
}

// inMemory is a reader of bytes that are here. release, where it is not nil, is called once nobody needs them.
type inMemory struct {
	data    []byte
	release func()
}

func (m inMemory) Size() int64    { return int64(len(m.data)) }
func (m inMemory) Arrived() int64 { return int64(len(m.data)) }

func (m inMemory) Close() error {
	if m.release != nil {
		m.release()
	}
	return nil
}

func (m inMemory) Range(_ context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 || off > m.Size()-n {
		return nil, errors.New("range outside the file")
	}
	return io.NopCloser(bytes.NewReader(m.data[off : off+n])), nil
}
