// Package registries is how registries are reached, in agents as in the operator: what an administrator says of it, the
// Routes that this makes, and the Transport that follows the certificates when they are renewed.
package registries

import (
	"cmp"
	"fmt"
	"net/url"
	"strings"
)

// DockerHub has two names in references, and a third, DockerHubAPI, for its API.
const (
	DockerHub    = "docker.io"
	DockerHubAPI = "registry-1.docker.io"
)

// MaxElements is how many commas are taken of a manifest, or of another document that a registry gives: more than real
// ones have, whose elements are descriptors of a hundred bytes. A byte or two suffice for one that means nothing, and
// once parsed it takes as much memory as any.
const MaxElements = 100_000

// Canonical is the one spelling of a registry's name.
func Canonical(name string) string {
	name = strings.ToLower(name)
	if name == "index."+DockerHub || name == DockerHubAPI {
		return DockerHub
	}
	return name
}

// SameOrigin compares scheme, host and port, as RFC 6454 has it.
func SameOrigin(a, b *url.URL) bool {
	port := func(u *url.URL) string {
		return cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	}
	return a.Scheme == b.Scheme && strings.EqualFold(a.Hostname(), b.Hostname()) && port(a) == port(b)
}

// Upstream says how one registry is reached.
type Upstream struct {
	// Registry is the host, with port if any, as image references spell it. "*" or "": every registry that no other
	// entry names.
	Registry string
	// Endpoints are URLs, http(s)://host[:port][/prefix], tried in order. Requests go to <endpoint>/v2/…; those of a
	// "*" entry carry the registry's name as the query parameter ns. Empty: https://<registry>, or http where the
	// registry is a loopback address.
	Endpoints []string
	// CAFile holds PEM certificates that are trusted besides the system's.
	CAFile string
	// ClientCertFile and ClientKeyFile are the PEM pair presented to the registry, both or neither.
	ClientCertFile string
	ClientKeyFile  string
	// InsecureSkipVerify takes any certificate.
	InsecureSkipVerify bool
}

// Every reports whether u is the entry for all registries that no other entry names.
func (u Upstream) Every() bool { return u.Registry == "" || u.Registry == "*" }

// URLs are the endpoints, without a trailing /v2. It fails for one that is malformed or holds credentials.
func (u Upstream) URLs() ([]*url.URL, error) {
	urls := make([]*url.URL, 0, len(u.Endpoints))
	for _, s := range u.Endpoints {
		e, err := url.Parse(s)
		switch {
		case err != nil:
			return nil, fmt.Errorf("endpoint: %w", err)
		case e.Scheme != "http" && e.Scheme != "https", e.Host == "":
			return nil, fmt.Errorf("endpoint %q: want http(s)://host[:port][/prefix]", s)
		case e.User != nil:
			return nil, fmt.Errorf("endpoint %q: holds credentials; they come from whoever pulls, or from pull secrets",
				e.Redacted())
		case e.RawQuery != "" || e.Fragment != "":
			return nil, fmt.Errorf("endpoint %q: has a query or a fragment", s)
		}
		e.Path, e.RawPath = strings.TrimSuffix(strings.TrimSuffix(e.Path, "/"), "/v2"), ""
		urls = append(urls, e)
	}
	return urls, nil
}
