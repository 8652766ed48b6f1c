package plugin

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/operator/internal/survey"
)

// What test brings along, in MiB.
const (
	testSize = 8
	perfSize = 128
)

// tested is what one node made of test's content.
type tested struct {
	Node string `json:"node"`
	// Took is until all of it was there.
	Took     time.Duration `json:"took"`
	Bytes    int64         `json:"bytes"`
	Peers    int64         `json:"fromPeers"`
	Upstream int64         `json:"fromUpstream"`
	// Fetched is how long the agent was at it, and From are the bytes by the node that sent them, where it tells.
	Fetched time.Duration    `json:"fetched,omitempty"`
	From    map[string]int64 `json:"from,omitempty"`
	// Had: it was put there, and did not come from another.
	Had     bool   `json:"had,omitempty"`
	Problem string `json:"problem,omitempty"`

	peerID string
}

// rate is how many of the bytes came in a second while the agent fetched. Where it does not tell for how long, nobody
// knows: Took has the operator's part in it, and the pauses between looks.
func (t *tested) rate(bytes int64) string {
	if t.Fetched <= 0 {
		return ""
	}
	return view.Bytes(int64(float64(bytes)/t.Fetched.Seconds())) + "/s"
}

func (p *plugin) testCommand() *cobra.Command {
	var image string
	var perf bool
	cmd := &cobra.Command{
		Use: "test", Short: "Send something over every node, and show what came from where",
		Args: view.Arguments(0, 0),
		Long: `test puts 8 MiB that nobody had before (--perf: 128 MiB) on one node, and has a pin bring them to all
others, which take them from that node and from each other. It shows which node got how many bytes from which. Then it
lets go of them again. It takes the rights of add and of pin, and an operator that is ready. No registry is asked.

TOOK is the time from the pin until all was there, with what the operator and the agent take until the fetch begins.
With --perf RATE is of the fetch alone: the bytes that came by the time it took, and beside each sender its part.

With --image it pulls an image that anyone may read through the agent of every node at once, as a container runtime
would, and throws the bytes away. The bytes also travel from the nodes to you. Where no node had the image, the sum of
what came from the registry is one copy. What was held before shows as neither.`,
		Example: "  kubectl shoal test\n  kubectl shoal test --perf\n" +
			"  kubectl shoal test --image docker.io/library/alpine:3.22",
		RunE: func(cmd *cobra.Command, _ []string) error {
			size := int64(testSize)
			if perf {
				size = perfSize
			}
			pull := func(ctx context.Context, pods []corev1.Pod) ([]tested, error) {
				return p.bring(ctx, pods, size<<20)
			}
			if image != "" {
				if perf {
					return errors.New("--perf goes without --image: how large an image is does not depend on it")
				}
				ref, err := imageOf(image)
				if err != nil {
					return fmt.Errorf("--image: %w", err)
				}
				pull = func(ctx context.Context, pods []corev1.Pod) ([]tested, error) {
					return p.test(ctx, pods, ref), nil
				}
			}
			c, err := p.look(cmd.Context())
			if err != nil {
				return err
			}
			nodes, err := nodesOf(c, "")
			if err != nil {
				return err
			}
			if ready, _, seen := c.ReadyOperators(); image == "" && seen && ready == 0 {
				return p.unoperated(c, "test has a pin bring the bytes to the nodes, and no operator is ready that "+
					"places it; test --image needs none")
			}
			all, err := pull(cmd.Context(), nodes.running)
			if err == nil {
				err = cmd.Context().Err()
			}
			if err != nil {
				return err
			}
			for _, node := range nodes.absent {
				all = append(all, tested{Node: node, Problem: errAbsent.Error()})
			}
			slices.SortFunc(all, func(a, b tested) int { return strings.Compare(a.Node, b.Node) })
			err = p.print(all, func(t *view.Text) { p.writeTested(t, all, perf) })
			return well(err, !slices.ContainsFunc(all, func(t tested) bool { return t.Problem != "" }))
		},
	}
	cmd.Flags().StringVar(&image, "image", "", "pull this `image` instead")
	cmd.Flags().BoolVar(&perf, "perf", false, "send so much that the rate can be told")
	return cmd
}

