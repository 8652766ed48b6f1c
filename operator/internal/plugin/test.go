package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/shoal-cache/shoal/api/view"
)

func (p *plugin) testCommand() *cobra.Command {
	var image string
	cmd := &cobra.Command{
		Use: "test --image IMAGE", Short: "Pull an image over every node at once, and show what came from where",
		Args: arguments(0, 0),
		Long: `test pulls an image that anyone may read through the agent of every node at once, as a container runtime
would, and throws the bytes away. The bytes also travel from the nodes to you. Where no node had the image, the sum of
what came from the registry is one copy. What was held before shows as neither.`,
		Example: "  kubectl shoal test --image docker.io/library/alpine:3.22",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if image == "" {
				return errors.New("--image: name an image that anyone may read, best a small one that no node holds")
			}
			ref, err := reference.ParseDockerRef(image)
			if err != nil {
				return fmt.Errorf("--image %q: %w", image, err)
			}
			pods, err := p.pods(cmd.Context(), "")
			if err != nil {
				return err
			}
			all := p.test(cmd.Context(), pods, ref)
			if err := p.print(all, func(w io.Writer) error { return writeTested(w, all) }); err != nil {
				return err
			}
			if slices.ContainsFunc(all, func(t tested) bool { return t.Problem != "" }) {
				return errNotWell
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&image, "image", "", "the image to pull")
	return cmd
}

// test pulls through all agents at once.
func (p *plugin) test(ctx context.Context, pods []corev1.Pod, ref reference.Named) []tested {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	all := make([]tested, len(pods))
	var pulling sync.WaitGroup
	for i := range pods {
		pulling.Go(func() {
			all[i].Node = pods[i].Spec.NodeName
			start := time.Now()
			err := p.pullThrough(ctx, &pods[i], ref, &all[i])
			all[i].Took = time.Since(start)
			if err != nil {
				all[i].Problem = short(err)
			}
		})
	}
	pulling.Wait()
	slices.SortFunc(all, func(a, b tested) int { return compare(a.Node, b.Node) })
	return all
}

func (p *plugin) pullThrough(ctx context.Context, pod *corev1.Pod, ref reference.Named, t *tested) error {
	front, end, err := p.agents.open(ctx, pod, "registry")
	if err != nil {
		return err
	}
	defer end()
	admin, endAdmin, err := p.agents.open(ctx, pod, "admin")
	if err != nil {
		return err
	}
	defer endAdmin()
	before, err := view.Get[view.Node](ctx, admin, view.NodePath, nil)
	if err != nil {
		return err
	}
	tag := ""
	switch r := ref.(type) {
	case reference.Digested:
		tag = r.Digest().String()
	case reference.Tagged:
		tag = r.Tag()
	}
	c := puller{client: front, ref: ref}
	blobs, err := c.manifest(ctx, tag, "linux", pod)
	for _, b := range blobs {
		if err == nil {
			err = c.blob(ctx, b)
		}
	}
	t.Bytes = c.bytes
	if err != nil {
		return err
	}
	after, err := view.Get[view.Node](ctx, admin, view.NodePath, nil)
	t.Peers, t.Upstream = after.Traffic.FromPeers-before.Traffic.FromPeers,
		after.Traffic.FromUpstream-before.Traffic.FromUpstream
	return err
}

// puller pulls through a registry front as a runtime does.
type puller struct {
	client *view.Client
	ref    reference.Named
	bytes  int64
}

func (c *puller) get(ctx context.Context, path string) (*http.Response, error) {
	query := url.Values{"ns": {reference.Domain(c.ref)}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet,
		c.client.Base+"/v2/"+reference.Path(c.ref)+path+"?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	req.Header["Accept"] = []string{v1.MediaTypeImageIndex, v1.MediaTypeImageManifest,
		"application/vnd.docker.distribution.manifest.list.v2+json",
		"application/vnd.docker.distribution.manifest.v2+json"}
	resp, err := c.client.HTTP.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
		_ = resp.Body.Close()
		return nil, refused(path, resp.Status, body)
	}
	return resp, nil
}

// maxRefusal bounds what is read of an error.
const maxRefusal = 4 << 10

// refused is an error answer in words: that of the registry where there is one.
func refused(path, status string, body []byte) error {
	var answer struct{ Errors []struct{ Message string } }
	if json.Unmarshal(body, &answer) == nil && len(answer.Errors) > 0 && answer.Errors[0].Message != "" {
		return errors.New(answer.Errors[0].Message)
	}
	return fmt.Errorf("GET %s: %s", path, status)
}

// maxManifest bounds what is read of a manifest.
const maxManifest = 8 << 20

// manifest gives the blobs of an image, of the first platform of the operating system where it is an index.
func (c *puller) manifest(ctx context.Context, name, system string, pod *corev1.Pod) ([]v1.Descriptor, error) {
	for range 2 {
		resp, err := c.get(ctx, "/manifests/"+name)
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest))
		_ = resp.Body.Close()
		if err != nil {
			return nil, fmt.Errorf("manifest %s: %w", name, err)
		}
		c.bytes += int64(len(data))
		var m struct {
			v1.Manifest
			Manifests []v1.Descriptor `json:"manifests"`
		}
		if err := json.Unmarshal(data, &m); err != nil {
			return nil, fmt.Errorf("manifest %s: %w", name, err)
		}
		if len(m.Manifests) == 0 {
			return append([]v1.Descriptor{m.Config}, m.Layers...), nil
		}
		i := slices.IndexFunc(m.Manifests, func(d v1.Descriptor) bool {
			return d.Platform != nil && d.Platform.OS == system
		})
		if i < 0 {
			return nil, fmt.Errorf("%s has no image for %s (node %s)", c.ref, system, pod.Spec.NodeName)
		}
		name = m.Manifests[i].Digest.String()
	}
	return nil, fmt.Errorf("%s: an index of an index", c.ref)
}

// blob reads a blob and checks its digest.
func (c *puller) blob(ctx context.Context, d v1.Descriptor) error {
	resp, err := c.get(ctx, "/blobs/"+d.Digest.String())
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("blob %s: %w", d.Digest, err)
	}
	sum := d.Digest.Algorithm().Hash()
	n, err := io.Copy(sum, resp.Body)
	c.bytes += n
	if err == nil && digest.NewDigest(d.Digest.Algorithm(), sum) != d.Digest {
		err = errors.New("the bytes do not match the digest")
	}
	if err != nil {
		return fmt.Errorf("blob %s: %w", d.Digest, err)
	}
	return nil
}

func writeTested(w io.Writer, all []tested) error {
	rows := [][]string{{"NODE", "TOOK", "BYTES", "FROM PEERS", "FROM REGISTRY", "RESULT"}}
	var upstream, largest int64
	for _, t := range all {
		result := t.Problem
		if result == "" {
			result = "right"
		}
		rows = append(rows, []string{t.Node, view.Duration(t.Took), view.Bytes(t.Bytes), view.Bytes(t.Peers),
			view.Bytes(t.Upstream), result})
		upstream += t.Upstream
		largest = max(largest, t.Bytes)
	}
	if err := view.Table(w, rows); err != nil {
		return err
	}
	if largest == 0 {
		return nil
	}
	_, err := fmt.Fprintf(w, "The registry sent %s to %s: %.2f copies. "+
		"What else was pulled meanwhile is counted with it.\n",
		view.Bytes(upstream), view.Count(len(all), "node"), float64(upstream)/float64(largest))
	return err
}
