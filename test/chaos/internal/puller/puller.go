// Package puller is a container runtime as far as a mirror sees it, which knows the truth: it pulls as containerd does,
// the mirror first and the registry where that refuses, reads on from where a body broke off, and compares every byte
// of every answer with what it ought to be, so that it can tell who was wrong, and whether that one ended as if all
// were well.
package puller

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-cache/shoal/test/internal/badregistry"
)

const (
	// parallelLayers and retries are containerd's.
	parallelLayers = 3
	retries        = 5
	// pulls is how often what runs the runtime tries, and between how long it waits, a short form of the kubelet's.
	pulls   = 4
	between = time.Second
)

// Spec is one pull.
type Spec struct {
	Image *badregistry.Image
	// Dial is from the node's network.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Mirror and Registry are base URLs; without a registry the mirror is all there is.
	Mirror, Registry string
	// Namespace is the registry's name.
	Namespace string
	// Tries is how often the whole is tried; 0 is as the kubelet does.
	Tries int
	// Tokens are what the registry gave for the password, which is asked for where there is none. nil: for this pull
	// alone.
	Tokens *Tokens
}

// Result is how a pull went.
type Result struct {
	// Err is nil for a pull that ended with every byte right.
	Err  error
	Took time.Duration
	// Tries is how often it was begun, Fallbacks are the requests that went to the registry, Resumed the bodies that
	// broke off.
	Tries, Fallbacks, Resumed int
	// Bad are the mirror's answers with wrong bytes.
	Bad []Bad
}

// Bad is an answer with wrong bytes, or one that ended before its end as if that were all.
type Bad struct {
	Digest digest.Digest
	// Offset is that of the first wrong byte in the blob.
	Offset int64
	// Clean is whether it ended as if all were well.
	Clean bool
	// Tag: the mirror said that this is what the tag names, and it is not.
	Tag bool
}

func (b Bad) String() string {
	if b.Tag {
		return fmt.Sprintf("a tag that is none of the image's, %s,", b.Digest)
	}
	return fmt.Sprintf("%s wrong from %d on", b.Digest, b.Offset)
}

// Pull pulls until all bytes are there, the tries are used up, or ctx ends.
func Pull(ctx context.Context, spec Spec) Result {
	p := &pull{spec: spec, began: time.Now()}
	p.http = &http.Client{Transport: &http.Transport{DialContext: spec.Dial, DisableCompression: true,
		MaxIdleConnsPerHost: parallelLayers}}
	defer p.http.CloseIdleConnections()
	if spec.Tries == 0 {
		spec.Tries = pulls
	}
	if p.spec.Tokens == nil {
		p.spec.Tokens = new(Tokens)
	}
	var err error
	for range spec.Tries {
		p.result.Tries++
		if err = p.once(ctx); err == nil || ctx.Err() != nil {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(between):
		}
	}
	p.result.Err, p.result.Took = err, time.Since(p.began)
	return p.result
}

type pull struct {
	spec  Spec
	http  *http.Client
	began time.Time

	mu     sync.Mutex
	result Result
}

func (p *pull) note(f func(*Result)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.result)
}

// once is what a runtime does for one request to pull: it resolves the tag, and reads manifest and blobs by digest.
func (p *pull) once(ctx context.Context) error {
	m := p.spec.Image
	base := "/v2/" + m.Repository
	head, mirror, err := p.request(ctx, http.MethodHead, base+"/manifests/"+badregistry.Tag, 0)
	if err != nil {
		return fmt.Errorf("resolve: %w", err)
	}
	head.Body.Close()
	if got := head.Header.Get("Docker-Content-Digest"); got != m.Digest.String() {
		if mirror && got != "" { // no registry here names another, so somebody else did
			p.note(func(r *Result) { r.Bad = append(r.Bad, Bad{Digest: digest.Digest(got), Clean: true, Tag: true}) })
		}
		return fmt.Errorf("resolve: the tag is %q", got)
	}
	if err := p.read(ctx, base+"/manifests/", v1.Descriptor{Digest: m.Digest,
		Size: int64(len(m.Manifest))}); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallelLayers)
	for _, blob := range m.Blobs {
		group.Go(func() error { return p.read(ctx, base+"/blobs/", blob) })
	}
	return group.Wait()
}

