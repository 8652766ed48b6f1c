// Package resolve turns what a pin names into digests, by asking the registries: tags to digests, the size of one copy,
// the platforms an index has, and what refers to an artifact; and revisions of a model hub's repositories to commits,
// by asking the hub. It reads manifests and listings, never layers or files.
package resolve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/ipfs/go-cid"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/api/cids"
	"github.com/shoal-cache/shoal/api/message"
	"github.com/shoal-cache/shoal/api/pullsecret"
	"github.com/shoal-cache/shoal/api/v1alpha1"
)

const (
	// timeout bounds everything that is asked of registries for one artifact.
	timeout = 30 * time.Second
	// outage is how long a registry that did not answer is not asked again, and then for one artifact alone until it
	// has answered. That keeps pins of a registry that is down from taking the workers that others need. One that
	// answers is not down, though its token server may hang: there a namespace's share of the workers is the bound.
	outage = 10 * time.Second
	// forgotten is how long after its outage a registry is remembered that nobody has asked since.
	forgotten = 10 * time.Minute
	// maxReferrers is what an AssignedArtifact holds.
	maxReferrers = 32
	// maxMediaType is what a ResolvedArtifact holds; nothing real is longer.
	maxMediaType = 255
	// maxSize is more than one artifact has, and so little that no sum of such overflows: 1 PiB.
	maxSize = 1 << 50
)

// Error is why an artifact was not resolved. Reason is one of the reasons of ArtifactPin's condition Resolved.
type Error struct {
	Reason string
	Err    error
}

// Error leaves out the query by which an endpoint learns of which registry a request is: the artifact names it.
func (e *Error) Error() string {
	return message.Plain(strings.ReplaceAll(e.Err.Error(), "?ns=REDACTED", ""))
}
func (e *Error) Unwrap() error { return e.Err }

// Options say how an artifact is to be resolved.
type Options struct {
	// Platforms as the pin's spec has them; where empty, NodePlatforms are those of the eligible nodes.
	Platforms, NodePlatforms []string
	Referrers                bool
	// Running: the artifact is an image that pods run, by the digest that runs.
	Running bool
	// Namespace is the pin's, which has its share of what pins have in common.
	Namespace   string
	Credentials pullsecret.Credentials
	// Secrets is the number of pull secrets that the credentials are of.
	Secrets int
	// Previous is how the artifact was resolved last for the same platforms, if it was. While the tag still names
	// the same digest a HEAD suffices, which registries that count pulls do not count.
	Previous *v1alpha1.ResolvedArtifact
}

// Resolver asks registries. It may be used concurrently.
type Resolver struct {
	// Hub is the base URL of the model hub; nil: none is known. It is set before the first use.
	Hub *url.URL

	transport func(registry string) http.RoundTripper
	now       func() time.Time
	slots     *slots

	mu   sync.Mutex
	down map[string]outageOf // by registry host
}

type outageOf struct {
	until time.Time
	cause string
}

// New makes a Resolver that pulls from a registry, named by host, by the transport for it.
func New(transport func(registry string) http.RoundTripper, now func() time.Time) *Resolver {
	return &Resolver{
		transport: transport, now: now, slots: newSlots(),
		down: map[string]outageOf{},
	}
}

// Resolve resolves one artifact. It fails with *Error.
func (r *Resolver) Resolve(ctx context.Context, a v1alpha1.Artifact, o Options) (v1alpha1.ResolvedArtifact, error) {
	resolved, err := r.identify(a)
	if err != nil {
		return resolved, &Error{Reason: v1alpha1.ReasonInvalidSpec, Err: err}
	}
	if resolved.Repository == "" {
		return resolved, nil // only peers can be asked, and that is for the nodes to do
	}
	host, _, _ := strings.Cut(resolved.Repository, "/")
	if err := r.outage(host); err != nil {
		return resolved, err
	}
	answers := &answers{RoundTripper: r.transport(host), slots: r.slots, namespace: o.Namespace,
		answered: func() { r.note(host, nil) }} // whatever it says, which may be about this artifact alone
	defer answers.done()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if a.Hub != nil {
		err = r.askHub(ctx, answers, &resolved, a.Hub, o)
	} else {
		err = ask(ctx, answers, &resolved, o)
	}
	if err == nil {
		return resolved, nil
	}
	if _, named := errors.AsType[*missing](err); !named {
		err = fmt.Errorf("%s: %w", resolved.Source, err)
	}
	classified := classify(err)
	if classified.Reason == v1alpha1.ReasonUnauthorized {
		classified.Err = fmt.Errorf("%w; %s", classified.Err, o.Credentials.Refused(resolved.Repository, o.Secrets))
	}
	switch {
	case answers.heard.Load(): // and so noted
	case classified.Reason == v1alpha1.ReasonRegistryUnreachable:
		r.note(host, classified)
	default:
		r.untried(host)
	}
	return resolved, classified
}

