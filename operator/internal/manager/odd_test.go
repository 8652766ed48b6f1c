package manager_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-cache/shoal/api/v1alpha1"
)

// dumps are what Go prints of its own values and errors.
var dumps = regexp.MustCompile(`&\{|0x[0-9a-f]{6,}|map\[|<nil>|%!|\*v1|goroutine|strconv|json:|regex used`)

// oddPins are pins that the API server takes and that cannot be carried out as they stand.
var oddPins = map[string]struct {
	change       func(*v1alpha1.ArtifactPinSpec)
	reason, told string // of Ready; the message of UpToDate where reason is AllReady
}{
	"selector": {func(s *v1alpha1.ArtifactPinSpec) {
		s.NodeSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "in", Values: []string{"b"}}}}
	}, v1alpha1.ReasonInvalidSpec, `nodeSelector: "in" is not a valid label selector operator`},
	"workloads": {func(s *v1alpha1.ArtifactPinSpec) {
		s.Artifacts, s.Workloads = nil, &v1alpha1.WorkloadSelector{Selector: &metav1.LabelSelector{
			MatchLabels: map[string]string{"not a key!": "x"}}}
	}, v1alpha1.ReasonInvalidSpec, "workloads.selector: "},
	"cron": {func(s *v1alpha1.ArtifactPinSpec) { s.Schedule = &v1alpha1.Schedule{Cron: "every day at two am"} },
		v1alpha1.ReasonInvalidSpec, "is no time in five fields"},
	"never": {func(s *v1alpha1.ArtifactPinSpec) { s.Schedule = &v1alpha1.Schedule{Cron: "0 0 30 2 *"} },
		v1alpha1.ReasonInvalidSpec, "no year has such a day"},
	"past": {func(s *v1alpha1.ArtifactPinSpec) {
		s.Expiry = &v1alpha1.Expiry{Until: &metav1.Time{Time: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)}}
	}, v1alpha1.ReasonExpired, "spec.expiry has passed"},
	"nowhere": {func(s *v1alpha1.ArtifactPinSpec) {
		s.NodeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"no-such": "label"}}
	}, v1alpha1.ReasonNoEligibleNodes, "no node with an admitted peer matches"},
	"large": {func(s *v1alpha1.ArtifactPinSpec) { one := resource.MustParse("1m"); s.SizeLimit = &one },
		v1alpha1.ReasonSizeLimitExceeded, "sizeLimit is 1B"},
	"many": {func(s *v1alpha1.ArtifactPinSpec) { s.Replicas = intstr.FromInt32(5000) },
		v1alpha1.ReasonTooFewNodes, "5000 copies are wanted, and only 3 nodes are eligible"},
	"host": {func(s *v1alpha1.ArtifactPinSpec) { s.Artifacts[0].Image = "a..b/app:1" },
		v1alpha1.ReasonInvalidSpec, "invalid reference format"},
	"port": {func(s *v1alpha1.ArtifactPinSpec) { s.Artifacts[0].Image = "localhost:99999/app:1" },
		v1alpha1.ReasonRegistryUnreachable, "invalid port"},
	"cid": {func(s *v1alpha1.ArtifactPinSpec) {
		s.Artifacts[0] = v1alpha1.Artifact{CID: "b" + strings.Repeat("a", 55)}
	},
		v1alpha1.ReasonInvalidSpec, "invalid cid"},
	"hub": {func(s *v1alpha1.ArtifactPinSpec) {
		s.Artifacts[0] = v1alpha1.Artifact{Hub: &v1alpha1.HubArtifact{Repository: "org/m", Revision: "main"}}
	}, v1alpha1.ReasonInvalidSpec, "this operator knows no hub"},
	"secret": {func(s *v1alpha1.ArtifactPinSpec) { s.PullSecrets = []corev1.LocalObjectReference{{Name: "none"}} },
		v1alpha1.ReasonAllReady, "pull secret default/none does not exist"},
	"opaque": {func(s *v1alpha1.ArtifactPinSpec) { s.PullSecrets = []corev1.LocalObjectReference{{Name: "opaque"}} },
		v1alpha1.ReasonAllReady, `its type is "Opaque", make one of type kubernetes.io/dockerconfigjson`},
	"uncalled": {func(s *v1alpha1.ArtifactPinSpec) { s.PullSecrets = []corev1.LocalObjectReference{{Name: "No Name!"}} },
		v1alpha1.ReasonAllReady, "can't be the name of a pull secret"},
	"nobody": {func(s *v1alpha1.ArtifactPinSpec) { s.ServiceAccountName = "nobody" },
		v1alpha1.ReasonAllReady, "service account default/nobody does not exist"},
	"twice": {func(s *v1alpha1.ArtifactPinSpec) { s.Artifacts = append(s.Artifacts, s.Artifacts[0]) },
		v1alpha1.ReasonAllReady, "upstream names the digests"},
	strings.Repeat("n", 253): {func(*v1alpha1.ArtifactPinSpec) {}, v1alpha1.ReasonAllReady, "upstream names the digests"},
}

