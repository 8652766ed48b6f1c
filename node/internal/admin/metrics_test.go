package admin

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"
)

func get(t *testing.T, h http.Handler, path, token string) *httptest.ResponseRecorder {
	t.Helper()
	req := httptest.NewRequestWithContext(context.Background(), http.MethodGet, path, nil)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	return rec
}

func TestMetrics_ServesMetricsAndNothingElse(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "shoal_test", Help: "Of a test."},
		func() float64 {
			return 1
		}))
	h := Metrics(registry, slog.New(slog.DiscardHandler))
	rec := get(t, h, "/metrics", "")
	require.Equal(t, http.StatusOK, rec.Code)
	require.Contains(t, rec.Body.String(), "shoal_test 1")
	for _, path := range []string{"/", "/debug/pprof/", "/debug/pprof/heap", "/debug/shoal/blobs", "/debug/shoal/node",
		"/healthz"} {
		require.Equal(t, http.StatusNotFound, get(t, h, path, "").Code, path)
	}
}

// slowForStrangers knows one token, and takes long to say that another is not good.
type slowForStrangers struct{ asked *atomic.Int32 }

func (s slowForStrangers) Review(ctx context.Context, token, _ string) error {
	if token == "scraper" {
		return nil
	}
	s.asked.Add(1)
	<-ctx.Done()
	return ctx.Err()
}

func TestReviewed_StrangersDoNotKeepTheScraperOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		c := remembering(slowForStrangers{&asked})
		require.NoError(t, c.Review(t.Context(), "scraper", "/metrics"))
		time.Sleep(2 * reviewTTL)
		var busy atomic.Int32
		for i := range 100 {
			go func() {
				token := strconv.Itoa(i)
				if get(t, Reviewed(c, http.NotFoundHandler()), "/metrics", token).Code == http.StatusServiceUnavailable {
					busy.Add(1)
				}
			}()
		}
		synctest.Wait()
		require.EqualValues(t, strangersAtOnce, asked.Load(), "the API server is not asked without end")
		require.NoError(t, c.Review(t.Context(), "scraper", "/metrics"), "it was good before")
		time.Sleep(2 * reviewTimeout)
		require.Positive(t, busy.Load(), "who waits in vain is told to come again")
		before := asked.Load()
		go func() { _ = c.Review(t.Context(), "later", "/metrics") }()
		synctest.Wait()
		require.Equal(t, before+1, asked.Load(), "reviews end")
		time.Sleep(2 * reviewTimeout)
	})
}

func TestReviewed_AsksTheAPIServerWhoMayRead(t *testing.T) {
	t.Parallel()
	api := fake.NewClientset()
	asked := 0
	api.PrependReactor("create", "tokenreviews", func(a ktesting.Action) (bool, runtime.Object, error) {
		asked++
		review := a.(ktesting.CreateAction).GetObject().(*authenticationv1.TokenReview)
		review.Status.Authenticated = review.Spec.Token != "forged"
		review.Status.User.Username = review.Spec.Token
		return true, review, nil
	})
	api.PrependReactor("create", "subjectaccessreviews", func(a ktesting.Action) (bool, runtime.Object, error) {
		review := a.(ktesting.CreateAction).GetObject().(*authorizationv1.SubjectAccessReview)
		review.Status.Allowed = review.Spec.User == "prometheus" && review.Spec.NonResourceAttributes.Path == "/metrics"
		return true, review, nil
	})
	h := Reviewed(ByCluster(api), Metrics(prometheus.NewRegistry(), slog.New(slog.DiscardHandler)))

	require.Equal(t, http.StatusUnauthorized, get(t, h, "/metrics", "").Code, "no token")
	require.Equal(t, http.StatusUnauthorized, get(t, h, "/metrics", "forged").Code)
	refused := get(t, h, "/metrics", "somebody")
	require.Equal(t, http.StatusForbidden, refused.Code)
	require.Contains(t, refused.Body.String(), "nonResourceURLs", "it says what to do")

	asked = 0
	for range 3 {
		require.Equal(t, http.StatusOK, get(t, h, "/metrics", "prometheus").Code)
	}
	require.Equal(t, 1, asked, "a good answer is remembered")
}