// untried lets somebody else ask a registry that the caller was let ask and did not.
func (r *Resolver) untried(host string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if o, ok := r.down[host]; ok {
		r.down[host] = outageOf{r.now(), o.cause}
	}
}

// note remembers of a registry that it has answered, or why not. Registries that nobody asks any more are forgotten.
func (r *Resolver) note(host string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	maps.DeleteFunc(r.down, func(h string, o outageOf) bool { return h == host || now.After(o.until.Add(forgotten)) })
	if err != nil {
		r.down[host] = outageOf{now.Add(outage), err.Error()}
	}
}

// outage is why a registry is not asked now. Who is let ask one that has been down keeps all others from it for as long
// as that may take.
func (r *Resolver) outage(host string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	o, ok := r.down[host]
	if !ok {
		return nil
	}
	if now := r.now(); !now.Before(o.until) {
		r.down[host] = outageOf{now.Add(timeout), o.cause}
		return nil
	}
	return &Error{Reason: v1alpha1.ReasonRegistryUnreachable,
		Err: fmt.Errorf("registry %s did not answer a moment ago: %s", host, o.cause)}
}

// identify fills in what follows from the artifact's name alone.
func (r *Resolver) identify(a v1alpha1.Artifact) (v1alpha1.ResolvedArtifact, error) {
	switch {
	case a.Hub != nil:
		return r.identifyHub(a)
	case a.Image != "":
		resolved := v1alpha1.ResolvedArtifact{Source: a.Image}
		named, err := reference.ParseNormalizedNamed(a.Image)
		if err != nil {
			return resolved, fmt.Errorf("image %q: %w", a.Image, err)
		}
		resolved.Repository = named.Name()
		if digested, ok := named.(reference.Digested); ok {
			resolved.Digest = digested.Digest().String()
		}
		if tagged, ok := reference.TagNameOnly(named).(reference.Tagged); ok {
			resolved.Tag = tagged.Tag()
		}
		return resolved, nil
	case a.Digest != "":
		resolved := v1alpha1.ResolvedArtifact{Source: a.Digest, Repository: a.Repository, Digest: a.Digest}
		c, err := cids.OfDigest(digest.Digest(a.Digest))
		if err != nil {
			return resolved, err
		}
		resolved.CID = c.String()
		return resolved, nil
	default:
		resolved := v1alpha1.ResolvedArtifact{Source: a.CID, Repository: a.Repository, CID: a.CID}
		c, err := cid.Decode(a.CID)
		if err != nil {
			return resolved, fmt.Errorf("cid %q: %w", a.CID, err)
		}
		if d, err := cids.Digest(c); err == nil {
			resolved.Digest = d.String()
		} else if a.Repository != "" {
			return resolved, fmt.Errorf("cid %s names a DAG and not the bytes of a blob, so no registry has it: "+
				"remove repository", a.CID)
		}
		return resolved, nil
	}
}

// ask fills in what only the registry knows.
func ask(ctx context.Context, by http.RoundTripper, resolved *v1alpha1.ResolvedArtifact, o Options) error {
	repository, err := name.NewRepository(resolved.Repository)
	if err != nil {
		return &Error{Reason: v1alpha1.ReasonInvalidSpec, Err: err}
	}
	options := []remote.Option{remote.WithContext(ctx), remote.WithTransport(by),
		remote.WithAuth(authOf(o.Credentials, resolved.Repository))}
	registry, err := remote.NewPuller(options...)
	if err != nil {
		return err
	}
	options = append(options, remote.Reuse(registry)) // what follows asks with the same token
	q := question{resolved, o.Previous, repository, options}
	if q.previous != nil && q.previous.Source != resolved.Source {
		q.previous = nil
	}
	if q.unchanged(q.keepTag(o.Running), o) {
		return nil
	}
	descriptor, err := remote.Get(referenceOf(repository, resolved), options...)
	if isNotFound(err) && resolved.Digest != "" {
		return askBlob(repository, resolved, options, o.Previous != nil, err)
	}
	if isNotFound(err) {
		return &missing{resolved.Repository + ":" + resolved.Tag, o.Previous != nil, err}
	}
	if err != nil {
		return err
	}
	resolved.Digest = descriptor.Digest.String()
	if len(descriptor.MediaType) <= maxMediaType {
		resolved.MediaType = string(descriptor.MediaType)
	}
	c, err := cids.OfDigest(digest.Digest(resolved.Digest))
	if err != nil {
		return err
	}
	resolved.CID = c.String()
	child := func(m v1.Descriptor) (*remote.Descriptor, error) {
		return registry.Get(ctx, repository.Digest(m.Digest.String()))
	}
	if resolved.Size, err = copySize(descriptor, child, o); err != nil {
		return err
	}
	if o.Referrers {
		resolved.Referrers, err = referrers(repository.Digest(resolved.Digest), options)
	}
	return err
}