// TestOddObjectsAreToldInPlainWords makes them all at once.
func TestOddObjectsAreToldInPlainWords(t *testing.T) {
	w := newWorld(t, 3, 3)
	ctx := t.Context()
	image, _ := w.push("team/app:1")
	opaque := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "opaque", Namespace: "default"}}
	require.NoError(t, w.Client.Create(ctx, opaque))
	t.Cleanup(func() { require.NoError(t, w.Client.Delete(context.Background(), opaque)) })
	pins := map[string]*v1alpha1.ArtifactPin{}
	for name, tc := range oddPins {
		pins[name] = w.pin(name, image, func(s *v1alpha1.ArtifactPinSpec) {
			hour := metav1.Duration{Duration: time.Hour}
			s.Backoff = v1alpha1.Backoff{Initial: hour, Max: hour} // what fails is not tried again while the test looks
			tc.change(s)
		})
	}
	w.oddPolicies()
	w.forgedStatus(w.pin("forged", image, nil))
	w.edited()
	stays := w.pin("stays", image, nil)
	eventually(w, stays, "three copies", isReady)
	stays.Finalizers = []string{"somebody.example/else"}
	require.NoError(t, w.Client.Update(ctx, stays))
	require.NoError(t, w.Client.Delete(ctx, stays))
	w.stormed(w.pin("stormed", image, nil))

	for name, tc := range oddPins {
		p := eventually(w, pins[name], "what is wrong with "+name[:min(len(name), 20)], func(p *v1alpha1.ArtifactPin) bool {
			return reasonOf(p, v1alpha1.ConditionReady) == tc.reason
		})
		about := v1alpha1.ConditionReady
		if tc.reason == v1alpha1.ReasonAllReady {
			about = v1alpha1.ConditionUpToDate
		}
		require.Contains(t, apimeta.FindStatusCondition(p.Status.Conditions, about).Message, tc.told, name)
	}
	w.atRest()
	w.plainWords()
}

// oddPolicies are policies that the API server takes: one that selects nothing that could be, and forty that disagree.
func (w *world) oddPolicies() {
	w.Helper()
	for i := range 40 {
		capacity := resource.MustParse(fmt.Sprint(i+1, "Gi"))
		p := &v1alpha1.CachePolicy{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint(strings.Repeat("p", 240), "-", i)},
			Spec: v1alpha1.CachePolicySpec{Storage: &v1alpha1.StoragePolicy{Capacity: &capacity}}}
		require.NoError(w, w.Client.Create(w.Context(), p))
	}
	malformed := &v1alpha1.CachePolicy{ObjectMeta: metav1.ObjectMeta{Name: "malformed"},
		Spec: v1alpha1.CachePolicySpec{NodeSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "not a value!"}}}}
	require.NoError(w, w.Client.Create(w.Context(), malformed))
	eventually(w, malformed, "that its selector is malformed", func(p *v1alpha1.CachePolicy) bool {
		c := apimeta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady)
		return c != nil && c.Reason == v1alpha1.ReasonInvalidSelector
	})
	last := &v1alpha1.CachePolicy{ObjectMeta: metav1.ObjectMeta{Name: strings.Repeat("p", 240) + "-39"}}
	eventually(w, last, "that it disagrees", func(p *v1alpha1.CachePolicy) bool {
		return apimeta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.ConditionConflicting)
	})
}

