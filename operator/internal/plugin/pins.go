package plugin

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/operator/internal/survey"
)

// fieldManager is that of what this command writes.
const fieldManager = "kubectl-shoal"

// pinFlags are those of pin and preheat.
type pinFlags struct {
	name     string
	replicas string
	ttl      time.Duration
	secrets  []string
	wait     bool
	selector string
	given    func(flag string) bool // reports whether the user gave it
}

func (p *plugin) pinCommand() *cobra.Command {
	var f pinFlags
	cmd := &cobra.Command{
		Use: "pin IMAGE…", Short: "Keep images on nodes, whatever is evicted and whichever node goes",
		Args: view.Arguments(1, -1),
		Example: "  kubectl shoal pin docker.io/library/debian:stable-slim --replicas 3\n" +
			"  kubectl shoal pin registry.example/team/app:1.2 --pull-secret login --wait",
		RunE: func(cmd *cobra.Command, args []string) error { return p.pinWithin(cmd.Context(), args, "pin", f) },
	}
	f.add(cmd, "3", 0)
	return cmd
}

func (p *plugin) preheatCommand() *cobra.Command {
	var f pinFlags
	cmd := &cobra.Command{
		Use: "preheat IMAGE…", Short: "Bring images to the nodes before a rollout needs them",
		Args: view.Arguments(1, -1),
		Long: `preheat pins images on all nodes for a while, so that a rollout finds them there. The pin ends by itself
after --ttl, and the images then stay in the cache like any others. The next preheat in the namespace deletes it. A
preheat of the same images begins their time anew and looks at their tags anew; what nodes hold stays there.`,
		Example: "  kubectl shoal preheat registry.example/team/app:1.3 --wait\n" +
			"  kubectl shoal preheat registry.example/team/app:1.3 --node-selector pool=gpu --ttl 2h",
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.ttl == 0 {
				return errors.New("--ttl 0: pins of preheat end after a while; " +
					"kubectl shoal pin makes a pin that stays")
			}
			return p.pinWithin(cmd.Context(), args, "preheat", f)
		},
	}
	f.add(cmd, v1alpha1.AllNodes, 6*time.Hour)
	return cmd
}

func (f *pinFlags) add(cmd *cobra.Command, replicas string, ttl time.Duration) {
	flags := cmd.Flags()
	f.given = flags.Changed
	flags.StringVar(&f.name, "name", "", "name of the pin; default: made of the images")
	flags.StringVar(&f.replicas, "replicas", replicas, "a count, a percentage of the nodes, or All")
	flags.DurationVar(&f.ttl, "ttl", ttl, "how long it holds; 0: until it is removed")
	flags.StringSliceVar(&f.secrets, "pull-secret", nil, "Secrets of the namespace with the registry's credentials")
	flags.StringVar(&f.selector, "node-selector", "", "on these nodes only, as key=value")
	flags.BoolVar(&f.wait, "wait", false, "wait until every copy is whole, and show how far each node is")
}

// spec is the pin that the flags describe.
func (f *pinFlags) spec(images []string) (v1alpha1.ArtifactPinSpec, error) {
	s := v1alpha1.ArtifactPinSpec{Replicas: intstr.Parse(f.replicas)}
	for _, i := range images {
		if strings.HasPrefix(i, "sha256:") || strings.HasPrefix(i, "sha512:") {
			s.Artifacts = append(s.Artifacts, v1alpha1.Artifact{Digest: i})
		} else {
			s.Artifacts = append(s.Artifacts, v1alpha1.Artifact{Image: i})
		}
	}
	for _, name := range f.secrets {
		s.PullSecrets = append(s.PullSecrets, corev1.LocalObjectReference{Name: name})
	}
	if n, err := strconv.Atoi(f.replicas); err == nil && n < 1 { // the API takes 0 for "not said", which is 3
		return s, fmt.Errorf("--replicas %s: want 1 or more, a percentage of the nodes, or All; "+
			"kubectl shoal unpin lets the copies go", f.replicas)
	}
	if f.ttl < 0 {
		return s, fmt.Errorf("--ttl %s: want 0, for a pin that stays until it is removed, or more", f.ttl)
	}
	if f.ttl > 0 {
		s.Expiry = &v1alpha1.Expiry{TTL: &metav1.Duration{Duration: f.ttl}}
	}
	if f.selector != "" {
		selector, err := metav1.ParseToLabelSelector(f.selector)
		if err != nil {
			return s, fmt.Errorf("--node-selector %q: %w", f.selector, err)
		}
		s.NodeSelector = selector
	}
	return s, nil
}

