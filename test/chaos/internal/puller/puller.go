// Package puller is a container runtime as far as a mirror sees it, which knows the truth: it pulls as containerd does,
// the mirror first and the registry where that refuses, reads on from where a body broke off, and compares every byte
// of every answer with what it ought to be, so that it can tell who was wrong, and whether that one ended as if all
// were well.
package puller

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
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
	head, _, err := p.request(ctx, http.MethodHead, base+"/manifests/"+badregistry.Tag, 0)
	if err != nil {
		return fmt.Errorf("resolve: %w", err)
	}
	head.Body.Close()
	if got := head.Header.Get("Docker-Content-Digest"); got != m.Digest.String() {
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
	request, err := http.NewRequestWithContext(ctx, method, target, nil)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, target, err)
	}
	request.Header.Set("Accept", v1.MediaTypeImageManifest+", */*")
	request.Header.Set("User-Agent", badregistry.Client)
	if p.spec.Image.Private {
		request.SetBasicAuth(badregistry.User, badregistry.Password)
	}
	if offset > 0 {
		request.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	response, err := p.http.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode/100 != 2 {
		defer response.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(response.Body, 200)) // it is only quoted
		return nil, fmt.Errorf("%s %s: %s: %s", method, target, response.Status, bytes.TrimSpace(text))
	}
	return response, nil
}

// Steal asks for a private image without credentials by every way that a client has, and returns those that gave out
// its bytes. Others are names of registries and repositories under which it asks as well, first for what their tag is.
func Steal(ctx context.Context, spec Spec, others ...string) (stolen []string) {
	web := &http.Client{Transport: &http.Transport{DialContext: spec.Dial, DisableKeepAlives: true}}
	m := spec.Image
	var paths []string
	names := append([]string{spec.Namespace + "/" + m.Repository}, others...)
	for _, name := range names {
		registry, repository, _ := bytes.Cut([]byte(name), []byte("/"))
		base := "/v2/" + string(repository)
		paths = append(paths, fmt.Sprintf("%s/manifests/%s?ns=%s", base, badregistry.Tag, registry))
		paths = append(paths, fmt.Sprintf("%s/manifests/%s?ns=%s", base, m.Digest, registry))
		for _, b := range m.Blobs {
			paths = append(paths, fmt.Sprintf("%s/blobs/%s?ns=%s", base, b.Digest, registry))
		}
	}
	for _, path := range paths {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, spec.Mirror+path, nil)
		if err != nil {
			continue
		}
		request.Header.Set("Accept", v1.MediaTypeImageManifest+", */*")
		request.Header.Set("User-Agent", badregistry.Client)
		response, err := web.Do(request)
		if err != nil {
			continue // an agent that is down gives nothing away
		}
		// All of a manifest, because those of other repositories may begin as the private one does.
		got, _ := io.ReadAll(io.LimitReader(response.Body, max(1<<10, int64(len(m.Manifest))+1)))
		response.Body.Close()
		if response.StatusCode/100 == 2 && private(m, got) {
			stolen = append(stolen, path)
		}
	}
	return stolen
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
