package gate

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/shoal-cache/shoal/api/pullsecret"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/upstream"
)

// Registries are asked about repositories; see upstream.Client.
type Registries interface {
	// Ask tells the size of what a request is for, and whether the answer names its digest.
	Ask(ctx context.Context, req content.Request) (size int64, named bool, err error)
	Open(ctx context.Context, req content.Request, off, n int64) (*upstream.Body, error)
	// Authorize gives the Authorization header of who has the credential; the zero one is nobody's.
	Authorize(ctx context.Context, repo content.Repository, cred pullsecret.Credential) (string, error)
	// BytesFrom counts the bytes of answers that have been read from a registry.
	BytesFrom(registry string) int64
}

// Repository is a repository of an OCI registry as a source.
func Repository(repo content.Repository) Source { return Source("oci " + repo.String()) }

// Blob asks whether the caller of req may read it from its repository.
func Blob(r Registries, req content.Request) Request {
	return Request{
		Source: Repository(req.Repository), Digest: req.Digest, Credentials: req.Authorization,
		Upstream: repository{r, req},
	}
}

// Proved reports whether the caller of req may be given what is held of its content: a repository has proved that it
// has it, to this node or to one that told so, and its yes to the caller was surely about that.
func (g *Gate) Proved(req content.Request) bool {
	source := Repository(req.Repository)
	return g.proved(source, req.Digest) && !g.Doubted(req)
}

// Doubted reports whether the repository's yes to the caller of req was unsure.
func (g *Gate) Doubted(req content.Request) bool {
	return g.unsure.Contains(g.pair(Repository(req.Repository), req.Authorization, req.Digest))
}

// Prove notes that the content of req came from its repository, all of it, and matched its digest.
func (g *Gate) Prove(req content.Request) { g.enroll(Repository(req.Repository), req.Digest) }

// Gave notes that the repository of req has itself given its caller some of the content, all of which matched. So its
// yes to that caller was about the content, if it was unsure.
func (g *Gate) Gave(req content.Request) {
	source := Repository(req.Repository)
	if g.unsure.Remove(g.pair(source, req.Authorization, req.Digest)) {
		g.Accept(source, req.Authorization, time.Now())
	}
}

// repository is the Upstream of one request.
type repository struct {
	registries Registries
	req        content.Request
}

func (r repository) Ask(ctx context.Context) (size int64, err error) {
	size, named, err := r.registries.Ask(ctx, r.req)
	if named {
		size = -1
	}
	return size, err
}

func (r repository) AskForAnyone(ctx context.Context) (size int64, err error) {
	r.req.Authorization, err = r.registries.Authorize(ctx, r.req.Repository, pullsecret.Credential{})
	if err != nil {
		return 0, err
	}
	return r.Ask(ctx)
}

func (r repository) Arrived() int64 { return r.registries.BytesFrom(r.req.Repository.Registry) }

func (r repository) Whole() bool { return r.req.Kind == content.Manifest }

func (r repository) Sample(ctx context.Context, off, n int64) ([]byte, int64, error) {
	body, err := r.registries.Open(ctx, r.req, off, n)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = body.Close() }()
	if body.Offset != off {
		return nil, body.Offset, nil
	}
	data := make([]byte, n)
	if got, err := io.ReadFull(body, data); err != nil {
		return nil, 0, fmt.Errorf("sample of %s from %s: %d of %d bytes: %w", r.req.Digest, r.req.Repository, got, n,
			err)
	}
	return data, body.Offset, nil
}

// Observe returns registries whose manifests prove to the gate what they have.
func (g *Gate) Observe(c *upstream.Client) *Observed { return &Observed{Client: c, gate: g} }

// Observed is an upstream.Client that a gate looks at.
type Observed struct {
	*upstream.Client
	gate *Gate
}

// Open is that of upstream.Client.
func (o *Observed) Open(ctx context.Context, req content.Request, off, n int64) (*upstream.Body, error) {
	body, err := o.Client.Open(ctx, req, off, n)
	if err != nil {
		return nil, err
	}
	if req.Kind == content.Manifest { // it came whole, and matched its digest
		o.gate.Prove(req)
	}
	return body, nil
}