// read reads a blob whole, and asks for the rest of what breaks off. Wrong bytes end it, for a runtime finds those out
// at the end only, and then has to begin again.
func (p *pull) read(ctx context.Context, collection string, blob v1.Descriptor) error {
	truth := p.spec.Image.Content(blob.Digest)
	done := int64(0)
	for failures := 0; ; {
		n, err := p.answer(ctx, collection+blob.Digest.String(), blob.Digest, truth, done)
		done += n
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errWrong):
			return err
		case n > 0:
			failures = 0
		}
		if failures++; failures > retries || ctx.Err() != nil {
			return fmt.Errorf("%s after %d of %d bytes: %w", blob.Digest, done, blob.Size, err)
		}
		p.note(func(r *Result) { r.Resumed++ })
	}
}

var errWrong = errors.New("wrong bytes")

// answer reads one answer from offset on and compares it with the truth. It is nil when the blob's end was reached.
func (p *pull) answer(ctx context.Context, path string, d digest.Digest, truth []byte, offset int64) (int64, error) {
	response, mirror, err := p.request(ctx, http.MethodGet, path, offset)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	at := offset
	if response.StatusCode != http.StatusPartialContent {
		at = 0
	}
	got, wrongAt, err := compare(response.Body, truth, at)
	bad := wrongAt >= 0
	short := err == nil && at+got < int64(len(truth))
	if short && !bad {
		wrongAt = at + got
	}
	if mirror && (bad || short) {
		p.note(func(r *Result) { r.Bad = append(r.Bad, Bad{Digest: d, Offset: wrongAt, Clean: err == nil}) })
	}
	n := max(0, at+got-offset)
	switch {
	case bad:
		return n, fmt.Errorf("%s at %d, from the mirror: %v, ended with %w: %w", d, wrongAt, mirror, err, errWrong)
	case short:
		return n, io.ErrUnexpectedEOF
	default:
		return n, err
	}
}

// compare reads r to its end and returns how many bytes it had, the offset of the first wrong one or -1, and what r
// ended with.
func compare(r io.Reader, truth []byte, at int64) (got, wrongAt int64, err error) {
	buf := make([]byte, 64<<10)
	wrongAt = -1
	for {
		n, err := r.Read(buf)
		from, to := min(at+got, int64(len(truth))), min(at+got+int64(n), int64(len(truth)))
		if wrongAt < 0 && (int(to-from) < n || !bytes.Equal(buf[:n], truth[from:to])) {
			wrongAt = at + got
			for i := 0; i < n && at+got+int64(i) < int64(len(truth)) && buf[i] == truth[at+got+int64(i)]; i++ {
				wrongAt++
			}
		}
		got += int64(n)
		if errors.Is(err, io.EOF) {
			return got, wrongAt, nil
		}
		if err != nil {
			return got, wrongAt, err
		}
		if wrongAt >= 0 && got > int64(len(truth))+1<<20 {
			return got, wrongAt, errors.New("longer than the blob")
		}
	}
}

// request asks the mirror, and the registry where that does not answer with success.
func (p *pull) request(ctx context.Context, method, path string,
	offset int64) (response *http.Response, mirror bool, err error) {
	var problems []error
	if p.spec.Mirror != "" {
		response, err := p.ask(ctx, method, p.spec.Mirror+path+"?ns="+url.QueryEscape(p.spec.Namespace), offset)
		if err == nil {
			return response, true, nil
		}
		problems = append(problems, err)
		if ctx.Err() != nil || p.spec.Registry == "" {
			return nil, true, err
		}
		p.note(func(r *Result) { r.Fallbacks++ })
	}
	response, err = p.ask(ctx, method, p.spec.Registry+path, offset)
	if err != nil {
		return nil, false, errors.Join(append(problems, err)...)
	}
	return response, false, nil
}