// question is what is asked of a registry about one artifact.
type question struct {
	resolved, previous *v1alpha1.ResolvedArtifact // previous is nil where the artifact was not resolved before
	repository         name.Repository
	options            []remote.Option
}

// keepTag reports whether the tag beside a digest still names it, and drops a tag that does not. It may name something
// else by now. Agents take what has a tag for the tag's newest answer, and pull by it. So it is kept of what runs under
// it, while it names that.
func (q question) keepTag(running bool) (stands bool) {
	r := q.resolved
	if r.Tag == "" || r.Digest == "" {
		return false
	}
	var err error
	if running {
		stands, err = q.names(q.repository.Tag(r.Tag), r.Digest)
	}
	switch {
	case stands:
	case err != nil && !isNotFound(err) && q.previous != nil && q.previous.Digest == r.Digest:
		r.Tag = q.previous.Tag // what it names now is not known
	default:
		r.Tag = ""
	}
	return stands
}

// unchanged reports whether all that was found before still holds, and takes that over. tagStands says that the tag was
// asked about already.
func (q question) unchanged(tagStands bool, o Options) bool {
	p := q.previous
	if p == nil || p.Size <= 0 || o.Referrers {
		return false
	}
	if !tagStands {
		if same, _ := q.names(referenceOf(q.repository, q.resolved), p.Digest); !same {
			return false
		}
	}
	tag := q.resolved.Tag
	*q.resolved = *p
	q.resolved.Tag = tag
	return true
}

// names reports whether a reference is to a digest.
func (q question) names(at name.Reference, digest string) (bool, error) {
	head, err := remote.Head(at, q.options...)
	return err == nil && head.Digest.String() == digest, err
}

func referenceOf(repository name.Repository, resolved *v1alpha1.ResolvedArtifact) name.Reference {
	if resolved.Digest != "" {
		return repository.Digest(resolved.Digest)
	}
	return repository.Tag(resolved.Tag)
}

// askBlob is for a digest that is no manifest of the repository.
func askBlob(repository name.Repository, resolved *v1alpha1.ResolvedArtifact, options []remote.Option,
	previous bool, notManifest error) error {
	blob, err := remote.Layer(repository.Digest(resolved.Digest), options...)
	if err != nil {
		return err
	}
	resolved.Size, err = blob.Size()
	if isNotFound(err) {
		return &missing{resolved.Repository + "@" + resolved.Digest, previous, notManifest}
	}
	return err
}

// copySize is the number of bytes of one copy: of an index the chosen platforms, or where the nodes' own are chosen,
// the largest of them. get gives the manifests of an index.
func copySize(d *remote.Descriptor, get func(v1.Descriptor) (*remote.Descriptor, error), o Options) (int64, error) {
	if !d.MediaType.IsIndex() {
		return total(d)
	}
	manifests, err := choose(d, o)
	if err != nil {
		return 0, err
	}
	var sum, largest int64
	for _, m := range manifests {
		size := max(0, m.Size) // of an index within an index, which is rare: the nodes count it when they fetch
		if !m.MediaType.IsIndex() {
			child, err := get(m)
			if err != nil {
				return 0, fmt.Errorf("manifest %s: %w", m.Digest, err)
			}
			if size, err = total(child); err != nil {
				return 0, err
			}
		}
		sum, largest = sum+size, max(largest, size)
	}
	size := int64(len(d.Manifest))
	if len(o.Platforms) == 0 {
		return size + largest, nil
	}
	return size + sum, nil
}

