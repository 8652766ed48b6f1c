package plugin

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

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

func TestPins_AnImageIsTheSameHoweverItIsSpelt(t *testing.T) {
	t.Parallel()
	whole := "@" + some
	for spelt, want := range map[string]struct {
		kept string // by the one pin that there is
		gone bool
	}{
		"nginx:1.29":                   {"docker.io/library/nginx:1.29", true},
		"docker.io/library/nginx:1.29": {"nginx:1.29", true},
		"docker.io/nginx:1.29":         {"docker.io/library/nginx:1.29", true},
		"nginx":                        {"docker.io/library/nginx:latest", true},
		"nginx" + whole:                {"docker.io/library/nginx" + whole, true},
		"kept":                         {"docker.io/library/nginx:1.29", true},
		"nginx:1.28":                   {"docker.io/library/nginx:1.29", false},
	} {
		t.Run(spelt, func(t *testing.T) {
			t.Parallel()
			pinned := func(name, image string) *v1alpha1.ArtifactPin {
				return &v1alpha1.ArtifactPin{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
					Spec: v1alpha1.ArtifactPinSpec{Artifacts: []v1alpha1.Artifact{{Image: image}}}}
			}
			// An image that is called as a pin is not meant where there is that pin.
			objects := []client.Object{pinned("kept", want.kept), pinned("other", "kept")}
			code, out, errOut := pretend(t, served{}, objects, "unpin", spelt, "-n", "default")
			require.Equal(t, want.gone, code == ExitWell, errOut)
			require.Equal(t, want.gone, strings.Contains(out, "artifactpin default/kept deleted"), out)
			require.NotContains(t, out, "other")
		})
	}
	short, err := named([]string{"nginx:1.29", "redis", "docker.io/nginx:1.29"})
	require.NoError(t, err)
	require.Equal(t, []string{"docker.io/library/nginx:1.29", "docker.io/library/redis:latest"}, short)
	require.Equal(t, nameOf("pin", []string{"docker.io/library/nginx:1.29", "docker.io/library/redis:latest"}),
		nameOf("pin", short), "so the same images make the same pin")
	var f pinFlags
	f.add(&cobra.Command{}, "3", 0)
	there := v1alpha1.ArtifactPinSpec{Artifacts: []v1alpha1.Artifact{{Image: "nginx:1.29", Repository: "registry.test/nginx"}}}
	f.change(&there, v1alpha1.ArtifactPinSpec{Artifacts: []v1alpha1.Artifact{{Image: short[0]}}})
	require.Equal(t, "registry.test/nginx", there.Artifacts[0].Repository, "what is said of it is kept")
}

func TestPins_OfNoneItIsSaidWhere(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"pins -n nowhere": "no pins in namespace nowhere\n", "pins -A": "no pins in any namespace\n",
	} {
		code, _, errOut := pretend(t, served{}, nil, strings.Fields(args)...)
		require.Equal(t, ExitWell, code)
		require.Equal(t, want, errOut)
	}
}

func TestPreheat_OfWhatIsPreheatedKeepsThePinAndBeginsItsTimeAnew(t *testing.T) {
	t.Parallel()
	there := &v1alpha1.ArtifactPin{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "warm", UID: "first",
			CreationTimestamp: metav1.NewTime(time.Now().Add(-3 * time.Hour))},
		Spec: v1alpha1.ArtifactPinSpec{
			Artifacts: []v1alpha1.Artifact{{Image: "nginx:1.29", Repository: "registry.test/nginx"}},
			Replicas:  intstr.FromInt32(2), PullSecrets: []corev1.LocalObjectReference{{Name: "old"}},
			Expiry: &v1alpha1.Expiry{TTL: &metav1.Duration{Duration: 4 * time.Hour}},
		},
		Status: v1alpha1.ArtifactPinStatus{Ready: 3, Desired: 3},
	}
	code, out, errOut := pretend(t, served{}, []client.Object{there}, strings.Fields(
		"preheat nginx:1.29 --ttl 2h --name warm -n default -o json")...)
	require.Equal(t, ExitWell, code, errOut)
	var got v1alpha1.ArtifactPin
	require.NoError(t, json.Unmarshal([]byte(out), &got))
	require.Equal(t, there.UID, got.UID, "a new pin begins with no copy")
	require.EqualValues(t, 3, got.Status.Ready)
	require.InDelta(t, 5*time.Hour, got.Spec.Expiry.TTL.Duration, float64(10*time.Minute))
	require.Equal(t, there.Spec.Artifacts, got.Spec.Artifacts)
	require.Equal(t, v1alpha1.AllNodes, got.Spec.Replicas.StrVal, "what is not said is what preheat takes for said")
	require.Empty(t, got.Spec.PullSecrets)
	there.Spec.Expiry = nil
	code, _, errOut = pretend(t, served{}, []client.Object{there}, strings.Fields(
		"preheat nginx:1.29 --name warm -n default")...)
	require.Equal(t, ExitFailed, code)
	require.Contains(t, errOut, "has no ttl")
}

func TestPin_ChangesWhatTheOperatorHasJustWrittenTo(t *testing.T) {
	t.Parallel()
	there := &v1alpha1.ArtifactPin{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "base"},
		Spec: v1alpha1.ArtifactPinSpec{Artifacts: []v1alpha1.Artifact{{Image: "nginx:1.29"}}}}
	streams, _, out, errOut := genericiooptions.NewTestIOStreams()
	writes := 0
	api := fake.NewClientBuilder().WithScheme(kindsOf(t)).WithObjects(there).WithInterceptorFuncs(interceptor.Funcs{
		Update: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.UpdateOption) error {
			if writes++; writes == 1 {
				other := &v1alpha1.ArtifactPin{}
				require.NoError(t, c.Get(ctx, client.ObjectKeyFromObject(o), other))
				other.Labels = map[string]string{"by": "another"}
				require.NoError(t, c.Update(ctx, other))
			}
			return c.Update(ctx, o, opts...)
		},
	}).Build()
	p := &plugin{IOStreams: streams, flags: genericclioptions.NewConfigFlags(true), agents: served{}, api: api}
	require.Equal(t, ExitWell, p.run(t.Context(), strings.Fields("pin nginx:1.29 --name base --replicas 2 -n default -o json")),
		errOut.String())
	var got v1alpha1.ArtifactPin
	require.NoError(t, json.Unmarshal(out.Bytes(), &got))
	require.Equal(t, "another", got.Labels["by"])
	require.EqualValues(t, 2, got.Spec.Replicas.IntVal)
}

func TestPin_WithoutAnOperatorSaysSoAtOnce(t *testing.T) {
	t.Parallel()
	for _, verb := range []string{"pin", "preheat"} {
		code, _, errOut := pretend(t, served{}, nil, verb, "nginx:1.29", "--wait", "--timeout", "1s", "-n", "default")
		require.Equal(t, ExitTimedOut, code, "one may come")
		require.Contains(t, errOut, "no operator is ready, and until one is nobody looks at the pin: see kubectl shoal check")
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
