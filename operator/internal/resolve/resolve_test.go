package resolve_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/operator/internal/resolve"
)

// direct reaches every registry at its own address.
func direct(string) http.RoundTripper { return http.DefaultTransport }

func newRegistry(t *testing.T) (host string, requests *atomic.Int64) {
	t.Helper()
	requests = new(atomic.Int64)
	inner := registry.New(registry.WithReferrersSupport(true), registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/manifests/") {
			requests.Add(1)
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://"), requests
}

func newImage(t *testing.T, size int64) v1.Image {
	t.Helper()
	image, err := random.Image(size, 1)
	require.NoError(t, err)
	return image
}

func push(t *testing.T, reference string, index v1.ImageIndex, image v1.Image) {
	t.Helper()
	tag, err := name.NewTag(reference)
	require.NoError(t, err)
	if index != nil {
		require.NoError(t, remote.WriteIndex(tag, index))
		return
	}
	require.NoError(t, remote.Write(tag, image))
}

func bytesOf(t *testing.T, image v1.Image) int64 {
	t.Helper()
	m, err := image.Manifest()
	require.NoError(t, err)
	n, err := image.Size()
	require.NoError(t, err)
	n += m.Config.Size
	for _, l := range m.Layers {
		n += l.Size
	}
	return n
}

func TestPlatformsOfAnIndex(t *testing.T) {
	t.Parallel()
	host, _ := newRegistry(t)
	amd, arm := newImage(t, 1000), newImage(t, 3000)
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: amd, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux",
			Architecture: "amd64"}}},
		mutate.IndexAddendum{Add: arm, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux",
			Architecture: "arm64", Variant: "v8"}}},
		mutate.IndexAddendum{Add: newImage(t, 50),
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}}})
	push(t, host+"/app:1", index, nil)
	own, err := index.Size()
	require.NoError(t, err)

	for name, tc := range map[string]struct {
		options resolve.Options
		want    int64
		fails   string
	}{
		"one platform": {resolve.Options{Platforms: []string{"linux/amd64"}},
			own + bytesOf(t, amd), ""},
		"with its variant": {resolve.Options{Platforms: []string{"linux/arm64/v8"}},
			own + bytesOf(t, arm), ""},
		"several are all kept": {resolve.Options{Platforms: []string{"linux/amd64", "linux/arm64"}},
			own + bytesOf(t, amd) + bytesOf(t, arm), ""},
		"each node's own: the largest": {resolve.Options{NodePlatforms: []string{"linux/amd64", "linux/arm64"}},
			own + bytesOf(t, arm), ""},
		"one that the index does not have": {resolve.Options{Platforms: []string{"windows/amd64"}}, 0,
			"it has linux/amd64, linux/arm64/v8"},
		"a variant that the index has none": {resolve.Options{Platforms: []string{"linux/amd64/v3"}}, 0,
			"no manifest for platform linux/amd64/v3"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := resolve.New(direct, time.Now).Resolve(t.Context(), v1alpha1.Artifact{Image: host + "/app:1"},
				tc.options)
			if tc.fails != "" {
				var failure *resolve.Error
				require.ErrorAs(t, err, &failure)
				require.Equal(t, v1alpha1.ReasonNoSuchPlatform, failure.Reason)
				require.ErrorContains(t, err, tc.fails)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tc.want, got.Size)
		})
	}
}

