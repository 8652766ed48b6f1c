package registry

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/api/registries"
	"github.com/shoal-cache/shoal/node/internal/content"
)

// endpoint is one of the things that the pull API of the distribution specification offers.
type endpoint string

const (
	endBase      endpoint = "base"
	endManifest  endpoint = "manifest"
	endBlob      endpoint = "blob"
	endTags      endpoint = "tags"
	endReferrers endpoint = "referrers"
	endUnknown   endpoint = "unknown"
)

// route is what a request asks for.
type route struct {
	endpoint endpoint
	repo     content.Repository
	tag      string        // of a manifest, where it is asked for by tag
	digest   digest.Digest // of a blob, of referrers, and of a manifest that is asked for by digest
}

// reference is the tag or digest.
func (r route) reference() string {
	if r.tag != "" {
		return r.tag
	}
	return r.digest.String()
}

// parseRoute reads the URL path of a request. The registry comes from ns where the client sends one, as containerd
// does. Where it does not, the registry is the first component of the repository if that looks like a host as in image
// references, or else defaultRegistry. The errors are *apiError.
func parseRoute(path, ns, defaultRegistry string) (route, error) {
	rest, ok := strings.CutPrefix(path, "/v2")
	if ok && (rest == "" || rest == "/") {
		return parseBase(ns, defaultRegistry)
	}
	rest, ok = strings.CutPrefix(rest, "/")
	if !ok {
		return route{endpoint: endUnknown}, errNoSuchPath
	}
	r, name, ref := splitPath(rest)
	if r.endpoint == endUnknown {
		return r, errNoSuchPath
	}
	var err error
	if r.repo, err = repository(name, ns, defaultRegistry); err != nil {
		return r, err
	}
	switch {
	case r.endpoint == endTags:
	case r.endpoint == endManifest && !strings.Contains(ref, ":"):
		if reference.TagRegexp.FindString(ref) != ref {
			return r, &apiError{http.StatusBadRequest, "TAG_INVALID", fmt.Sprintf("tag %q is malformed", ref)}
		}
		r.tag = ref
	default:
		r.digest, err = digest.Parse(ref)
		if err != nil || r.digest.Algorithm() != digest.SHA256 && r.digest.Algorithm() != digest.SHA512 {
			return r, &apiError{http.StatusBadRequest, "DIGEST_INVALID",
				fmt.Sprintf("%q is no sha256 or sha512 digest", ref)}
		}
	}
	return r, nil
}

func parseBase(ns, defaultRegistry string) (route, error) {
	r := route{endpoint: endBase}
	r.repo.Registry = defaultRegistry
	if ns != "" {
		host, err := hostname(ns)
		if err != nil {
			return r, err
		}
		r.repo.Registry = host
	}
	return r, nil
}

// splitPath takes <name>/manifests/<reference> and its like apart from the right, because a repository's name may hold
// the same words.
func splitPath(path string) (r route, name, ref string) {
	if name, ok := strings.CutSuffix(path, "/tags/list"); ok {
		return route{endpoint: endTags}, name, ""
	}
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return route{endpoint: endUnknown}, "", ""
	}
	head, ref := path[:i], path[i+1:]
	for _, e := range []struct {
		suffix string
		endpoint
	}{{"/manifests", endManifest}, {"/blobs", endBlob}, {"/referrers", endReferrers}} {
		if name, ok := strings.CutSuffix(head, e.suffix); ok && ref != "" {
			return route{endpoint: e.endpoint}, name, ref
		}
	}
	return route{endpoint: endUnknown}, "", ""
}

func repository(name, ns, defaultRegistry string) (content.Repository, error) {
	first, rest, nested := strings.Cut(name, "/")
	switch {
	case ns != "":
		host, err := hostname(ns)
		if err != nil {
			return content.Repository{}, err
		}
		return named(host, name)
	case nested && (strings.ContainsAny(first, ".:") || first == "localhost"):
		host, err := hostname(first)
		if err != nil {
			return content.Repository{}, err
		}
		return named(host, officialName(host, rest))
	case defaultRegistry != "":
		return named(defaultRegistry, officialName(defaultRegistry, name))
	}
	return content.Repository{}, &apiError{http.StatusNotFound, "NAME_UNKNOWN",
		"the request names no registry: send ?ns=<registry>, or ask for /v2/<registry>/<repository>/…"}
}

// officialName adds the "library/" that people leave out of the names of Docker's official images.
func officialName(registry, name string) string {
	if registry == "docker.io" && !strings.Contains(name, "/") {
		return "library/" + name
	}
	return name
}

// named checks name against the grammar of repositories.
func named(registry, name string) (content.Repository, error) {
	if n, err := reference.WithName("host.invalid/" + name); err != nil || reference.Path(n) != name {
		return content.Repository{}, &apiError{http.StatusBadRequest, "NAME_INVALID",
			fmt.Sprintf("repository name %q is malformed", name)}
	}
	return content.Repository{Registry: registry, Name: name}, nil
}

// longestHost is the longest name of the DNS, with a port.
const longestHost = 253 + len(":65535")

// hostname checks s against the grammar of a reference's host and gives its one spelling: what is cached, and who may
// read it, must not depend on which of a registry's names a client uses.
func hostname(s string) (string, error) {
	host := registries.Canonical(s)
	n, err := reference.WithName(host + "/name")
	if err != nil || reference.Domain(n) != host || len(host) > longestHost {
		return "", &apiError{http.StatusBadRequest, "NAME_INVALID", fmt.Sprintf("registry host %q is malformed", s)}
	}
	return host, nil
}
