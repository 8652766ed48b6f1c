// Package client is the plain OCI client of the benchmark. It pulls as containerd does: the tag by HEAD, the manifest
// by digest, then three layers at a time, each request going to the mirrors in order and to the registry last. What it
// reads it hashes and throws away, so that neither unpacking nor the disk of one machine limits many hosts.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-cache/shoal/test/hubtest"
	"github.com/shoal-cache/shoal/test/internal/origin"
)

const (
	// parallelLayers is containerd's default of max_concurrent_downloads.
	parallelLayers = 3
	// parallelRanges is the number of reads that a lazily loaded file system has under way.
	parallelRanges = 4
	// sampleEvery is the distance between two points of a progress curve.
	sampleEvery = 50 * time.Millisecond
	// retriesWithoutProgress is how often a body that broke off is asked for again, as containerd does it.
	retriesWithoutProgress = 5
	maxManifestSize        = 4 << 20
)

// Spec is one pull.
type Spec struct {
	// Endpoints are the base URLs of the mirrors in order, and of the registry itself last.
	Endpoints []string
	// Namespace is sent to every endpoint but the last, as containerd sends ?ns=.
	Namespace  string
	Repository string
	Tag        string
	// Model, where set, is downloaded from the first endpoint, which is a model hub's, in place of an image: clients of
	// hubs know one address.
	Model string `json:",omitempty"`
	// Start is when to begin; the process is up and waiting by then.
	Start time.Time
	// Timeout is how long the pull may take from Start on.
	Timeout time.Duration
	// Skip are the blobs that this host has already.
	Skip []digest.Digest `json:",omitempty"`
	// Ranges, where set, are read instead of whole layers, and compared with the files in Truth, a directory that
	// origin.Write has filled.
	Ranges []Range `json:",omitempty"`
	Truth  string  `json:",omitempty"`
	// Unverified leaves the hashing out, to weigh a server that has verified already.
	Unverified bool
	// CAFile is trusted for HTTPS endpoints, where set.
	CAFile string `json:",omitempty"`
	// Curl has blobs fetched by curl, a client of other people's making, where each layer's bytes go through a process
	// of its own.
	Curl bool `json:",omitempty"`
	// Keep is a directory to which blobs are written, where set.
	Keep string `json:",omitempty"`
	// Again is how often a blob is read from its start once more that broke off and was wrong at its end, as what runs
	// the runtime begins a pull anew. One that is wrong and did not break off is a failure all the same.
	Again int `json:",omitempty"`
}

// Range is a part of a layer, in bytes.
type Range struct {
	Digest         digest.Digest
	Offset, Length int64
}

// Result is how a pull went.
type Result struct {
	// Err is empty for a pull that ended with every byte right.
	Err string `json:",omitempty"`
	// Started and Done are when it began and ended.
	Started, Done time.Time
	// FirstByte is the time from Started until the first byte of a blob.
	FirstByte time.Duration
	// Blobs are the blobs that were read whole, each with the time from its request until its first byte.
	Blobs []Blob `json:",omitempty"`
	// Bytes are what arrived of blobs, and bytes that arrived twice count twice.
	Bytes int64
	// Curve is the progress: the bytes there at each moment since Started.
	Curve []Point
	// Latencies are those of the range reads, in order of their end.
	Latencies []time.Duration `json:",omitempty"`
	// Fallbacks are the requests that a mirror refused and the next endpoint was asked, Resumed the bodies that broke
	// off, and Again the blobs that were read once more from their start.
	Fallbacks, Resumed, Again int64
}

// Blob is how long a blob's first byte took.
type Blob struct {
	Size      int64
	FirstByte time.Duration
}

// Point is a point of a progress curve.
type Point struct {
	At    time.Duration
	Bytes int64
}

// Run waits for spec.Start, pulls, and reports. Only ctx ending earlier than the pull's own timeout is not a Result.
func Run(ctx context.Context, spec Spec) (Result, error) {
	web, err := newHTTPClient(spec.CAFile)
	if err != nil {
		return Result{}, err
	}
	select {
	case <-ctx.Done():
		return Result{}, fmt.Errorf("waiting for the start: %w", context.Cause(ctx))
	case <-time.After(time.Until(spec.Start)):
	}
	p := &pull{spec: spec, http: web, started: time.Now()}
	stop := Sample(p.started, sampleEvery, p.bytes.Load)
	deadline, cancel := context.WithTimeout(ctx, spec.Timeout)
	defer cancel()
	err = p.run(deadline)
	r := Result{
		Started: p.started, Done: time.Now(), FirstByte: time.Duration(p.first.Load()), Bytes: p.bytes.Load(),
		Fallbacks: p.fallbacks.Load(), Resumed: p.resumed.Load(), Latencies: p.latencies,
		Blobs: p.blobs, Again: p.again.Load(),
	}
	r.Curve = append(stop(), Point{At: r.Done.Sub(r.Started), Bytes: r.Bytes})
	if err != nil {
		r.Err = err.Error()
	}
	return r, nil
}

