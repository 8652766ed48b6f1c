package registrytest

import (
	"fmt"
	"math"
	"net/http"
	"strings"
	"sync"
)

// Forever is the number of requests that a token without an end is good for.
const Forever = math.MaxInt

// Token is what a server of tokens gives out. The zero value is good for nothing, as some registries give it to
// callers whose password is wrong.
type Token struct {
	// Requests is how many it is good for, in place of the minutes that tokens live in truth.
	Requests int
	// Reads reports whether it is good for a path. Where it is nil, it is good for each.
	Reads func(path string) bool
	// Status, unless 0, refuses the token with this HTTP status. A negative one answers nothing.
	Status int
}

// Tokens stands before a registry and lets in callers that show a token which is still good. It gives them out at
// /token.
type Tokens struct {
	inner http.Handler
	issue func(r *http.Request) Token

	mu      sync.Mutex
	given   map[string]*Token // by Authorization header
	refused int
}

// NewTokens stands before inner. It calls issue for each token that is asked for, which may happen at once.
func NewTokens(inner http.Handler, issue func(r *http.Request) Token) *Tokens {
	return &Tokens{inner: inner, issue: issue, given: map[string]*Token{}}
}

// Give gives out a token, as an Authorization header.
func (k *Tokens) Give(t Token) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	header := fmt.Sprintf("Bearer %d", len(k.given))
	k.given[header] = &t
	return header
}

// Refused is the number of requests for content that had no good token.
func (k *Tokens) Refused() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.refused
}

func (k *Tokens) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/token":
		k.serveToken(w, r)
	case k.admit(r):
		k.inner.ServeHTTP(w, r)
	default:
		w.Header().Set("WWW-Authenticate",
			fmt.Sprintf(`Bearer realm="http://%s/token",service="images.test",error="invalid_token"`, r.Host))
		w.WriteHeader(http.StatusUnauthorized)
	}
}

func (k *Tokens) serveToken(w http.ResponseWriter, r *http.Request) {
	switch t := k.issue(r); {
	case t.Status < 0:
	case t.Status > 0:
		w.WriteHeader(t.Status)
	default:
		_, _ = fmt.Fprintf(w, `{"token":%q,"expires_in":300}`, strings.TrimPrefix(k.Give(t), "Bearer "))
	}
}

func (k *Tokens) admit(r *http.Request) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	t := k.given[r.Header.Get("Authorization")]
	if t != nil && t.Requests > 0 && (t.Reads == nil || t.Reads(r.URL.Path)) {
		t.Requests--
		return true
	}
	if r.URL.Path != "/v2/" {
		k.refused++
	}
	return false
}
