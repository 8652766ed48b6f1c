package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/gate"
	"github.com/shoal-cache/shoal/node/internal/room"
)

// maxKeptPage is the longest page in bytes that is kept. Larger ones are passed on.
const maxKeptPage = 64 << 10

// pages passes on tag lists and referrers, and keeps them for as long as a tag.
type pages struct {
	upstream Upstream
	timeout  time.Duration
	gate     *gate.Gate
	recent   room.Shelf[page]
}

// page is an answer of a registry.
type page struct {
	body      []byte
	mediaType string
	link      string // header Link: where the next page is
	filters   string // header OCI-Filters-Applied
	at        time.Time
	stale     bool // the registry could not be asked whether it still holds
}

func newPages(upstream Upstream, timeout time.Duration, gate *gate.Gate, documents *room.Room) *pages {
	return &pages{
		upstream: upstream, timeout: timeout, gate: gate, recent: room.Keep[page](documents, "registries' pages"),
	}
}

// size is about how many bytes a page takes in memory. A registry chooses how long its headers are, too.
func (p page) size() int64 {
	return int64(len(p.body) + len(p.mediaType) + len(p.link) + len(p.filters))
}

// page answers tags/list and referrers.
func (f *Front) page(x *exchange) error {
	path := "tags/list"
	if x.route.endpoint == endReferrers {
		path = "referrers/" + x.route.digest.String()
	}
	p, err := f.pages.get(x, path)
	if err != nil {
		return err
	}
	room.Shrink(x.R.Context(), int64(len(p.body)))
	h := x.W.Header()
	if next := nextPage(p.link, x.R.URL); next != "" {
		h.Set("Link", next)
	}
	if p.stale {
		x.outOfDate(p.at)
	}
	if p.filters != "" {
		h.Set("OCI-Filters-Applied", p.filters)
	}
	return x.writeJSON(p.body, p.mediaType)
}

func (p *pages) get(x *exchange, path string) (page, error) {
	repo, authorization := x.route.repo, x.Authorization()
	source := gate.Repository(repo)
	query := x.R.URL.Query()
	query.Del("ns")
	accept := acceptOf(x)
	key := questionKey(repo, path+"?"+query.Encode(), accept)
	last, known := p.recent.Get(key)
	if known && time.Since(last.at) < x.rule.TagTTL && p.gate.Accepts(x.rule, source, authorization) {
		return last, nil
	}
	ctx, cancel := context.WithTimeout(x.R.Context(), p.timeout)
	defer cancel()
	got, err := p.ask(ctx, repo, path, query, accept, authorization)
	switch {
	case err == nil:
		p.gate.Confirm(ctx, x.rule, gate.Request{Source: source, Credentials: authorization})
		if size := got.size(); size <= maxKeptPage {
			p.recent.Add(key, got, size)
		}
		return got, nil
	case content.Throttled(err):
		err = p.gate.Throttled(x.R.Context(), x.rule, source, authorization, err)
	case gate.Unanswered(err):
		err = p.gate.Offline(x.R.Context(), x.rule, source, authorization, err)
	default:
		p.gate.Refused(source, authorization, err)
		if errors.Is(err, content.ErrNotFound) {
			p.recent.Remove(key)
		}
	}
	if err == nil && !known {
		err = fmt.Errorf("%s of %s is not kept, and its registry does not answer: %w", path, repo,
			content.ErrUnavailable)
	}
	last.stale = true
	return last, err
}

func (p *pages) ask(ctx context.Context, repo content.Repository, path string, query url.Values, accept []string,
	authorization string) (page, error) {
	resp, err := p.upstream.Forward(ctx, repo, path, query, accept, authorization)
	if err != nil {
		return page{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return page{}, err
	}
	if !answers(path, body) {
		return page{}, fmt.Errorf("%s of %s: %w: another document", path, repo, content.ErrBadAnswer)
	}
	return page{
		body: body, mediaType: resp.Header.Get("Content-Type"), link: resp.Header.Get("Link"),
		filters: resp.Header.Get("OCI-Filters-Applied"), at: time.Now(),
	}, nil
}

// answers reports whether a document is what was asked for, and not the page of some proxy, which would accept
// everyone.
func answers(path string, document []byte) bool {
	list := "tags"
	if strings.HasPrefix(path, "referrers/") {
		list = "manifests"
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(document, &fields) != nil {
		return false
	}
	_, ok := fields[list]
	return ok
}

// nextPage is the registry's Link header for a client of this front: the same path as the client used, with the
// registry's query and the client's ns. It is "" where link names no next page.
func nextPage(link string, asked *url.URL) string {
	target, params, found := strings.Cut(link, ">")
	target, isLink := strings.CutPrefix(strings.TrimSpace(target), "<")
	if !found || !isLink || !strings.Contains(params, "next") {
		return ""
	}
	u, err := url.Parse(target)
	if err != nil {
		return ""
	}
	query := u.Query()
	query.Del("ns") // that of an endpoint of this node's configuration
	if ns := asked.Query().Get("ns"); ns != "" {
		query.Set("ns", ns)
	}
	next := url.URL{Path: asked.Path, RawQuery: query.Encode()}
	return "<" + next.String() + `>; rel="next"`
}

// outOfDate says that an answer is of another time, because the registry does not give one.
func (x *exchange) outOfDate(at time.Time) {
	age := max(0, int(time.Since(at).Seconds()))
	x.W.Header().Set("Age", strconv.Itoa(age))
	// RFC 7234, section 5.5.1
	x.W.Header().Set("Warning", fmt.Sprintf(`110 shoal "read %d s ago; the registry does not answer"`, age))
}
