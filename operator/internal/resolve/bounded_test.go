package resolve_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/operator/internal/resolve"
)

// registryOf is a registry that has a manifest under each tag.
type registryOf map[string]func(context.Context) io.Reader

func (r registryOf) RoundTrip(req *http.Request) (*http.Response, error) {
	body := io.Reader(strings.NewReader("{}"))
	if _, tag, ok := strings.Cut(req.URL.Path, "/manifests/"); ok {
		body = r[tag](req.Context())
	}
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(body), Request: req, ContentLength: -1,
		Header: http.Header{"Content-Type": {"application/vnd.oci.image.manifest.v1+json"}}}, nil
}

func (r registryOf) resolve(ctx context.Context, on *resolve.Resolver, tag string) error {
	return r.resolveIn(ctx, on, "", tag)
}

func (r registryOf) resolveIn(ctx context.Context, on *resolve.Resolver, namespace, tag string) error {
	_, err := on.Resolve(ctx, v1alpha1.Artifact{Image: "registry.example/app:" + tag},
		resolve.Options{Namespace: namespace})
	return err
}

func (r registryOf) resolver() *resolve.Resolver {
	return resolve.New(func(string) http.RoundTripper { return r }, time.Now)
}

//nolint:paralleltest // it measures what the process allocates
func TestAnswers_OfManyElementsDoNotExhaustTheMemory(t *testing.T) {
	for _, element := range []string{"{},", "0,"} {
		manifest := `{"schemaVersion":2,"config":{},"layers":[` + strings.Repeat(element, 8<<20/len(element)-100) + `{}]}`
		r := registryOf{"1": func(context.Context) io.Reader { return strings.NewReader(manifest) }}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := r.resolve(t.Context(), r.resolver(), "1")
		runtime.ReadMemStats(&after)
		var failure *resolve.Error
		require.ErrorAs(t, err, &failure)
		require.Equal(t, v1alpha1.ReasonInvalidManifest, failure.Reason)
		require.ErrorContains(t, err, "has more than 100000 elements, the most that is read of one")
		require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(64<<20))
	}
}

// unending gives what it begins with, and then nothing until it is let end.
type unending struct {
	io.Reader
	begun *atomic.Int64
	end   <-chan struct{}
}

func (u *unending) Read(p []byte) (int, error) {
	n, err := u.Reader.Read(p)
	if err == io.EOF {
		u.begun.Add(1)
		<-u.end
	}
	return n, err
}

func TestAnswers_LargeOnesAreHadForFewArtifactsAtOneTimeAndHoldUpNoSmallOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var begun atomic.Int64
		end := make(chan struct{})
		r := registryOf{
			"long": func(context.Context) io.Reader {
				return &unending{bytes.NewReader(make([]byte, 300<<10)), &begun, end}
			},
			"many": func(context.Context) io.Reader {
				return &unending{strings.NewReader(strings.Repeat(",", 5<<10)), &begun, end}
			},
			"small": func(context.Context) io.Reader { return strings.NewReader(`{"config":{},"layers":[]}`) },
		}
		on := r.resolver()
		var large sync.WaitGroup
		for i := range 10 {
			for _, tag := range []string{"long", "many"} {
				large.Go(func() { _ = r.resolveIn(t.Context(), on, fmt.Sprint("team-", i), tag) })
			}
		}
		synctest.Wait()
		require.Equal(t, int64(4), begun.Load(), "large answers that are being read")
		require.NoError(t, r.resolve(t.Context(), on, "small"))

		close(end)
		large.Wait()
		require.Equal(t, int64(20), begun.Load(), "each has its turn")
	})
}

func TestAnswers_LargeOnesOfTwoNamespacesLeaveRoomForThoseOfOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var begun atomic.Int64
		end := make(chan struct{})
		r := registryOf{
			"dribbles": func(context.Context) io.Reader {
				return &unending{bytes.NewReader(make([]byte, 300<<10)), &begun, end}
			},
			"large": func(context.Context) io.Reader {
				return strings.NewReader(`{"config":{},"layers":[]}` + strings.Repeat(" ", 300<<10))
			},
		}
		on := r.resolver()
		var waiting sync.WaitGroup
		for i := range 30 {
			waiting.Go(func() { _ = r.resolveIn(t.Context(), on, fmt.Sprint("hostile-", i%2), "dribbles") })
		}
		synctest.Wait()
		require.NoError(t, r.resolveIn(t.Context(), on, "team", "large"))

		err := r.resolveIn(t.Context(), on, "hostile-0", "large")
		var failure *resolve.Error
		require.ErrorAs(t, err, &failure)
		require.Equal(t, v1alpha1.ReasonResolving, failure.Reason, "the registry is not to blame")
		close(end)
		waiting.Wait()
	})
}