type pull struct {
	spec    Spec
	http    *http.Client
	started time.Time

	bytes, first, fallbacks, resumed, again atomic.Int64

	mu        sync.Mutex
	latencies []time.Duration
	blobs     []Blob
}

func (p *pull) run(ctx context.Context) error {
	if p.spec.Model != "" {
		_, err := hubtest.Snapshot(ctx, p.spec.Endpoints[0], p.spec.Model, p.came)
		return err
	}
	manifest, err := p.manifest(ctx)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	if len(p.spec.Ranges) > 0 {
		group.SetLimit(parallelRanges)
		for _, r := range p.spec.Ranges {
			group.Go(func() error { return p.readRange(ctx, r) })
		}
		return group.Wait()
	}
	group.SetLimit(parallelLayers)
	for _, blob := range append([]v1.Descriptor{manifest.Config}, manifest.Layers...) {
		if !slices.Contains(p.spec.Skip, blob.Digest) {
			group.Go(func() error { return p.wholeBlob(ctx, blob) })
		}
	}
	return group.Wait()
}

func (p *pull) manifest(ctx context.Context) (v1.Manifest, error) {
	base := "/v2/" + p.spec.Repository + "/manifests/"
	head, err := p.request(ctx, http.MethodHead, base+p.spec.Tag, nil)
	if err != nil {
		return v1.Manifest{}, err
	}
	head.Body.Close()
	want, err := digest.Parse(head.Header.Get("Docker-Content-Digest"))
	if err != nil {
		return v1.Manifest{}, fmt.Errorf("digest of %s:%s: %w", p.spec.Repository, p.spec.Tag, err)
	}
	if len(p.spec.Skip) > 0 && slices.Contains(p.spec.Skip, want) {
		return v1.Manifest{}, nil
	}
	response, err := p.request(ctx, http.MethodGet, base+want.String(), nil)
	if err != nil {
		return v1.Manifest{}, err
	}
	defer response.Body.Close()
	b, err := io.ReadAll(io.LimitReader(response.Body, maxManifestSize))
	if err != nil {
		return v1.Manifest{}, fmt.Errorf("manifest %s: %w", want, err)
	}
	if digest.FromBytes(b) != want {
		return v1.Manifest{}, fmt.Errorf("manifest %s: %d bytes of another digest", want, len(b))
	}
	var m v1.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return v1.Manifest{}, fmt.Errorf("manifest %s: %w", want, err)
	}
	return m, nil
}

// errAnew ends the reading of a blob that broke off and is wrong.
var errAnew = errors.New("the body broke off before")

// wholeBlob reads one blob whole, once more where that was in vain.
func (p *pull) wholeBlob(ctx context.Context, blob v1.Descriptor) error {
	for again := 0; ; again++ {
		err := p.blob(ctx, blob)
		if again >= p.spec.Again || !errors.Is(err, errAnew) || ctx.Err() != nil {
			return err
		}
		p.again.Add(1)
	}
}

// blob reads one blob whole, and asks again for the rest of a body that breaks off.
func (p *pull) blob(ctx context.Context, blob v1.Descriptor) error {
	sink := io.Discard
	verifier := blob.Digest.Verifier()
	if !p.spec.Unverified {
		sink = verifier
	}
	if p.spec.Keep != "" {
		file, err := os.Create(filepath.Join(p.spec.Keep, blob.Digest.Encoded()))
		if err != nil {
			return err
		}
		defer file.Close()
		sink = io.MultiWriter(file, sink)
	}
	sink = &firstByte{Writer: sink, pull: p, size: blob.Size, asked: time.Now()}
	buf := make([]byte, 256<<10)
	done, broke := int64(0), false
	for failures := 0; done < blob.Size; {
		n, err := p.copyFrom(ctx, blob.Digest, done, sink, buf)
		done += n
		if err == nil && done < blob.Size {
			err = io.ErrUnexpectedEOF
		}
		if err == nil {
			break
		}
		if n > 0 {
			failures = 0
		}
		if failures++; failures > retriesWithoutProgress || ctx.Err() != nil {
			return fmt.Errorf("blob %s after %d of %d bytes: %w", blob.Digest, done, blob.Size, err)
		}
		p.resumed.Add(1)
		broke = true
	}
	if done != blob.Size || !p.spec.Unverified && !verifier.Verified() {
		err := fmt.Errorf("blob %s: %d bytes of another digest; %d were promised", blob.Digest, done, blob.Size)
		if broke {
			err = fmt.Errorf("%w: %w", err, errAnew)
		}
		return err
	}
	return nil
}

// firstByte notes when the first byte of a blob is written.
type firstByte struct {
	io.Writer
	pull  *pull
	size  int64
	asked time.Time
	came  bool
}