func (p *pull) ask(ctx context.Context, method, target string, offset int64) (*http.Response, error) {
	for again := false; ; again = true {
		request, err := http.NewRequestWithContext(ctx, method, target, nil)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", method, target, err)
		}
		request.Header.Set("Accept", v1.MediaTypeImageManifest+", */*")
		request.Header.Set("User-Agent", badregistry.Client)
		p.spec.authorize(request)
		if offset > 0 {
			request.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
		}
		response, err := p.http.Do(request)
		if err != nil {
			return nil, err
		}
		if response.StatusCode/100 == 2 {
			return response, nil
		}
		text, _ := io.ReadAll(io.LimitReader(response.Body, 200)) // it is only quoted
		response.Body.Close()
		err = fmt.Errorf("%s %s: %s: %s", method, target, response.Status, bytes.TrimSpace(text))
		if response.StatusCode != http.StatusUnauthorized || again {
			return nil, err
		}
		if problem := p.getToken(ctx, response.Header.Get("WWW-Authenticate")); problem != nil {
			return nil, errors.Join(err, problem)
		}
	}
}

// Tokens are what a registry gave, by repository.
type Tokens struct{ m sync.Map }

func (t *Tokens) of(m *badregistry.Image) string {
	token, _ := t.m.Load(m.Repository)
	text, _ := token.(string)
	return text
}

// authorize shows what opens a private image, as far as it is there.
func (s Spec) authorize(request *http.Request) {
	switch m := s.Image; {
	case m.Private && !m.Bearer:
		request.SetBasicAuth(badregistry.User, badregistry.Password)
	case m.Private && s.Tokens != nil && s.Tokens.of(m) != "":
		request.Header.Set("Authorization", "Bearer "+s.Tokens.of(m))
	}
}

// getToken does what a challenge asks for, as a runtime does it: where the challenge says, and not at the mirror.
func (p *pull) getToken(ctx context.Context, challenge string) error {
	m := p.spec.Image
	fields := regexp.MustCompile(`^Bearer realm="([^"]+)",service="([^"]+)",scope="([^"]+)"`).FindStringSubmatch(
		challenge)
	if fields == nil || !m.Private {
		return errors.New("there is no token to be had")
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, fields[1]+"?"+url.Values{
		"service": {fields[2]}, "scope": {fields[3]},
	}.Encode(), nil)
	if err != nil {
		return fmt.Errorf("token: %w", err)
	}
	request.Header.Set("User-Agent", badregistry.Client)
	request.SetBasicAuth(badregistry.User, badregistry.Password)
	response, err := p.http.Do(request)
	if err != nil {
		return fmt.Errorf("token: %w", err)
	}
	defer response.Body.Close()
	var answer struct{ Token string }
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil || answer.Token == "" {
		return fmt.Errorf("token: %s: %w", response.Status, err)
	}
	p.spec.Tokens.m.Store(m.Repository, answer.Token)
	return nil
}

// Lists reads the pages about an image that a mirror may keep, and fails where they do not come.
func Lists(ctx context.Context, spec Spec) error {
	p := &pull{spec: spec}
	p.http = &http.Client{Transport: &http.Transport{DialContext: spec.Dial, DisableKeepAlives: true}}
	for _, page := range lists(spec.Image) {
		response, _, err := p.request(ctx, http.MethodGet, "/v2/"+spec.Image.Repository+page, 0)
		if err != nil {
			return err
		}
		response.Body.Close()
	}
	return nil
}

func lists(m *badregistry.Image) []string {
	return []string{"/tags/list", "/referrers/" + m.Digest.String()}
}

// Thief is what somebody shows who may not read.
type Thief int

// Thieves show nothing, a wrong password, a token that is made up, or what was good until it was revoked.
const (
	Nobody Thief = iota
	WrongPassword
	WrongToken
	Revoked
)

func (t Thief) String() string {
	return [...]string{"without credentials", "with a wrong password", "with a token that is made up",
		"with credentials that are revoked"}[t]
}

func (t Thief) authorize(request *http.Request, spec Spec) {
	switch t {
	case Nobody:
	case WrongPassword:
		request.SetBasicAuth(badregistry.User, "gue55")
	case WrongToken:
		request.Header.Set("Authorization", "Bearer "+digest.FromString("made up").Encoded())
	case Revoked:
		spec.authorize(request)
	}
}

