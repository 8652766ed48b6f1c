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