func TestNamesWithoutRegistry(t *testing.T) {
	t.Parallel()
	r := resolve.New(nil, time.Now)
	digest := "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824" // of "hello"
	// as any IPFS client computes it
	cid := "bafkreibm6jg3ux5qumhcn2b3flc3tyu6dmlb4xa7u5bf44yegnrjhc4yeq"

	got, err := r.Resolve(t.Context(), v1alpha1.Artifact{Digest: digest}, resolve.Options{})
	require.NoError(t, err)
	require.Equal(t, cid, got.CID)

	got, err = r.Resolve(t.Context(), v1alpha1.Artifact{CID: cid}, resolve.Options{})
	require.NoError(t, err)
	require.Equal(t, digest, got.Digest)

	dag := "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"
	got, err = r.Resolve(t.Context(), v1alpha1.Artifact{CID: dag}, resolve.Options{})
	require.NoError(t, err)
	require.Equal(t, dag, got.CID)
	require.Empty(t, got.Digest)

	_, err = r.Resolve(t.Context(), v1alpha1.Artifact{CID: dag, Repository: "a.example/b"}, resolve.Options{})
	require.ErrorContains(t, err, "remove repository")

	cut := "bafkrefbm6jg3ux5qumhcn2b3flc3tyu6dmlb4xa" // of the first 20 bytes of the hash alone
	got, err = r.Resolve(t.Context(), v1alpha1.Artifact{CID: cut}, resolve.Options{})
	require.NoError(t, err)
	require.Empty(t, got.Digest)
}

// An agent remembers the tag of what it fetched as the newest answer for it, and its runtime runs the image by it.
// throttlesTags answers no question about a tag.
type throttlesTags struct{}

func (throttlesTags) RoundTrip(req *http.Request) (*http.Response, error) {
	if strings.HasSuffix(req.URL.Path, "/manifests/1") {
		return &http.Response{StatusCode: http.StatusTooManyRequests, Request: req, Body: http.NoBody}, nil
	}
	return http.DefaultTransport.RoundTrip(req)
}

func TestNames_ATagBesideADigestIsKeptForAsLongAsItNamesThat(t *testing.T) {
	t.Parallel()
	host, _ := newRegistry(t)
	old := newImage(t, 10)
	push(t, host+"/app:1", nil, old)
	digest, err := old.Digest()
	require.NoError(t, err)
	r, a := resolve.New(direct, time.Now), v1alpha1.Artifact{Image: host + "/app:1@" + digest.String()}
	got, err := r.Resolve(t.Context(), a, resolve.Options{Running: true})
	require.NoError(t, err)
	require.Equal(t, digest.String(), got.Digest)
	require.Equal(t, "1", got.Tag)
	named, err := r.Resolve(t.Context(), a, resolve.Options{Previous: &got})
	require.NoError(t, err)
	require.Empty(t, named.Tag, "who names a digest wants that, whatever becomes of the tag")
	again, err := r.Resolve(t.Context(), a, resolve.Options{Running: true, Previous: &got})
	require.NoError(t, err)
	require.Equal(t, got, again)

	throttled := resolve.New(func(string) http.RoundTripper { return throttlesTags{} }, time.Now)
	unknown, err := throttled.Resolve(t.Context(), a, resolve.Options{Running: true, Previous: &got})
	require.NoError(t, err)
	require.Equal(t, got, unknown, "what the tag names now is not known")

	push(t, host+"/app:1", nil, newImage(t, 11))
	for name, previous := range map[string]*v1alpha1.ResolvedArtifact{"at first": nil, "once it was kept": &got} {
		moved, err := r.Resolve(t.Context(), a, resolve.Options{Running: true, Previous: previous})
		require.NoError(t, err, name)
		require.Equal(t, digest.String(), moved.Digest, name)
		require.Empty(t, moved.Tag, name)
	}
}

func TestABlobThatIsNoManifest(t *testing.T) {
	t.Parallel()
	host, _ := newRegistry(t)
	image := newImage(t, 777)
	push(t, host+"/app:1", nil, image)
	layers, err := image.Layers()
	require.NoError(t, err)
	digest, err := layers[0].Digest()
	require.NoError(t, err)
	size, err := layers[0].Size()
	require.NoError(t, err)
	got, err := resolve.New(direct, time.Now).Resolve(t.Context(),
		v1alpha1.Artifact{Digest: digest.String(), Repository: host + "/app"}, resolve.Options{})
	require.NoError(t, err)
	require.Equal(t, size, got.Size)
	require.Empty(t, got.MediaType)
}