// change changes a pin as the user asked for, and leaves all else as it is.
func (f *pinFlags) change(pin *v1alpha1.ArtifactPinSpec, to v1alpha1.ArtifactPinSpec) {
	for i, a := range to.Artifacts { // one that is pinned already keeps what is said of it
		same := func(b v1alpha1.Artifact) bool { return meant(a.Image) == meant(b.Image) && a.Digest == b.Digest }
		if j := slices.IndexFunc(pin.Artifacts, same); j >= 0 {
			to.Artifacts[i] = pin.Artifacts[j]
		}
	}
	pin.Artifacts = to.Artifacts
	if f.given("replicas") {
		pin.Replicas = to.Replicas
	}
	if f.given("ttl") {
		if pin.Expiry == nil {
			pin.Expiry = &v1alpha1.Expiry{}
		}
		if pin.Expiry.TTL = nil; to.Expiry != nil {
			pin.Expiry.TTL = to.Expiry.TTL
		}
		if *pin.Expiry == (v1alpha1.Expiry{}) {
			pin.Expiry = nil
		}
	}
	if f.given("pull-secret") {
		pin.PullSecrets = to.PullSecrets
	}
	if f.given("node-selector") {
		pin.NodeSelector = to.NodeSelector
	}
}

var unusable = regexp.MustCompile(`[^a-z0-9-]+`)

// named are images and digests as they are meant, each once, so that nginx:1.29 is docker.io/library/nginx:1.29.
func named(images []string) ([]string, error) {
	all := make([]string, 0, len(images))
	for _, image := range images {
		name, err := view.Named(program, image)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all, nil
}

// nameOf is a name for a pin of images: the last word of the first, and a hash of all, so that the same images make the
// same pin.
func nameOf(prefix string, images []string) string {
	word := images[0]
	word = word[strings.LastIndex(word, "/")+1:]
	word, _, _ = strings.Cut(word, "@")
	word = strings.Trim(unusable.ReplaceAllString(strings.ToLower(word), "-"), "-")
	sum := sha256.Sum256([]byte(strings.Join(images, "\n")))
	return fmt.Sprintf("%s-%s-%s", prefix, word[:min(len(word), 40)], hex.EncodeToString(sum[:4]))
}

func (p *plugin) pinWithin(ctx context.Context, images []string, prefix string, f pinFlags) error {
	ctx, cancel := p.within(ctx, f.wait)
	defer cancel()
	return p.late(ctx, p.pin(ctx, images, prefix, f))
}

func (p *plugin) pin(ctx context.Context, images []string, prefix string, f pinFlags) error {
	images, err := named(images)
	if err != nil {
		return err
	}
	if err := p.connect(); err != nil {
		return err
	}
	namespace, err := p.namespace()
	if err != nil {
		return err
	}
	spec, err := f.spec(images)
	if err != nil {
		return err
	}
	pin := &v1alpha1.ArtifactPin{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: f.name}, Spec: spec}
	pin.Name = cmp.Or(pin.Name, nameOf(prefix, images))
	if prefix == "preheat" {
		pin.Labels = map[string]string{v1alpha1.ManagedByLabel: fieldManager}
		p.sweep(ctx, namespace)
	}
	existing := &v1alpha1.ArtifactPin{}
	err = retry.RetryOnConflict(retry.DefaultRetry, func() error { // the operator writes to it as well
		existing = &v1alpha1.ArtifactPin{}
		if err := p.api.Get(ctx, client.ObjectKeyFromObject(pin), existing); err != nil {
			return err
		}
		if prefix == "preheat" {
			if err := f.renew(existing, spec, p.clock.Now()); err != nil {
				return err
			}
		} else {
			f.change(&existing.Spec, spec)
		}
		return p.api.Update(ctx, existing, client.FieldOwner(fieldManager))
	})
	if apierrors.IsNotFound(err) {
		return p.made(ctx, pin, "made", f, p.api.Create(ctx, pin, client.FieldOwner(fieldManager)))
	}
	return p.made(ctx, existing, "changed", f, err)
}

