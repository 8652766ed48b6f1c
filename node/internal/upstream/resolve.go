package upstream

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/manifest"
)

// manifestTypes is what is asked for where the caller states no preference. The Docker types are of the image manifest
// version 2, schema 2; a registry that holds a manifest of any other type gives it under the last.
var manifestTypes = []string{
	v1.MediaTypeImageIndex, v1.MediaTypeImageManifest,
	"application/vnd.docker.distribution.manifest.list.v2+json",
	"application/vnd.docker.distribution.manifest.v2+json",
	"*/*",
}

// Resolve asks the registry for the descriptor of a manifest by tag or digest. It sends HEAD, and GET where the answer
// to HEAD does not hold the whole descriptor. accept is sent as the Accept header; empty: every manifest type.
func (c *Client) Resolve(ctx context.Context, repo content.Repository, reference string, accept []string,
	authorization string) (v1.Descriptor, error) {
	if len(accept) == 0 {
		accept = manifestTypes
	}
	call := call{
		method: http.MethodHead, repo: repo, path: "manifests/" + reference, accept: accept,
		authorization: authorization,
	}
	resp, err := c.send(ctx, call)
	switch {
	case noHead(err):
	case err != nil:
		return v1.Descriptor{}, err
	default:
		_ = resp.Body.Close()
		desc, ok := describeManifest(resp)
		if ok {
			return desc, checkReference(resp, reference, desc.Digest)
		}
	}
	call.method = http.MethodGet
	desc, _, err := c.getManifest(ctx, call, reference)
	return desc, err
}

// noHead reports whether the registry does not know the method, as a few do.
func noHead(err error) bool {
	var u *content.UpstreamError
	return errors.As(err, &u) && (u.Status == http.StatusMethodNotAllowed || u.Status == http.StatusNotImplemented ||
		u.Status == http.StatusBadRequest)
}

// describeManifest reads the descriptor from an answer's header, if it is all there.
func describeManifest(resp *http.Response) (v1.Descriptor, bool) {
	desc := v1.Descriptor{
		MediaType: mediaType(resp), Digest: digest.Digest(resp.Header.Get("Docker-Content-Digest")),
		Size: resp.ContentLength,
	}
	if encoded(resp) {
		return desc, false // its length is not the manifest's
	}
	return desc, desc.Digest.Validate() == nil && desc.Size > 0 && desc.Size <= manifest.MaxSize &&
		isManifestType(desc.MediaType)
}

func checkReference(resp *http.Response, reference string, got digest.Digest) error {
	if want, err := digest.Parse(reference); err == nil && want.Algorithm() == got.Algorithm() && want != got {
		return fmt.Errorf("%s: %w: registry names it %s", describe(resp.Request), content.ErrDigestMismatch, got)
	}
	return nil
}

// getManifest reads a whole manifest and finds its descriptor from its bytes.
func (c *Client) getManifest(ctx context.Context, call call, reference string) (v1.Descriptor, []byte, error) {
	resp, data, err := c.readAgain(ctx, call) //nolint:bodyclose // readAgain has read and closed it
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	if encoded(resp) {
		return v1.Descriptor{}, nil, fmt.Errorf("%s: %w: answer is encoded as %q, which was not asked for",
			describe(resp.Request), content.ErrBadAnswer, resp.Header.Get("Content-Encoding"))
	}
	desc := v1.Descriptor{MediaType: manifestType(resp, data), Digest: digest.FromBytes(data), Size: int64(len(data))}
	stated := digest.Digest(resp.Header.Get("Docker-Content-Digest"))
	if want, err := digest.Parse(reference); err == nil {
		stated = want
	}
	if stated.Validate() == nil {
		if got := stated.Algorithm().FromBytes(data); got != stated {
			return v1.Descriptor{}, nil, fmt.Errorf("%s: %w: bytes are %s, want %s", describe(resp.Request),
				content.ErrDigestMismatch, got, stated)
		}
		desc.Digest = stated
	}
	if _, err := manifest.Parse(data); err != nil || desc.MediaType == "" {
		return v1.Descriptor{}, nil, fmt.Errorf("%s: %w: answer of type %q is no manifest: %w",
			describe(resp.Request), content.ErrBadAnswer, resp.Header.Get("Content-Type"), cmp.Or(err,
				manifest.ErrMalformed))
	}
	return desc, data, nil
}

// encoded reports whether an answer's body is other bytes than the content.
func encoded(resp *http.Response) bool {
	enc := resp.Header.Get("Content-Encoding")
	return enc != "" && enc != "identity"
}

// manifestType is the media type of a manifest: what the registry says, else what the manifest itself says; "" where
// the answer is no manifest, such as a page of a proxy that wants a login.
func manifestType(resp *http.Response, data []byte) string {
	if t := mediaType(resp); isManifestType(t) && t != "application/json" {
		return t
	}
	var doc struct {
		MediaType string `json:"mediaType"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return ""
	}
	if isManifestType(doc.MediaType) {
		return doc.MediaType
	}
	if mediaType(resp) == "application/json" {
		return "application/json"
	}
	return ""
}

// isManifestType reports whether t can be that of a manifest. The specifications leave the set open: artifacts have
// types of their own, and RFC 6838 says how long a type may be.
func isManifestType(t string) bool {
	const longest = 127 + len("/") + 127
	return t == "application/json" || len(t) <= longest && strings.HasPrefix(t, "application/") &&
		(strings.HasSuffix(t, "+json") || strings.HasPrefix(t, "application/vnd.docker.distribution.manifest."))
}

func mediaType(resp *http.Response) string {
	t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return t
}

// Forward passes on a GET of something below a repository ("tags/list", "referrers/<digest>") and gives back the
// registry's successful answer, which is JSON of at most manifest.MaxSize bytes. The caller closes its body. With an
// empty repository name and path it asks for /v2/ of the registry, where any success will do.
func (c *Client) Forward(ctx context.Context, repo content.Repository, path string, query url.Values, accept []string,
	authorization string) (*http.Response, error) {
	resp, data, err := c.readAgain(ctx, call{
		method: http.MethodGet, repo: repo, path: path, query: query, accept: accept, authorization: authorization,
	})
	if err != nil {
		return nil, err
	}
	if repo.Name != "" && !json.Valid(data) {
		return nil, fmt.Errorf("%s: %w: answer of type %q is no JSON", describe(resp.Request), content.ErrBadAnswer,
			mediaType(resp))
	}
	if t := mediaType(resp); t != "application/json" && !strings.HasSuffix(t, "+json") {
		resp.Header.Set("Content-Type", "application/json") // some registries leave it out
	}
	whole := *resp
	whole.Body, whole.ContentLength = io.NopCloser(bytes.NewReader(data)), int64(len(data))
	return &whole, nil
}