func TestAManifestThatClaimsWhatCanNotBe(t *testing.T) {
	t.Parallel()
	for name, layers := range map[string]string{
		"no JSON":            `]`,
		"a negative size":    `[{"size": -5, "digest": "sha256:%[1]064x"}]`,
		"sizes that overrun": `[{"size": 9223372036854775807, "digest": "sha256:%[1]064x"}, {"size": 9, "digest": "sha256:%[1]064x"}]`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/v2/" {
					w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
					_, _ = fmt.Fprintf(w,
						`{"schemaVersion": 2, "config": {"size": 2, "digest": "sha256:%[1]064x"}, "layers": `+layers+`}`, 1)
				}
			}))
			t.Cleanup(server.Close)
			_, err := resolve.New(direct, time.Now).Resolve(t.Context(),
				v1alpha1.Artifact{Image: strings.TrimPrefix(server.URL, "http://") + "/app:1"}, resolve.Options{})
			var failure *resolve.Error
			require.ErrorAs(t, err, &failure)
			require.Equal(t, v1alpha1.ReasonInvalidManifest, failure.Reason, err)
		})
	}
}

func TestReferrers(t *testing.T) {
	t.Parallel()
	host, _ := newRegistry(t)
	image := newImage(t, 10)
	push(t, host+"/app:1", nil, image)
	digest, err := image.Digest()
	require.NoError(t, err)
	size, err := image.Size()
	require.NoError(t, err)
	signature := mutate.Subject(newImage(t, 20),
		v1.Descriptor{MediaType: "application/vnd.docker.distribution.manifest.v2+json", Digest: digest,
			Size: size}).(v1.Image)
	push(t, host+"/app:signature", nil, signature)
	want, err := signature.Digest()
	require.NoError(t, err)
	got, err := resolve.New(direct, time.Now).Resolve(t.Context(), v1alpha1.Artifact{Image: host + "/app:1"},
		resolve.Options{Referrers: true})
	require.NoError(t, err)
	require.Equal(t, []string{want.String()}, got.Referrers)
}

func TestATagThatStandsCostsNoPull(t *testing.T) {
	t.Parallel()
	host, pulls := newRegistry(t)
	push(t, host+"/app:1", nil, newImage(t, 10))
	r, a := resolve.New(direct, time.Now), v1alpha1.Artifact{Image: host + "/app:1"}
	first, err := r.Resolve(t.Context(), a, resolve.Options{})
	require.NoError(t, err)
	before := pulls.Load()
	again, err := r.Resolve(t.Context(), a, resolve.Options{Previous: &first})
	require.NoError(t, err)
	require.Equal(t, first, again)
	require.Equal(t, before, pulls.Load())

	byDigest := v1alpha1.Artifact{Image: host + "/app@" + first.Digest}
	first2, err := r.Resolve(t.Context(), byDigest, resolve.Options{})
	require.NoError(t, err)
	before = pulls.Load()
	_, err = r.Resolve(t.Context(), byDigest, resolve.Options{Previous: &first2})
	require.NoError(t, err)
	require.Equal(t, before, pulls.Load(), "nor does a digest")

	push(t, host+"/app:1", nil, newImage(t, 11))
	moved, err := r.Resolve(t.Context(), a, resolve.Options{Previous: &first})
	require.NoError(t, err)
	require.NotEqual(t, first.Digest, moved.Digest)
}

// network is what becomes of a request to any registry.
type network func(*http.Request) (*http.Response, error)

func (n network) RoundTrip(r *http.Request) (*http.Response, error) { return n(r) }

func (n network) to(string) http.RoundTripper { return n }

func answer(r *http.Request, status int) (*http.Response, error) {
	return &http.Response{StatusCode: status, Body: http.NoBody, Request: r}, nil
}

var (
	errSilent = errors.New("it says nothing")
	someImage = v1alpha1.Artifact{Image: "registry.example/app:1"}
)

func reason(t *testing.T, r *resolve.Resolver, a v1alpha1.Artifact) string {
	t.Helper()
	_, err := r.Resolve(t.Context(), a, resolve.Options{})
	var failure *resolve.Error
	require.ErrorAs(t, err, &failure)
	return failure.Reason
}