// forgedStatus has somebody write into a pin's status what never was.
func (w *world) forgedStatus(p *v1alpha1.ArtifactPin) {
	w.Helper()
	eventually(w, p, "three copies", isReady)
	digest := p.Status.Artifacts[0].Digest
	p.Status.Ready, p.Status.Desired, p.Status.Summary = 77, 99, "nonsense"
	p.Status.Artifacts = []v1alpha1.ResolvedArtifact{{Source: "lies", Digest: "sha256:nonsense", Size: -5}}
	p.Status.Conditions = nil
	require.NoError(w, w.Client.Status().Update(w.Context(), p))
	eventually(w, p, "what is so", func(p *v1alpha1.ArtifactPin) bool {
		return isReady(p) && p.Status.Ready == 3 && len(p.Status.Artifacts) == 1 && p.Status.Artifacts[0].Digest == digest
	})
}

// edited has an administrator take all assignments from a node by hand.
func (w *world) edited() {
	w.Helper()
	var all v1alpha1.NodeCacheList
	require.NoError(w, w.Client.List(w.Context(), &all))
	cache := &all.Items[0]
	had := len(cache.Spec.Pins)
	require.NotZero(w, had)
	operator := w.ClientFor(w, w.Impersonate("", "shoal-operator")) // the admission policy lets nobody else
	patch := client.RawPatch("application/merge-patch+json", []byte(`{"spec": {"pins": []}}`))
	require.NoError(w, operator.Patch(w.Context(), cache, patch))
	eventually(w, cache, "its assignments again", func(c *v1alpha1.NodeCache) bool { return len(c.Spec.Pins) >= had })
}

// stormed has a program write a pin a few hundred times.
func (w *world) stormed(p *v1alpha1.ArtifactPin) {
	w.Helper()
	for i := range 300 {
		patch := fmt.Sprintf(`{"metadata": {"annotations": {"i": "%d"}}, "spec": {"priority": %d}}`, i, i%3)
		require.NoError(w, w.Client.Patch(w.Context(), p.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(patch))))
	}
	eventually(w, p, "three copies", func(p *v1alpha1.ArtifactPin) bool { return isReady(p) && p.Status.Ready == 3 })
}

// atRest expects that the operator writes nothing more.
func (w *world) atRest() {
	w.Helper()
	versions := func() map[string]string {
		seen := map[string]string{}
		for _, list := range []client.ObjectList{&v1alpha1.ArtifactPinList{}, &v1alpha1.NodeCacheList{},
			&v1alpha1.CachePolicyList{}, &v1alpha1.SwarmList{}, &v1alpha1.PeerList{}} {
			require.NoError(w, w.Client.List(w.Context(), list))
			require.NoError(w, apimeta.EachListItem(list, func(o runtime.Object) error {
				object := o.(client.Object)
				seen[fmt.Sprintf("%T %s", object, client.ObjectKeyFromObject(object))] = object.GetResourceVersion()
				return nil
			}))
		}
		return seen
	}
	before, since := versions(), time.Now()
	w.eventuallyTrue("that nothing is written for longer than a plan holds", func() (bool, any) {
		if now := versions(); !maps.Equal(now, before) {
			before, since = now, time.Now()
		}
		return time.Since(since) > 20*time.Second, since
	})
}

// plainWords expects that nothing that people read is what Go prints of its own.
func (w *world) plainWords() {
	w.Helper()
	var pins v1alpha1.ArtifactPinList
	var policies v1alpha1.CachePolicyList
	var told eventsv1.EventList
	for _, list := range []client.ObjectList{&pins, &policies, &told} {
		require.NoError(w, w.Client.List(w.Context(), list))
	}
	for i := range pins.Items {
		text, err := json.Marshal(pins.Items[i].Status)
		require.NoError(w, err)
		require.NotRegexp(w, dumps, string(text), pins.Items[i].Name)
	}
	for i := range policies.Items {
		for _, c := range policies.Items[i].Status.Conditions {
			require.NotRegexp(w, dumps, c.Message, policies.Items[i].Name)
		}
	}
	for i := range told.Items {
		require.NotRegexp(w, dumps, told.Items[i].Note, told.Items[i].Regarding.Name)
	}
}