// renew has the time of a preheat begin anew. The pin stays the one that it is, so that no node lets go of a copy, and
// without an operator what is held is not forgotten. now is the API server's time.
func (f *pinFlags) renew(pin *v1alpha1.ArtifactPin, to v1alpha1.ArtifactPinSpec, now time.Time) error {
	if pin.Spec.Expiry == nil || pin.Spec.Expiry.TTL == nil {
		return fmt.Errorf("artifactpin %s/%s is there already, and has no ttl as the pins of preheat have; "+
			"give another --name", pin.Namespace, pin.Name)
	}
	as := *f
	as.given = func(string) bool { return true } // a preheat says all that it is to be
	as.change(&pin.Spec, *to.DeepCopy())
	// A ttl counts from when the pin was made.
	pin.Spec.Expiry.TTL.Duration += max(0, now.Sub(pin.CreationTimestamp.Time).Truncate(time.Second))
	return nil
}

// sweep deletes the pins of earlier preheats that have ended. Otherwise each version that was ever preheated would
// leave one. Where that fails the next preheat does it.
func (p *plugin) sweep(ctx context.Context, namespace string) {
	var pins v1alpha1.ArtifactPinList
	if err := p.api.List(ctx, &pins, client.InNamespace(namespace),
		client.MatchingLabels{v1alpha1.ManagedByLabel: fieldManager}); err != nil {
		return
	}
	for i := range pins.Items {
		pin := &pins.Items[i]
		expired := apimeta.FindStatusCondition(pin.Status.Conditions, v1alpha1.ConditionExpired)
		// One of another generation says nothing of a pin whose time somebody has made longer since.
		if expired != nil && expired.Status == metav1.ConditionTrue && expired.ObservedGeneration == pin.Generation {
			_ = p.api.Delete(ctx, pin, client.Preconditions{UID: &pin.UID, ResourceVersion: &pin.ResourceVersion})
		}
	}
}

func (p *plugin) made(ctx context.Context, pin *v1alpha1.ArtifactPin, how string, f pinFlags, err error) error {
	if err != nil {
		return err
	}
	if !f.wait {
		return p.print(plainPin(pin), func(t *view.Text) {
			t.Say("artifactpin %s/%s %s; see kubectl shoal pins\n", pin.Namespace, pin.Name, how)
		})
	}
	p.say("artifactpin %s/%s %s; waiting for %s at most", pin.Namespace, pin.Name, how, view.Duration(p.timeout))
	p.sayUnoperated(ctx)
	shown, before := map[string]string{}, pin.Status.DeepCopy()
	err = p.until(ctx, func(ctx context.Context) (bool, error) { return p.progress(ctx, pin, before, shown) })
	printed := p.print(plainPin(pin), func(t *view.Text) { writePins(t, []v1alpha1.ArtifactPin{*pin}) })
	return cmp.Or(printed, err)
}

// sayUnoperated says so where nobody looks at pins. One may be about to: what waits goes on waiting.
func (p *plugin) sayUnoperated(ctx context.Context) {
	c, err := p.look(ctx)
	if err != nil {
		return // which the waiting tells, if it lasts
	}
	if ready, _, seen := c.ReadyOperators(); seen && ready == 0 {
		p.say("no operator is ready, and until one is nobody looks at the pin: see kubectl shoal check")
	}
}