func TestResolve_WhatARegistryDoesNotHaveIsNamedAndNothingElse(t *testing.T) {
	t.Parallel()
	of := "sha256:" + strings.Repeat("ab", 32)
	for what, c := range map[string]struct {
		artifact v1alpha1.Artifact
		before   bool
		code     string
		want     string
	}{
		"a tag": {artifact: v1alpha1.Artifact{Image: "registry.example/ngnix:1.29"}, code: "MANIFEST_UNKNOWN",
			want: "the registry has no registry.example/ngnix:1.29: see how it is spelt"},
		"a tag that nobody wrote": {artifact: v1alpha1.Artifact{Image: "ngnix"},
			want: "the registry has no docker.io/library/ngnix:latest: see how it is spelt"},
		"a repository, in the registry's own word": {artifact: v1alpha1.Artifact{Image: "registry.example/ngnix:1"},
			code: "NAME_UNKNOWN", want: "the registry has no registry.example/ngnix:1: see how it is spelt (it says " +
				"NAME_UNKNOWN: nothing of that name)"},
		"a digest": {artifact: v1alpha1.Artifact{Digest: of, Repository: "registry.example/app"}, code: "MANIFEST_UNKNOWN",
			want: "the registry has no registry.example/app@" + of + ": see how it is spelt"},
		"a tag that was there": {artifact: v1alpha1.Artifact{Image: "registry.example/app:1"}, before: true,
			want: "the registry has no registry.example/app:1 any more"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			registry := network(func(r *http.Request) (*http.Response, error) {
				if r.URL.Path == "/v2/" {
					return answer(r, http.StatusOK)
				}
				resp, err := answer(r, http.StatusNotFound)
				if c.code != "" && r.Method != http.MethodHead {
					resp.Body = io.NopCloser(strings.NewReader(`{"errors":[{"code":"` + c.code +
						`","message":"nothing of that name"}]}`))
				}
				return resp, err
			})
			var o resolve.Options
			if c.before {
				o.Previous = &v1alpha1.ResolvedArtifact{Source: c.artifact.Source()}
			}
			_, err := resolve.New(registry.to, time.Now).Resolve(t.Context(), c.artifact, o)
			require.EqualError(t, err, c.want)
			var failure *resolve.Error
			require.ErrorAs(t, err, &failure)
			require.Equal(t, v1alpha1.ReasonNotFoundUpstream, failure.Reason)
		})
	}
	noise := &resolve.Error{Err: errors.New("app: GET http://10.0.0.1:5000/v2/app/manifests/1?ns=REDACTED: DENIED: no")}
	require.EqualError(t, noise, "app: GET http://10.0.0.1:5000/v2/app/manifests/1: DENIED: no")
}

func TestARegistryThatIsDownIsNotAskedAgainAtOnce(t *testing.T) {
	t.Parallel()
	asked := 0
	down := network(func(*http.Request) (*http.Response, error) { asked++; return nil, errSilent })
	now := time.Now()
	r := resolve.New(down.to, func() time.Time { return now })
	require.Equal(t, v1alpha1.ReasonRegistryUnreachable, reason(t, r, someImage))
	first := asked
	require.Equal(t, v1alpha1.ReasonRegistryUnreachable, reason(t, r, someImage))
	require.Equal(t, first, asked)
	now = now.Add(time.Minute)
	require.Equal(t, v1alpha1.ReasonRegistryUnreachable, reason(t, r, someImage))
	require.Greater(t, asked, first)
}

// Were each pin of a registry that hangs to find that out anew, they would take all workers from the other pins.
func TestResolve_ARegistryThatHangsAfterAnOutageHoldsOneCallerAlone(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{})
	var hangs atomic.Bool
	down := network(func(r *http.Request) (*http.Response, error) {
		if hangs.Load() {
			select {
			case asked <- struct{}{}:
			case <-r.Context().Done(): // the library asks more than once
			}
			<-r.Context().Done()
		}
		return nil, errSilent
	})
	var minutes atomic.Int64
	start := time.Now()
	r := resolve.New(down.to, func() time.Time { return start.Add(time.Duration(minutes.Load()) * time.Minute) })
	ctx, end := context.WithCancel(t.Context())
	first := func() error { _, err := r.Resolve(ctx, someImage, resolve.Options{}); return err }
	require.Error(t, first())

	hangs.Store(true)
	minutes.Store(1)
	ended := make(chan error)
	go func() { ended <- first() }()
	<-asked
	for range 3 {
		_, err := r.Resolve(t.Context(), someImage, resolve.Options{})
		require.ErrorContains(t, err, "did not answer a moment ago")
	}
	end()
	require.Error(t, <-ended)
}