// imageOf is the image that somebody names, without its tag where a digest is named too.
func imageOf(text string) (reference.Named, error) {
	name, err := view.Named(program, text)
	if err != nil {
		return nil, err
	}
	return reference.ParseDockerRef(name)
}

// bring puts content that nobody had on one node, and has a pin bring it to all.
func (p *plugin) bring(ctx context.Context, pods []corev1.Pod, size int64) ([]tested, error) {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	namespace, err := p.namespace()
	if err != nil {
		return nil, err
	}
	body := make([]byte, size)
	if _, err := rand.Read(body); err != nil {
		return nil, err
	}
	d := digest.FromBytes(body)
	add := []string{"add", "--digest", d.String(), "--size", strconv.FormatInt(size, 10), "-"}
	err = p.agents.run(ctx, &pods[0], add, bytes.NewReader(body), io.Discard)
	if err != nil {
		return nil, err
	}
	p.say("%s are on %s; now they go to all others", view.Bytes(size), pods[0].Spec.NodeName)
	pin := &v1alpha1.ArtifactPin{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "shoal-test-" + d.Encoded()[:8]},
		Spec: v1alpha1.ArtifactPinSpec{
			Artifacts: []v1alpha1.Artifact{{Digest: d.String()}}, Replicas: intstr.FromString(v1alpha1.AllNodes),
			DeletionPolicy: v1alpha1.DeletionPurge,
			// Should this command be killed.
			Expiry: &v1alpha1.Expiry{TTL: &metav1.Duration{Duration: time.Hour}},
		},
	}
	start := time.Now()
	if err := p.api.Create(ctx, pin, client.FieldOwner(fieldManager)); err != nil {
		return nil, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.tolerance)
		defer cancel()
		if err := p.api.Delete(ctx, pin); client.IgnoreNotFound(err) != nil {
			p.say("artifactpin %s/%s stays for an hour: %s", pin.Namespace, pin.Name, explain(err))
		}
	}()
	all := onAll(pods, func(pod *corev1.Pod, t *tested) error {
		return p.arrives(ctx, pod, d, start, pod == &pods[0], t)
	})
	nameSources(all)
	if slices.ContainsFunc(all, func(t tested) bool { return t.Problem != "" }) {
		p.sayUnplaced(context.WithoutCancel(ctx), pin)
	}
	return all, nil
}

// unoperated says what is amiss with the operators, and what the command needs one for, and ends it.
func (p *plugin) unoperated(c *survey.Cluster, needs string) error {
	found := slices.DeleteFunc(survey.Diagnose(c, nil, p.clock.Now()), func(f survey.Finding) bool {
		return f.Reason != survey.ReasonOperatorMissing && f.Reason != survey.ReasonOperatorNotReady
	})
	p.say("%s", needs)
	var t view.Text
	p.writeFindings(&t, found)
	_, err := io.WriteString(p.ErrOut, t.String())
	return cmp.Or(err, errNotWell)
}

// sayUnplaced says so where no operator has looked at the pin: then agents are not to blame that nothing came.
func (p *plugin) sayUnplaced(ctx context.Context, pin *v1alpha1.ArtifactPin) {
	ctx, cancel := context.WithTimeout(ctx, p.tolerance)
	defer cancel()
	if p.api.Get(ctx, client.ObjectKeyFromObject(pin), pin) == nil && len(pin.Status.Conditions) == 0 {
		p.say("no operator has looked at the pin that was to bring it: see its log, and kubectl shoal check")
	}
}

