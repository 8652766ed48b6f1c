package upstream

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/net/http/httpguts"

	"github.com/shoal-cache/shoal/api/pullsecret"
	"github.com/shoal-cache/shoal/api/registries"
	"github.com/shoal-cache/shoal/node/internal/content"
)

// Tokens without a stated life last 60 s, says the distribution project's token specification. They are renewed a
// little before their end, and none is kept for long: the registry may have changed its mind about it.
const (
	defaultTokenLife = time.Minute
	maxTokenLife     = 5 * time.Minute
	tokenMargin      = 10 * time.Second
	tokenTimeout     = 20 * time.Second
)

type token struct {
	authorization string
	expires       time.Time
}

// Authorize obtains the value of the Authorization header for pulls from repo, for the agent's own pulls, which no
// client drives. The zero credential is anonymous. A registry token is sent as it is; an identity token is an OAuth2
// refresh token, which a token server takes in place of a password
// (https://distribution.github.io/distribution/spec/auth/oauth/). The result is "" where the registry wants none. It is
// kept in memory until it expires.
func (c *Client) Authorize(ctx context.Context, repo content.Repository, cred pullsecret.Credential) (string, error) {
	if cred.RegistryToken != "" {
		return "Bearer " + cred.RegistryToken, nil
	}
	key := c.tokenKey(repo, cred)
	if t, ok := c.tokens.Get(key); ok && time.Now().Before(t.expires) {
		return t.authorization, nil
	}
	// Callers share one request, so it must not end with the context of the first of them.
	done := c.asking.DoChan(string(key[:]), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tokenTimeout)
		defer cancel()
		t, err := c.newToken(ctx, repo, cred)
		if err != nil {
			return "", fmt.Errorf("authorize at %s: %w", repo, err)
		}
		c.tokens.Add(key, t)
		return t.authorization, nil
	})
	select {
	case r := <-done:
		return r.Val.(string), r.Err
	case <-ctx.Done():
		return "", fmt.Errorf("authorize at %s: %w", repo, context.Cause(ctx))
	}
}

// Renew is Authorize for a caller that was refused with what it gave: a token may end in the middle of a pull. It gives
// "" where there is nothing else to show. A token that the registry has never taken is not replaced, because the next
// would fare no better. So a caller that asks for one after the other comes to an end: each was good for some request
// before the next is given.
func (c *Client) Renew(ctx context.Context, repo content.Repository, cred pullsecret.Credential,
	refused string) (string, error) {
	if !c.accepted.Contains(c.key(refused)) {
		return "", nil
	}
	key := c.tokenKey(repo, cred)
	if t, ok := c.tokens.Peek(key); ok && t.authorization == refused {
		c.tokens.Remove(key)
	}
	authorization, err := c.Authorize(ctx, repo, cred)
	if authorization == refused {
		return "", err
	}
	return authorization, err
}

func (c *Client) tokenKey(repo content.Repository, cred pullsecret.Credential) cacheKey {
	return c.key(registries.Canonical(repo.Registry), repo.Name, cred.Username, cred.Password, cred.IdentityToken)
}

