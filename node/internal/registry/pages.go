package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/shoal-cache/shoal/node/internal/content"
)

const (
	maxPages    = 128
	maxKeptPage = 64 << 10 // bytes; larger ones are passed on and not kept
)

// pages passes on tag lists and referrers, and keeps them for as long as a tag.
type pages struct {
	upstream Upstream
	timeout  time.Duration
	gate     *gate
	recent   *lru.Cache[string, page]
}

// page is an answer of a registry.
type page struct {
	body      []byte
	mediaType string
	link      string // header Link: where the next page is
	filters   string // header OCI-Filters-Applied
	at        time.Time
}

func newPages(upstream Upstream, timeout time.Duration, gate *gate) *pages {
	recent, err := lru.New[string, page](maxPages)
	if err != nil {
		panic(err) // only for a size that is not positive
	}
	return &pages{upstream: upstream, timeout: timeout, gate: gate, recent: recent}
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
	h := x.w.Header()
	if next := nextPage(p.link, x.r.URL); next != "" {
		h.Set("Link", next)
	}
	if p.filters != "" {
		h.Set("OCI-Filters-Applied", p.filters)
	}
	return x.writeJSON(p.body, p.mediaType)
}

func (p *pages) get(x *exchange, path string) (page, error) {
	repo, authorization := x.route.repo, x.authorization()
	query := x.r.URL.Query()
	query.Del("ns")
	accept := acceptOf(x)
	key := fmt.Sprintf("%s %s?%s %q", repo, path, query.Encode(), accept)
	last, known := p.recent.Get(key)
	if known && time.Since(last.at) < x.rule.TagTTL && p.gate.accepts(x.rule, repo, authorization) {
		return last, nil
	}
	ctx, cancel := context.WithTimeout(x.r.Context(), p.timeout)
	defer cancel()
	got, err := p.ask(ctx, repo, path, query, accept, authorization)
	switch {
	case err == nil:
		p.gate.confirm(ctx, x.rule, content.Request{Repository: repo, Authorization: authorization})
		if len(got.body) <= maxKeptPage {
			p.recent.Add(key, got)
		}
		return got, nil
	case !unreachable(err):
		p.gate.refused(repo, authorization, err)
		if errors.Is(err, content.ErrNotFound) {
			p.recent.Remove(key)
		}
		return page{}, err
	case !known:
		return page{}, err
	}
	return last, p.gate.offline(x.r.Context(), x.rule, repo, authorization, err)
}

func (p *pages) ask(ctx context.Context, repo content.Repository, path string, query url.Values, accept []string, authorization string) (page, error) {
	resp, err := p.upstream.Forward(ctx, repo, path, query, accept, authorization)
	if err != nil {
		return page{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return page{}, err
	}
	return page{
		body: body, mediaType: resp.Header.Get("Content-Type"), link: resp.Header.Get("Link"),
		filters: resp.Header.Get("OCI-Filters-Applied"), at: time.Now(),
	}, nil
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