// plainPin is a pin as kubectl get prints it: with its kind, without what only the API server wants to know.
func plainPin(pin *v1alpha1.ArtifactPin) *v1alpha1.ArtifactPin {
	pin = pin.DeepCopy()
	pin.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("ArtifactPin"))
	pin.ManagedFields = nil
	return pin
}

// progress shows how far nodes are with a pin, a line for each that has moved on, and reports whether all copies are
// whole. before is the pin's status as the user found it.
func (p *plugin) progress(ctx context.Context, pin *v1alpha1.ArtifactPin, before *v1alpha1.ArtifactPinStatus,
	shown map[string]string) (bool, error) {
	if err := p.api.Get(ctx, client.ObjectKeyFromObject(pin), pin); err != nil {
		return false, err
	}
	var caches v1alpha1.NodeCacheList
	if err := p.api.List(ctx, &caches); err != nil {
		return false, err
	}
	for _, c := range caches.Items {
		for _, s := range c.Status.Pins {
			if types.UID(s.UID) != pin.UID {
				continue
			}
			line := fmt.Sprintf("%s %s %s of %s", bar(s.BytesHeld, s.BytesWanted), s.State, view.Bytes(s.BytesHeld),
				view.Bytes(s.BytesWanted))
			if s.Message != "" {
				line += ": " + s.Message
			}
			if shown[c.Name] != line {
				shown[c.Name] = line
				p.say("%-24s %s", c.Name, line)
			}
		}
	}
	cond := apimeta.FindStatusCondition(pin.Status.Conditions, v1alpha1.ConditionReady)
	if cond == nil || pin.Status.ObservedGeneration != pin.Generation {
		return false, nil
	}
	early, again := fromEarlier(pin, cond, before), ""
	if early {
		again = "; that was before, and it is tried again"
	}
	if shown[""] != cond.Reason+again {
		shown[""] = cond.Reason + again
		p.say("%-24s %s: %s%s", "pin", cond.Reason, cond.Message, again)
	}
	if !early && slices.Contains(hopeless, cond.Reason) {
		return false, errNotWell
	}
	return cond.Status == metav1.ConditionTrue, nil
}

// fromEarlier reports whether a reason is what registries or Secrets said before the user asked for the pin. He may
// just have mended that: what counts is the next attempt.
func fromEarlier(pin *v1alpha1.ArtifactPin, ready *metav1.Condition, before *v1alpha1.ArtifactPinStatus) bool {
	s := &pin.Status
	resolved := apimeta.FindStatusCondition(s.Conditions, v1alpha1.ConditionResolved)
	return resolved != nil && resolved.Status == metav1.ConditionFalse && resolved.Reason == ready.Reason &&
		(resolved.ObservedGeneration != pin.Generation ||
			s.LastAttempt.Equal(before.LastAttempt) && s.FailedAttempts == before.FailedAttempts)
}

// hopeless are the reasons that stay until somebody changes something, so that nobody is kept waiting for them.
var hopeless = []string{v1alpha1.ReasonNotFoundUpstream, v1alpha1.ReasonUnauthorized,
	v1alpha1.ReasonInsufficientCapacity,
	v1alpha1.ReasonSizeLimitExceeded, v1alpha1.ReasonInvalidSpec, v1alpha1.ReasonSecretNotFound}

// bar draws a part of a whole.
func bar(part, whole int64) string {
	const width = 20
	full := 0
	if whole > 0 { // what agents report may be anything
		full = int(width * max(0, min(1, float64(part)/float64(whole))))
	}
	return "[" + strings.Repeat("#", full) + strings.Repeat(".", width-full) + "]"
}

// unpinned is a pin that unpin has deleted.
type unpinned struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