// total adds the sizes of a manifest's blobs to its own. What a registry claims is not to be counted on: a negative
// size would give a node's cache room that it has not.
func total(d *remote.Descriptor) (int64, error) {
	var m v1.Manifest
	if err := json.Unmarshal(d.Manifest, &m); err != nil {
		return 0, &Error{Reason: v1alpha1.ReasonInvalidManifest, Err: fmt.Errorf("manifest %s: %w", d.Digest, err)}
	}
	size := int64(len(d.Manifest))
	for _, blob := range append(m.Layers, m.Config) {
		if size += blob.Size; blob.Size < 0 || size > maxSize {
			return 0, &Error{Reason: v1alpha1.ReasonInvalidManifest,
				Err: fmt.Errorf("the manifest says that blob %s has %d bytes: it is malformed", blob.Digest, blob.Size)}
		}
	}
	return size, nil
}

// choose picks the manifests of an index that a copy has.
func choose(d *remote.Descriptor, o Options) ([]v1.Descriptor, error) {
	var index v1.IndexManifest
	if err := json.Unmarshal(d.Manifest, &index); err != nil {
		return nil, &Error{Reason: v1alpha1.ReasonInvalidManifest, Err: fmt.Errorf("index %s: %w", d.Digest, err)}
	}
	wanted := o.Platforms
	if len(wanted) == 0 {
		wanted = o.NodePlatforms
	}
	var chosen []v1.Descriptor
	var has []string
	found := map[string]bool{}
	for _, m := range index.Manifests {
		if m.Platform == nil || m.Platform.OS == "unknown" {
			// Not an image of a platform: kept only where all is kept.
			if slices.Contains(wanted, "*") {
				chosen = append(chosen, m)
			}
			continue
		}
		platform := m.Platform.OS + "/" + m.Platform.Architecture
		full := platform
		if m.Platform.Variant != "" {
			full += "/" + m.Platform.Variant
		}
		has = append(has, full)
		for _, w := range wanted {
			if w == "*" || w == full || w == platform {
				found[w] = true
				chosen = append(chosen, m)
				break
			}
		}
	}
	for _, w := range o.Platforms {
		if w != "*" && !found[w] && len(has) > 0 {
			return nil, &Error{Reason: v1alpha1.ReasonNoSuchPlatform,
				Err: fmt.Errorf("index %s has no manifest for platform %s; it has %s", d.Digest, w,
					strings.Join(has, ", "))}
		}
	}
	if len(has) == 0 {
		return index.Manifests, nil // an index without platforms: a copy has all of it
	}
	return chosen, nil
}

func referrers(d name.Digest, options []remote.Option) ([]string, error) {
	index, err := remote.Referrers(d, options...)
	if err != nil {
		return nil, fmt.Errorf("referrers: %w", err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("referrers: %w", err)
	}
	var digests []string
	for _, m := range manifest.Manifests {
		digests = append(digests, m.Digest.String())
	}
	slices.Sort(digests)
	digests = slices.Compact(digests)
	return digests[:min(len(digests), maxReferrers)], nil
}

func authOf(credentials pullsecret.Credentials, repository string) authn.Authenticator {
	c, ok := credentials.For(repository)
	if !ok {
		return authn.Anonymous
	}
	return authn.FromConfig(authn.AuthConfig{
		Username: c.Username, Password: c.Password, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken})
}

// missing is that the registry has no such image, or no such digest.
type missing struct {
	name     string
	resolved bool // it was there before
	err      error
}

func (m *missing) Error() string {
	why := ": see how it is spelt"
	if m.resolved {
		why = " any more"
	}
	var answer *transport.Error
	if errors.As(m.err, &answer) && len(answer.Errors) > 0 &&
		answer.Errors[0].Code != transport.ManifestUnknownErrorCode {
		why += fmt.Sprintf(" (it says %s)", answer.Errors[0])
	}
	return "the registry has no " + m.name + why
}

func (m *missing) Unwrap() error { return m.err }

func isNotFound(err error) bool {
	var answer *transport.Error
	return errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound
}

// classify finds the reason for a failure.
func classify(err error) *Error {
	if known, ok := errors.AsType[*Error](err); ok {
		return &Error{Reason: known.Reason, Err: err}
	}
	status := 0
	if answer, ok := errors.AsType[*transport.Error](err); ok {
		status = answer.StatusCode
	} else if answer, ok := errors.AsType[*refusal](err); ok {
		status = answer.status
	}
	switch status {
	case http.StatusNotFound:
		return &Error{Reason: v1alpha1.ReasonNotFoundUpstream, Err: err}
	case http.StatusUnauthorized, http.StatusForbidden:
		return &Error{Reason: v1alpha1.ReasonUnauthorized, Err: err}
	case http.StatusTooManyRequests:
		return &Error{Reason: v1alpha1.ReasonRateLimited, Err: err}
	default:
		return &Error{Reason: v1alpha1.ReasonRegistryUnreachable, Err: err}
	}
}
