package plugin

import (
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/shoal-cache/shoal/api/v1alpha1"
)

func TestPin_OfAPinThatIsThereOnlyWhatFlagsNameIsChanged(t *testing.T) {
	t.Parallel()
	minimum := int32(2)
	app := digest.FromString("app").String()
	const second = "registry.example/app:2"
	there := v1alpha1.ArtifactPinSpec{
		Artifacts: []v1alpha1.Artifact{{Digest: app, Repository: "registry.example/app"}},
		Replicas:  intstr.FromInt32(2), MinReplicas: &minimum, Target: v1alpha1.TargetCacheAndRuntime,
		PullSecrets:  []corev1.LocalObjectReference{{Name: "login"}},
		NodeSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"pool": "gpu"}},
		Expiry:       &v1alpha1.Expiry{TTL: &metav1.Duration{Duration: time.Hour}},
	}
	for name, c := range map[string]struct {
		images, flags []string
		want          func(*v1alpha1.ArtifactPinSpec)
	}{
		"nothing but the images": {want: func(*v1alpha1.ArtifactPinSpec) {}},
		"the number of copies": {flags: []string{"--replicas", "3"},
			want: func(s *v1alpha1.ArtifactPinSpec) { s.Replicas = intstr.FromInt32(3) }},
		"that it does not end": {flags: []string{"--ttl", "0"},
			want: func(s *v1alpha1.ArtifactPinSpec) { s.Expiry = nil }},
		"how long it holds": {flags: []string{"--ttl", "2h"}, want: func(s *v1alpha1.ArtifactPinSpec) {
			s.Expiry.TTL.Duration = 2 * time.Hour
		}},
		"other secrets": {flags: []string{"--pull-secret", "other"},
			want: func(s *v1alpha1.ArtifactPinSpec) { s.PullSecrets[0].Name = "other" }},
		"that any node will do": {flags: []string{"--node-selector", ""},
			want: func(s *v1alpha1.ArtifactPinSpec) { s.NodeSelector = nil }},
		"one image more": {images: []string{app, second}, want: func(s *v1alpha1.ArtifactPinSpec) {
			s.Artifacts = append(s.Artifacts, v1alpha1.Artifact{Image: second})
		}},
		"another image in its place": {images: []string{second}, want: func(s *v1alpha1.ArtifactPinSpec) {
			s.Artifacts = []v1alpha1.Artifact{{Image: second}}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var f pinFlags
			cmd := &cobra.Command{}
			f.add(cmd, "3", 0)
			require.NoError(t, cmd.ParseFlags(c.flags))
			images := c.images
			if images == nil {
				images = []string{app}
			}
			to, err := f.spec(images)
			require.NoError(t, err)
			got, want := there.DeepCopy(), there.DeepCopy()
			f.change(got, to)
			c.want(want)
			require.Equal(t, want, got)
		})
	}
}

func TestPin_WaitsForAnAttemptOfItsOwnBeforeItGivesUp(t *testing.T) {
	t.Parallel()
	earlier, later := metav1.Unix(1000, 0), metav1.Unix(1010, 0)
	for name, c := range map[string]struct {
		before v1alpha1.ArtifactPinStatus // as the user found it
		tried  int64                      // the generation that the resolver has tried, of two
		last   metav1.Time
		failed int32
		ends   bool
	}{
		"a new pin that fails ends the command": {tried: 2, last: earlier, failed: 1, ends: true},
		"what the spec before it failed for does not": {tried: 1, last: earlier, failed: 1,
			before: v1alpha1.ArtifactPinStatus{LastAttempt: &earlier, FailedAttempts: 1}},
		"nor does what the same spec failed for before": {tried: 2, last: earlier, failed: 1,
			before: v1alpha1.ArtifactPinStatus{LastAttempt: &earlier, FailedAttempts: 1}},
		"the next attempt does": {tried: 2, last: later, failed: 2, ends: true,
			before: v1alpha1.ArtifactPinStatus{LastAttempt: &earlier, FailedAttempts: 1}},
		"also within the same second": {tried: 2, last: earlier, failed: 2, ends: true,
			before: v1alpha1.ArtifactPinStatus{LastAttempt: &earlier, FailedAttempts: 1}},
		"also where no more attempts are counted": {tried: 2, last: later, failed: 1000, ends: true,
			before: v1alpha1.ArtifactPinStatus{LastAttempt: &earlier, FailedAttempts: 1000}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			failing := func(kind string, generation int64) metav1.Condition {
				return metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonUnauthorized,
					ObservedGeneration: generation}
			}
			pin := &v1alpha1.ArtifactPin{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "app", Generation: 2}}
			pin.Status = v1alpha1.ArtifactPinStatus{ObservedGeneration: 2, LastAttempt: &c.last, FailedAttempts: c.failed,
				Conditions: []metav1.Condition{failing(v1alpha1.ConditionReady, 2),
					failing(v1alpha1.ConditionResolved, c.tried)}}
			streams, _, _, _ := genericiooptions.NewTestIOStreams()
			p := &plugin{IOStreams: streams,
				api: fake.NewClientBuilder().WithScheme(kindsOf(t)).WithObjects(pin.DeepCopy()).Build()}
			done, err := p.progress(t.Context(), pin, &c.before, map[string]string{})
			require.False(t, done)
			require.Equal(t, c.ends, err != nil, err)
		})
	}
}