// onAll tests all nodes at once.
func onAll(pods []corev1.Pod, test func(pod *corev1.Pod, t *tested) error) []tested {
	all := make([]tested, len(pods))
	var testing sync.WaitGroup
	for i := range pods {
		testing.Go(func() {
			all[i].Node = pods[i].Spec.NodeName
			if err := test(&pods[i], &all[i]); err != nil {
				all[i].Problem = survey.Short(err)
			}
		})
	}
	testing.Wait()
	slices.SortFunc(all, func(a, b tested) int { return strings.Compare(a.Node, b.Node) })
	return all
}

// nameSources puts the nodes' names in the place of their agents' peer IDs.
func nameSources(all []tested) {
	names := map[string]string{}
	for _, t := range all {
		names[t.peerID] = t.Node
	}
	for i := range all {
		from := make(map[string]int64, len(all[i].From))
		for id, bytes := range all[i].From {
			from[cmp.Or(names[id], id)] += bytes
		}
		all[i].From = from
	}
}

const (
	// lookAgain is the time between two looks whether something is there.
	lookAgain = 200 * time.Millisecond
	// tellsWithin is how many looks more an agent has to tell how it got what is there.
	tellsWithin = 5
)

// late is what a node comes to whose time is over, though its agent answers.
func (t *tested) late() error {
	if t.Took == 0 {
		return errors.New("it did not come in time")
	}
	return nil
}

// arrives waits until a node holds content. had: it is the one that had it before.
func (p *plugin) arrives(ctx context.Context, pod *corev1.Pod, d digest.Digest, start time.Time, had bool,
	t *tested) error {
	admin, end, err := p.agents.Open(ctx, pod, "admin")
	if err != nil {
		return err
	}
	defer end()
	before, err := view.Get[view.Node](ctx, admin, view.NodePath, nil)
	if err != nil {
		return err
	}
	t.peerID, t.Had = before.PeerID, had
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for untold := 0; ; {
		held, err := view.Get[[]view.Blob](ctx, admin, view.BlobsPath, url.Values{"digest": {d.String()}})
		if err != nil && ctx.Err() != nil {
			return t.late() // the time ended in the middle of a look; the agent has answered before
		}
		if err != nil {
			return err
		}
		if i := slices.IndexFunc(held, func(b view.Blob) bool { return b.Digest == d.String() }); i >= 0 {
			if t.Bytes = held[i].Size; t.Took == 0 {
				t.Took = time.Since(start)
			}
			if f := held[i].Fetch; f != nil {
				t.Peers, t.Upstream, t.Fetched, t.From = f.FromPeers, f.FromUpstream, f.Took, f.Peers
				return nil
			}
			if untold++; had || untold > tellsWithin {
				break
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return t.late()
		}
	}
	return t.since(ctx, admin, before)
}

// since counts what has come to the node since it was as before.
func (t *tested) since(ctx context.Context, admin *view.Client, before view.Node) error {
	after, err := view.Get[view.Node](ctx, admin, view.NodePath, nil)
	t.Peers, t.Upstream = after.Traffic.FromPeers-before.Traffic.FromPeers,
		after.Traffic.FromUpstream-before.Traffic.FromUpstream
	return err
}

// test pulls through all agents at once.
func (p *plugin) test(ctx context.Context, pods []corev1.Pod, ref reference.Named) []tested {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	return onAll(pods, func(pod *corev1.Pod, t *tested) error {
		start := time.Now()
		defer func() { t.Took = time.Since(start) }()
		return p.pullThrough(ctx, pod, ref, t)
	})
}

func (p *plugin) pullThrough(ctx context.Context, pod *corev1.Pod, ref reference.Named, t *tested) error {
	front, end, err := p.agents.Open(ctx, pod, "registry")
	if err != nil {
		return err
	}
	defer end()
	admin, endAdmin, err := p.agents.Open(ctx, pod, "admin")
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
	return t.since(ctx, admin, before)
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
		return nil, refused(c.ref, path, resp.Status, body)
	}
	return resp, nil
}

// maxRefusal bounds what is read of an error.
const maxRefusal = 4 << 10