// Steal asks for an image that the thief may not read by every way that a client has, and returns those that gave it
// out, or told what is known to who may read it alone. Others are names of registries and repositories under which it
// asks as well, first for what their tag is.
func Steal(ctx context.Context, spec Spec, thief Thief, others ...string) (stolen []string) {
	web := &http.Client{Transport: &http.Transport{DialContext: spec.Dial, DisableKeepAlives: true}}
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(thieves)
	for _, a := range attempts(spec, others) {
		group.Go(func() error {
			if a.succeeds(ctx, web, spec, thief) {
				mu.Lock()
				defer mu.Unlock()
				stolen = append(stolen, fmt.Sprintf("%s %s %s", a.method, a.path, a.ranges))
			}
			return nil
		})
	}
	_ = group.Wait() // nobody fails
	return stolen
}

// thieves is how many of a thief's questions are asked at one time.
const thieves = 4

func (a attempt) succeeds(ctx context.Context, web *http.Client, spec Spec, thief Thief) bool {
	request, err := http.NewRequestWithContext(ctx, a.method, spec.Mirror+a.path, nil)
	if err != nil {
		return false
	}
	request.Header.Set("Accept", v1.MediaTypeImageManifest+", */*")
	request.Header.Set("User-Agent", badregistry.Client)
	if a.ranges != "" {
		request.Header.Set("Range", a.ranges)
	}
	thief.authorize(request, spec)
	response, err := web.Do(request)
	if err != nil {
		return false // an agent that is down gives nothing away
	}
	defer response.Body.Close()
	// All of a manifest, because those of other repositories may begin as the private one does.
	got, _ := io.ReadAll(io.LimitReader(response.Body, max(1<<10, int64(len(spec.Image.Manifest))+1)))
	return response.StatusCode/100 == 2 && a.gives(response, got)
}

// attempt is one way to ask.
type attempt struct {
	method, path, ranges string
	// gives reports whether an answer that says to be good gives something away.
	gives func(response *http.Response, body []byte) bool
}

// sampled is how many bytes of the middle a thief asks for.
const sampled = 100

func attempts(spec Spec, others []string) (all []attempt) {
	m := spec.Image
	begins := func(_ *http.Response, body []byte) bool { return private(m, body) }
	own := spec.Namespace + "/" + m.Repository
	for _, name := range append([]string{own}, others...) {
		registry, repository, _ := strings.Cut(name, "/")
		base, of := "/v2/"+repository, "?ns="+url.QueryEscape(registry)
		all = append(all, attempt{http.MethodGet, base + "/manifests/" + badregistry.Tag + of, "", begins})
		for _, b := range append([]v1.Descriptor{{Digest: m.Digest, Size: int64(len(m.Manifest))}}, m.Blobs...) {
			path := base + "/blobs/" + b.Digest.String() + of
			if b.Digest == m.Digest {
				path = base + "/manifests/" + b.Digest.String() + of
			}
			truth := m.Content(b.Digest)
			at := int64(len(truth)) / 2
			middle := truth[at:min(at+sampled, int64(len(truth)))]
			all = append(all, attempt{http.MethodGet, path, "", begins},
				// What a registry says that claims everything is its own word.
				attempt{http.MethodHead, path, "", func(response *http.Response, _ []byte) bool {
					return response.ContentLength == b.Size && b.Size != badregistry.Claimed
				}},
				attempt{http.MethodGet, path, fmt.Sprintf("bytes=%d-%d", at, at+int64(len(middle))-1),
					func(_ *http.Response, body []byte) bool {
						return len(middle) >= 16 && bytes.Contains(body, middle)
					}})
		}
	}
	// What the repository is asked that no other could know.
	anything := func(*http.Response, []byte) bool { return true }
	of := "?ns=" + url.QueryEscape(spec.Namespace)
	all = append(all, attempt{http.MethodHead, "/v2/" + m.Repository + "/manifests/" + badregistry.Tag + of, "",
		anything})
	for _, page := range lists(m) {
		all = append(all, attempt{http.MethodGet, "/v2/" + m.Repository + page + of, "", anything})
	}
	return all
}

// private reports whether what was got begins one of the image's blobs.
func private(m *badregistry.Image, got []byte) bool {
	if len(got) < 16 {
		return false
	}
	for _, content := range append([]v1.Descriptor{{Digest: m.Digest}}, m.Blobs...) {
		if truth := m.Content(content.Digest); bytes.HasPrefix(truth, got[:min(len(got), len(truth))]) {
			return true
		}
	}
	return false
}
