package admin

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/semaphore"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/shoal-cache/shoal/node/internal/lru"
)

// Metrics is the handler of an address that serves metrics and nothing else: no profiles, and not what the cache holds.
func Metrics(g prometheus.Gatherer, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(g, promhttp.HandlerOpts{
		EnableOpenMetrics: true,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}))
	return mux
}

// ErrToken is wrapped when a bearer token is missing, or is none of this cluster's.
var ErrToken = errors.New("no valid token")

// Reviewer says who may read a path, by the bearer token of the request.
type Reviewer interface {
	// Review returns nil if the token's owner may GET the path. It fails with ErrToken if the token is nobody's, and
	// with another error if its owner may not, or if nobody could be asked.
	Review(ctx context.Context, token, path string) error
}

// Reviewed passes on the requests whose bearer token r accepts. The others get 401 or 403.
func Reviewed(r Reviewer, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		token, ok := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
		err := ErrToken
		if ok && token != "" {
			err = r.Review(req.Context(), token, req.URL.Path)
		}
		switch {
		case err == nil:
			next.ServeHTTP(w, req)
		case errors.Is(err, ErrToken):
			w.Header().Set("WWW-Authenticate", `Bearer realm="shoal-node"`)
			text(w, http.StatusUnauthorized, "show the token of an account that may get this path, as a bearer token\n")
		case errors.Is(err, errStrangers):
			w.Header().Set("Retry-After", "1")
			text(w, http.StatusServiceUnavailable, err.Error()+"\n")
		default:
			text(w, http.StatusForbidden, err.Error()+"\n")
		}
	})
}

const (
	// reviewTTL is how long a good answer of the API server holds, and reviewsKept how many are kept.
	reviewTTL   = time.Minute
	reviewsKept = 256
	// reviewTimeout bounds a review, and strangersAtOnce how many tokens are reviewed at one time that were not good
	// before: whoever reaches the port can show some, and one that was good is not to wait behind them.
	reviewTimeout   = 5 * time.Second
	strangersAtOnce = 4
)

// errStrangers says that too many tokens are under review.
var errStrangers = errors.New("the API server is being asked about too many unknown tokens: try again")

// ByCluster is a Reviewer that asks the API server with a TokenReview and a SubjectAccessReview, and remembers good
// answers.
func ByCluster(api kubernetes.Interface) Reviewer { return remembering(cluster{api}) }

// reviewed remembers the good answers of another Reviewer, and asks it little at one time.
type reviewed struct {
	by        Reviewer
	known     *lru.Cache[[sha256.Size]byte, time.Time] // until when a good answer holds
	strangers *semaphore.Weighted
}

func remembering(by Reviewer) *reviewed {
	return &reviewed{
		by: by, known: lru.New[[sha256.Size]byte, time.Time](reviewsKept),
		strangers: semaphore.NewWeighted(strangersAtOnce),
	}
}

func (c *reviewed) Review(ctx context.Context, token, path string) error {
	key := sha256.Sum256([]byte(path + "\x00" + token))
	until, known := c.known.Get(key)
	if known && time.Now().Before(until) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	if !known {
		if c.strangers.Acquire(ctx, 1) != nil {
			return errStrangers
		}
		defer c.strangers.Release(1)
	}
	err := c.by.Review(ctx, token, path)
	switch {
	case err == nil:
		c.known.Add(key, time.Now().Add(reviewTTL))
	case errors.Is(err, ErrToken):
		c.known.Remove(key)
	}
	return err
}

// cluster reviews tokens by the API server's word, as kube-rbac-proxy and the kubelet do.
type cluster struct{ api kubernetes.Interface }

func (c cluster) Review(ctx context.Context, token, path string) error {
	who, err := c.api.AuthenticationV1().TokenReviews().Create(ctx,
		&authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("ask the API server whose token it is: %w", err)
	}
	if !who.Status.Authenticated {
		return ErrToken
	}
	user := who.Status.User
	extra := make(map[string]authorizationv1.ExtraValue, len(user.Extra))
	for k, v := range user.Extra {
		extra[k] = authorizationv1.ExtraValue(v)
	}
	may, err := c.api.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{
			User: user.Username, UID: user.UID, Groups: user.Groups, Extra: extra,
			NonResourceAttributes: &authorizationv1.NonResourceAttributes{Path: path, Verb: "get"},
		}}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("ask the API server what the token's owner may do: %w", err)
	}
	if !may.Status.Allowed {
		return fmt.Errorf("%s may not get %s: give it a ClusterRole with nonResourceURLs [%q], verbs [get]",
			user.Username, path, path)
	}
	return nil
}
