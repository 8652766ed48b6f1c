package resolve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/shoal-cache/shoal/api/registries"
	"github.com/shoal-cache/shoal/api/v1alpha1"
)

// maxPages bounds the pages of a listing, as agents do: a repository has a thousand files on each.
const maxPages = 10

// refusal is an answer of a hub other than success.
type refusal struct {
	path    string
	status  int
	message string // the hub's own, "" for none
}

func (r *refusal) Error() string {
	s := fmt.Sprintf("the hub answered %d %s to GET %s", r.status, http.StatusText(r.status), r.path)
	if r.message != "" {
		s += ": " + r.message
	}
	return s
}

// hub asks a model hub, with one caller's token.
type hub struct {
	base      *url.URL
	transport http.RoundTripper
	token     string
}

// identifyHub fills in what follows from the names alone.
func (r *Resolver) identifyHub(a v1alpha1.Artifact) (v1alpha1.ResolvedArtifact, error) {
	resolved := v1alpha1.ResolvedArtifact{Source: a.Source(), Tag: a.Hub.Revision}
	if r.Hub == nil {
		return resolved, errors.New("this operator knows no hub: set --hub-endpoint, which the " +
			"chart does with hub.enabled")
	}
	resolved.Repository = registries.Canonical(r.Hub.Host) + "/" + a.Hub.Repository
	return resolved, nil
}

// askHub finds the commit of a revision, and how large the files are that the pin keeps of it.
func (r *Resolver) askHub(ctx context.Context, by http.RoundTripper, resolved *v1alpha1.ResolvedArtifact,
	a *v1alpha1.HubArtifact, o Options) error {
	h := &hub{base: r.Hub, transport: by}
	if c, ok := o.Credentials.For(resolved.Repository); ok {
		var err error
		if h.token, err = c.HubToken(); err != nil {
			return &Error{Reason: v1alpha1.ReasonInvalidSecret, Err: fmt.Errorf("pull secret: %w", err)}
		}
	}
	api := strings.TrimSuffix(r.Hub.String(), "/") + "/api/" + kindOf(a.Repository)
	var info struct {
		SHA string `json:"sha"`
	}
	if _, err := h.get(ctx, api+"/revision/"+url.PathEscape(a.Revision), &info); err != nil {
		return err
	}
	if !isCommit.MatchString(info.SHA) {
		return fmt.Errorf("the hub names no commit for revision %q, but %.64q", a.Revision, info.SHA)
	}
	size, files, err := h.measure(ctx, api+"/tree/"+info.SHA+"?recursive=true", a)
	if err != nil {
		return err
	}
	if files == 0 {
		return &Error{Reason: v1alpha1.ReasonNotFoundUpstream,
			Err: fmt.Errorf("no file of commit %s matches %s", info.SHA, strings.Join(a.Files, ", "))}
	}
	resolved.Hub, resolved.Size = &v1alpha1.ResolvedHub{Commit: info.SHA, Files: a.Files}, size
	return nil
}

var isCommit = regexp.MustCompile(`^[0-9a-f]{40}$`)

// kindOf is the repository's path in the hub's API.
func kindOf(repository string) string {
	for _, kind := range []string{"datasets/", "spaces/"} {
		if strings.HasPrefix(repository, kind) {
			return repository
		}
	}
	return "models/" + repository
}

// measure sums up the files that match, from the page at a URL on.
func (h *hub) measure(ctx context.Context, at string, a *v1alpha1.HubArtifact) (size int64, files int, err error) {
	seen := map[string]bool{}
	for range maxPages {
		if seen[at] {
			return 0, 0, fmt.Errorf("the hub's listing has no end: the page %.200q comes after itself", at)
		}
		seen[at] = true
		var page []struct {
			Type string `json:"type"`
			Path string `json:"path"`
			Size int64  `json:"size"`
		}
		if at, err = h.get(ctx, at, &page); err != nil {
			return 0, 0, err
		}
		for _, e := range page {
			if e.Type != "file" || !a.Keeps(e.Path) {
				continue
			}
			if files++; e.Size < 0 || e.Size > maxSize || size > maxSize-e.Size {
				return 0, 0, fmt.Errorf("the hub says that %.128q has %d bytes", e.Path, e.Size)
			}
			size += e.Size
		}
		if at == "" {
			return size, files, nil
		}
	}
	return 0, 0, &Error{Reason: v1alpha1.ReasonInvalidSpec,
		Err: fmt.Errorf("the repository has more than %d files, which no pin takes", 1000*maxPages)}
}

// get reads the JSON document at a URL, and gives that of the next page, "" where there is none. It stays with the hub
// whatever the answer says, because the token is the hub's alone.
func (h *hub) get(ctx context.Context, at string, into any) (next string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return "", err
	}
	path := req.URL.RequestURI()
	if h.token != "" {
		req.Header.Set("Authorization", "Bearer "+h.token)
	}
	client := http.Client{Transport: h.transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		said := resp.Header.Get("X-Error-Message")
		return "", &refusal{path, resp.StatusCode, said[:min(len(said), 200)]}
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if err := json.Unmarshal(body, into); err != nil {
		return "", fmt.Errorf("GET %s: the hub's answer is not what it should be: %w", path, err)
	}
	return h.nextPage(resp)
}

// nextPage is the URL of rel="next" in an answer's Link headers.
func (h *hub) nextPage(resp *http.Response) (string, error) {
	for _, l := range registries.Links(resp.Header) {
		if l.Rel != "next" {
			continue
		}
		next, err := registries.Below(h.base, resp.Request.URL, l.Target)
		if err != nil {
			return "", fmt.Errorf("the hub's listing goes on where nothing can be asked: %w", err)
		}
		return next.String(), nil
	}
	return "", nil
}