// refused is an error answer in words: that of the registry where there is one. That there is no such manifest an agent
// says in words that differ from node to node.
func refused(ref reference.Named, path, status string, body []byte) error {
	var answer struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(body, &answer) == nil && len(answer.Errors) > 0 && answer.Errors[0].Message != "" {
		if answer.Errors[0].Code == "MANIFEST_UNKNOWN" {
			return fmt.Errorf("the registry has no %s: see how it is spelt", ref)
		}
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

// writeTested shows how it went on each node, and who sent how much to whom.
func (p *plugin) writeTested(text *view.Text, all []tested, rates bool) {
	const rate = 3 // its column
	rows := [][]string{{"NODE", "TOOK", "BYTES", "RATE", "FROM PEERS", "FROM REGISTRY", "RESULT"}}
	var below asides
	var upstream, largest int64
	for _, t := range all {
		row := []string{t.Node, view.Duration(t.Took), view.Bytes(t.Bytes), t.rate(t.Peers + t.Upstream),
			view.Bytes(t.Peers), view.Bytes(t.Upstream), "right"}
		switch {
		case t.Problem != "":
			row = []string{t.Node, "", "", "", "", "", below.cell(t.Node, "failed", t.Problem)}
		case t.Had:
			row = []string{t.Node, "", view.Bytes(t.Bytes), "", "", "", "had it from you"}
		}
		rows = append(rows, row)
		upstream += t.Upstream
		largest = max(largest, t.Bytes)
	}
	for i := range rows {
		if !rates { // 8 MiB tell none, and those of an image go all the way to the user
			rows[i] = slices.Delete(rows[i], rate, rate+1)
		}
	}
	text.Table(rows)
	below.write(text)
	// Where a matrix is shown, the content was the test's own, and no registry has it. What a node had came nowhere.
	if largest == 0 || p.writeMatrix(text, all, largest, rates) ||
		slices.ContainsFunc(all, func(t tested) bool { return t.Had }) {
		return
	}
	text.Say("The registry sent %s to %s: %.2f copies. What else was pulled meanwhile is counted with it.\n",
		view.Bytes(upstream), view.Count(len(all), "node"), float64(upstream)/float64(largest))
}

// matrixOf is how many nodes fit on a screen beside each other.
const matrixOf = 12

// writeMatrix shows which node got how many bytes from which, and how many copies of size the nodes sent, where the
// agents have told.
func (p *plugin) writeMatrix(text *view.Text, all []tested, size int64, rates bool) (shown bool) {
	sent := map[string]int64{}
	for _, t := range all {
		for from, bytes := range t.From {
			sent[from] += bytes
		}
	}
	if len(sent) == 0 {
		return false
	}
	if senders := slices.Sorted(maps.Keys(sent)); len(senders) <= matrixOf || p.output == view.Wide {
		rows := [][]string{{"TO \\ FROM"}}
		rows[0] = append(rows[0], senders...)
		for _, t := range all {
			row := []string{t.Node}
			for _, from := range senders {
				cell := ""
				if bytes := t.From[from]; bytes > 0 {
					cell = view.Bytes(bytes)
					if rates {
						cell += " " + t.rate(bytes)
					}
				}
				row = append(row, cell)
			}
			rows = append(rows, row)
		}
		text.Say("\n")
		text.Table(rows)
		text.Say("\n")
	}
	busiest := slices.SortedFunc(maps.Keys(sent), func(a, b string) int {
		return cmp.Or(cmp.Compare(sent[b], sent[a]), cmp.Compare(a, b))
	})
	var copies []string
	for _, node := range busiest[:min(len(busiest), 5)] {
		copies = append(copies, fmt.Sprintf("%s %.2f", node, float64(sent[node])/float64(size)))
	}
	text.Say("Copies that nodes sent: %s.\n", view.Line(strings.Join(copies, ", ")))
	if rates {
		text.Say("RATE is what came by the time of the fetch alone, and beside each sender its part. " +
			"TOOK begins with the pin.\n")
	}
	return true
}