func (c *Client) newToken(ctx context.Context, repo content.Repository, cred pullsecret.Credential) (token, error) {
	reg, err := c.registry(repo.Registry)
	if err != nil {
		return token{}, err
	}
	host, err := name.NewRegistry(reg.name)
	if err != nil {
		return token{}, err
	}
	rt := &tokenTransport{client: c, registry: reg, host: host.RegistryStr()}
	challenge, err := transport.Ping(ctx, host, rt)
	if err != nil {
		return token{}, err
	}
	if !strings.EqualFold(challenge.Scheme, "bearer") {
		// A registry without a challenge may still want Basic for some of its repositories.
		t := token{expires: time.Now().Add(defaultTokenLife)}
		if cred.Username != "" && cred.IdentityToken == "" {
			t.authorization = "Basic " + base64.StdEncoding.EncodeToString([]byte(cred.Username+":"+cred.Password))
		}
		return t, nil
	}
	if reg.listed {
		// The library refuses token servers at private addresses unless they are the registry itself. That of a
		// registry which the administrator configured may be anywhere.
		challenge.Insecure = true
		if host, err = reg.tokenServer(host, challenge.Parameters["realm"], cred); err != nil {
			return token{}, err
		}
	}
	auth := authn.Anonymous
	if cred != (pullsecret.Credential{}) {
		auth = authn.FromConfig(authn.AuthConfig{Username: cred.Username, Password: cred.Password,
			IdentityToken: cred.IdentityToken})
	}
	scope := "repository:" + repo.Name + ":" + transport.PullScope
	got, err := transport.Exchange(ctx, host, auth, rt, []string{scope}, challenge)
	if err != nil {
		return token{}, err
	}
	authorization := "Bearer " + cmp.Or(got.Token, got.AccessToken)
	if !httpguts.ValidHeaderFieldValue(authorization) {
		return token{}, fmt.Errorf("the token of registry %s has characters that no HTTP header may have", reg.name)
	}
	life := defaultTokenLife
	if got.ExpiresIn > 0 {
		life = time.Duration(min(got.ExpiresIn, int(maxTokenLife/time.Second))) * time.Second
	}
	return token{
		authorization: authorization,
		expires:       time.Now().Add(max(life-tokenMargin, life/2)),
	}, nil
}

// tokenServer is whom the realm of a challenge names: the registry itself, where it is no URL.
func (r *registry) tokenServer(host name.Registry, realm string, cred pullsecret.Credential) (name.Registry, error) {
	u, err := url.Parse(realm)
	if err != nil {
		return host, nil
	}
	if u.Scheme == "http" && cred != (pullsecret.Credential{}) && !r.plain() {
		return host, fmt.Errorf("the token server %s of registry %s has no TLS, so it is sent no credentials: "+
			"have the registry name one with https, or list an endpoint of it with http", u.Redacted(), r.name)
	}
	host, err = name.NewRegistry(u.Host)
	if err != nil {
		return host, fmt.Errorf("realm of the challenge: %w", err)
	}
	return host, nil
}

// tokenTransport sends the library's ping of a registry to the registry's endpoints, with their fail-over, and all else
// to the token server, which is asked again as a registry is.
type tokenTransport struct {
	client   *Client
	registry *registry
	host     string
}

func (t *tokenTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Host != t.host || req.URL.Path != "/v2/" {
		return t.client.retry(req.Context(), t.registry, func() (*http.Response, failure) {
			return t.askTokenServer(req)
		})
	}
	resp, err := t.client.send(req.Context(), call{
		method: http.MethodGet, repo: content.Repository{Registry: t.registry.name},
	})
	if refused, ok := errors.AsType[*content.UpstreamError](err); ok {
		return &http.Response{
			StatusCode: refused.Status, Header: http.Header{"Www-Authenticate": refused.Challenge},
			Body: io.NopCloser(bytes.NewReader(refused.Body)), Request: req,
		}, nil
	}
	return resp, err
}

// askTokenServer leaves to the library what it deals with itself: redirects, and 404, at which it tries the older
// protocol.
func (t *tokenTransport) askTokenServer(req *http.Request) (*http.Response, failure) {
	if req.GetBody != nil {
		body, err := req.GetBody()
		if err != nil {
			return nil, failure{err: err}
		}
		req = req.Clone(req.Context())
		req.Body = body
	}
	resp, err := t.registry.client.Transport.RoundTrip(req)
	switch {
	case err != nil:
		return nil, judge(fmt.Errorf("%s: %w: %w", describe(req), content.ErrUnavailable, err))
	case success(resp), redirects(resp), resp.StatusCode == http.StatusNotFound:
		return resp, failure{}
	}
	return nil, judge(refusal(resp, false))
}