// What it says first may be long in coming to an end.
func TestResolve_ARegistryThatHasBegunToAnswerAgainIsAskedByAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		down := true
		registry := network(func(r *http.Request) (*http.Response, error) {
			switch {
			case down:
				return nil, errSilent
			case strings.Contains(r.URL.Path, "/slow/"):
				<-r.Context().Done()
				return nil, r.Context().Err()
			case r.URL.Path == "/v2/":
				return answer(r, http.StatusOK)
			}
			return answer(r, http.StatusNotFound)
		})
		r := resolve.New(registry.to, time.Now)
		require.Equal(t, v1alpha1.ReasonRegistryUnreachable, reason(t, r, someImage))
		time.Sleep(time.Minute)
		down = false
		ended := make(chan error)
		go func() {
			_, err := r.Resolve(t.Context(), v1alpha1.Artifact{Image: "registry.example/slow/app:1"}, resolve.Options{})
			ended <- err
		}()
		synctest.Wait()
		require.Equal(t, v1alpha1.ReasonNotFoundUpstream, reason(t, r, someImage))
		require.Error(t, <-ended)
	})
}

// A registry that answers again is asked by all, whatever it answers.
func TestResolve_ARegistryThatAnswersAgainIsAskedByAll(t *testing.T) {
	t.Parallel()
	down := true
	registry := network(func(r *http.Request) (*http.Response, error) {
		if down {
			return nil, errSilent
		}
		return answer(r, http.StatusNotFound)
	})
	now := time.Now()
	r := resolve.New(registry.to, func() time.Time { return now })
	require.Equal(t, v1alpha1.ReasonRegistryUnreachable, reason(t, r, someImage))
	down, now = false, now.Add(time.Minute)
	require.Equal(t, v1alpha1.ReasonNotFoundUpstream, reason(t, r, someImage))
	require.Equal(t, v1alpha1.ReasonNotFoundUpstream, reason(t, r, someImage))
}

// Else whoever may make a pin could keep all other pins of the registry from being resolved.
func TestResolve_AnOddAnswerForOneArtifactIsNoOutageOfItsRegistry(t *testing.T) {
	t.Parallel()
	registry := network(func(r *http.Request) (*http.Response, error) {
		switch {
		case r.URL.Path == "/v2/":
			return answer(r, http.StatusOK)
		case strings.Contains(r.URL.Path, "/odd/"):
			return answer(r, http.StatusNotImplemented)
		}
		return answer(r, http.StatusNotFound)
	})
	r := resolve.New(registry.to, time.Now)
	require.Equal(t, v1alpha1.ReasonRegistryUnreachable,
		reason(t, r, v1alpha1.Artifact{Image: "registry.example/odd/app:1"}))
	require.Equal(t, v1alpha1.ReasonNotFoundUpstream, reason(t, r, someImage))
}

func TestAManifestWithoutEndIsReadNoFurtherThanOneMayBeLong(t *testing.T) {
	t.Parallel()
	var sent atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.URL.Path, "/manifests/") {
			return
		}
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		for r.Context().Err() == nil && sent.Load() < 90<<20 { // which the library itself would take
			n, err := w.Write(make([]byte, 64<<10))
			if sent.Add(int64(n)); err != nil {
				return
			}
		}
	}))
	t.Cleanup(server.Close)
	image := strings.TrimPrefix(server.URL, "http://") + "/app:1"
	_, err := resolve.New(direct, time.Now).Resolve(t.Context(), v1alpha1.Artifact{Image: image}, resolve.Options{})
	require.ErrorContains(t, err, "is longer than 8388608 bytes, the most that is read of one")
	require.Less(t, sent.Load(), int64(64<<20), "what lies in the connection's buffers is all that came beside")
}