func (p *plugin) unpinCommand() *cobra.Command {
	return &cobra.Command{
		Use: "unpin NAME|IMAGE…", Short: "Let go of pins, by their names or by the images that they keep",
		Args: view.Arguments(1, -1), ValidArgsFunction: p.completePins,
		Example: "  kubectl shoal unpin docker.io/library/debian:stable-slim\n  kubectl shoal unpin base -n default",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := p.connect(); err != nil {
				return err
			}
			namespace, err := p.namespace()
			if err != nil {
				return err
			}
			var pins v1alpha1.ArtifactPinList
			if err := p.api.List(cmd.Context(), &pins, client.InNamespace(namespace)); err != nil {
				return err
			}
			missing, gone := false, []unpinned{}
			for _, name := range args {
				chosen := slices.DeleteFunc(slices.Clone(pins.Items), func(pin v1alpha1.ArtifactPin) bool {
					return pin.Name != name
				})
				if len(chosen) == 0 {
					chosen = slices.DeleteFunc(slices.Clone(pins.Items), func(pin v1alpha1.ArtifactPin) bool {
						return !keeps(&pin, name)
					})
				}
				for i := range chosen {
					if err := p.api.Delete(cmd.Context(), &chosen[i]); client.IgnoreNotFound(err) != nil {
						return err
					}
					gone = append(gone, unpinned{namespace, chosen[i].Name})
				}
				if len(chosen) == 0 {
					p.say("no pin in namespace %s has the name %s, or keeps that image alone; kubectl shoal pins -A "+
						"lists them", namespace, name)
					missing = true
				}
			}
			err = p.print(gone, func(t *view.Text) {
				for _, pin := range gone {
					t.Say("artifactpin %s/%s deleted\n", pin.Namespace, pin.Name)
				}
			})
			return well(err, !missing)
		},
	}
}

// keeps reports whether a pin keeps that image or digest and nothing else.
func keeps(pin *v1alpha1.ArtifactPin, name string) bool {
	a := pin.Spec.Artifacts
	return len(a) == 1 && (a[0].Digest == name || a[0].Image != "" && meant(a[0].Image) == meant(name))
}

// meant is an image as it is meant, and as it is where it is none: pins may hold anything.
func meant(image string) string {
	if name, err := view.Named(program, image); err == nil {
		return name
	}
	return image
}

func (p *plugin) pinsCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "pins", Short: "List pins, and how far they are", Args: view.Arguments(0, 0),
		Example: "  kubectl shoal pins -A",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := p.connect(); err != nil {
				return err
			}
			namespace, err := p.namespace()
			if err != nil {
				return err
			}
			if all {
				namespace = ""
			}
			var pins v1alpha1.ArtifactPinList
			if err := p.api.List(cmd.Context(), &pins, client.InNamespace(namespace)); err != nil {
				return err
			}
			if len(pins.Items) == 0 && p.output.ForPeople() {
				where := "namespace " + namespace
				if all {
					where = "any namespace"
				}
				p.say("no pins in %s", where)
				return nil
			}
			pins.Items = append([]v1alpha1.ArtifactPin{}, pins.Items...) // a list also where there is none
			for i := range pins.Items {
				pins.Items[i] = *plainPin(&pins.Items[i])
			}
			return p.print(pins.Items, func(t *view.Text) { writePins(t, pins.Items) })
		},
	}
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "of all namespaces")
	return cmd
}

func writePins(t *view.Text, pins []v1alpha1.ArtifactPin) {
	rows := [][]string{{"NAMESPACE", "NAME", "READY", "STATUS", "HELD", "WANTED", "ARTIFACTS"}}
	for i := range pins {
		s := &pins[i].Status
		status := "not looked at yet"
		if c := apimeta.FindStatusCondition(s.Conditions, v1alpha1.ConditionReady); c != nil {
			status = c.Reason
		}
		rows = append(rows, []string{pins[i].Namespace, pins[i].Name, fmt.Sprintf("%d/%d", s.Ready, s.Desired), status,
			view.Bytes(survey.SizeOf(s.BytesHeld)), view.Bytes(survey.SizeOf(s.BytesWanted)), s.Summary})
	}
	t.Table(rows)
}