func (f *firstByte) Write(b []byte) (int, error) {
	if !f.came {
		f.came = true
		f.pull.mu.Lock()
		f.pull.blobs = append(f.pull.blobs, Blob{Size: f.size, FirstByte: time.Since(f.asked)})
		f.pull.mu.Unlock()
	}
	return f.Writer.Write(b)
}

// copyFrom writes the blob's bytes from offset on to sink until the body ends.
func (p *pull) copyFrom(ctx context.Context, d digest.Digest, offset int64, sink io.Writer, buf []byte) (int64, error) {
	if p.spec.Curl {
		return p.curl(ctx, d, offset, sink, buf)
	}
	header := http.Header{}
	if offset > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	response, err := p.request(ctx, http.MethodGet, "/v2/"+p.spec.Repository+"/blobs/"+d.String(), header)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	body := &progress{r: response.Body, pull: p}
	if offset > 0 && response.StatusCode != http.StatusPartialContent {
		if _, err := io.CopyN(io.Discard, body, offset); err != nil {
			return 0, fmt.Errorf("bytes before %d: %w", offset, err)
		}
	}
	return io.CopyBuffer(sink, body, buf)
}

func (p *pull) readRange(ctx context.Context, r Range) error {
	begin := time.Now()
	header := http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", r.Offset, r.Offset+r.Length-1)}}
	response, err := p.request(ctx, http.MethodGet, "/v2/"+p.spec.Repository+"/blobs/"+r.Digest.String(), header)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body := &progress{r: response.Body, pull: p}
	if response.StatusCode != http.StatusPartialContent {
		// A server may answer a Range with the whole (RFC 9110, section 14.2); what stands before it is read for
		// nothing.
		if _, err := io.CopyN(io.Discard, body, r.Offset); err != nil {
			return fmt.Errorf("bytes before range %d+%d of %s: %w", r.Offset, r.Length, r.Digest, err)
		}
	}
	got, err := io.ReadAll(io.LimitReader(body, r.Length))
	if err != nil {
		return fmt.Errorf("range %d+%d of %s: %w", r.Offset, r.Length, r.Digest, err)
	}
	took := time.Since(begin)
	want := make([]byte, r.Length)
	truth, err := os.Open(origin.BlobPath(p.spec.Truth, r.Digest))
	if err != nil {
		return fmt.Errorf("true bytes of %s: %w", r.Digest, err)
	}
	defer truth.Close()
	if _, err := truth.ReadAt(want, r.Offset); err != nil {
		return fmt.Errorf("true bytes of %s: %w", filepath.Base(truth.Name()), err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("range %d+%d of %s: wrong bytes", r.Offset, r.Length, r.Digest)
	}
	p.mu.Lock()
	p.latencies = append(p.latencies, took)
	p.mu.Unlock()
	return nil
}

// request asks the endpoints in turn until one answers with success.
func (p *pull) request(ctx context.Context, method, path string, header http.Header) (*http.Response, error) {
	var problems []error
	for i, endpoint := range p.spec.Endpoints {
		target := endpoint + path
		last := i == len(p.spec.Endpoints)-1
		if p.spec.Namespace != "" && !last {
			target += "?ns=" + url.QueryEscape(p.spec.Namespace)
		}
		response, err := p.ask(ctx, method, target, header)
		if err == nil {
			return response, nil
		}
		problems = append(problems, err)
		if ctx.Err() != nil {
			break
		}
		if !last {
			p.fallbacks.Add(1)
		}
	}
	return nil, errors.Join(problems...)
}

func (p *pull) ask(ctx context.Context, method, target string, header http.Header) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, target, nil)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, target, err)
	}
	maps.Copy(request.Header, header)
	request.Header.Set("Accept", v1.MediaTypeImageManifest+", */*")
	response, err := p.http.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode/100 != 2 {
		response.Body.Close()
		return nil, fmt.Errorf("%s %s: %s", method, target, response.Status)
	}
	return response, nil
}

// Sample begins a progress curve with a point after each interval. The function it returns ends it.
func Sample(began time.Time, every time.Duration, bytes func() int64) (stop func() []Point) {
	ended := make(chan struct{})
	curve := make(chan []Point, 1)
	go func() {
		var points []Point
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			select {
			case <-ended:
				curve <- points
				return
			case now := <-ticker.C:
				points = append(points, Point{At: now.Sub(began), Bytes: bytes()})
			}
		}
	}()
	return func() []Point {
		close(ended)
		return <-curve
	}
}

// progress counts what is read of a blob.
type progress struct {
	r    io.Reader
	pull *pull
}

func (c *progress) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.pull.came(n)
	return n, err
}

// came notes n bytes that have come.
func (p *pull) came(n int) {
	if n > 0 && p.bytes.Add(int64(n)) == int64(n) {
		p.first.Store(int64(time.Since(p.started)))
	}
}
