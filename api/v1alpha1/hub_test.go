package v1alpha1_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-cache/shoal/api/apitest"
)

// hubEndpoint is the address that the policy gives, until the chart names another.
const hubEndpoint = "http://shoal-hub.shoal-system.svc"

func TestHubPolicy_PodsOfLabelledNamespacesAreGivenTheAddress(t *testing.T) {
	t.Parallel()
	c := apitest.Require(t, cluster)
	ctx := t.Context()
	require.NoError(t, c.Apply(ctx, filepath.Join(apitest.APIDir(), "admission", "hub.yaml")))
	for name, labels := range map[string]map[string]string{
		"models": {"shoal.dev/hub": "enabled"}, "plain": nil, "declined": {"shoal.dev/hub": "disabled"},
	} {
		require.NoError(t, c.Client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name,
			Labels: labels}}))
		require.NoError(t, c.Client.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default",
			Namespace: name}}))
	}
	// create returns the pod as the API server would have it.
	create := func(pod corev1.Pod) corev1.PodSpec {
		pod.GenerateName = "p-"
		require.NoError(t, c.Client.Create(ctx, &pod, client.DryRunAll))
		return pod.Spec
	}
	container := func(name string, env ...corev1.EnvVar) corev1.Container {
		return corev1.Container{Name: name, Image: "loader", Env: env}
	}
	in := func(namespace string, labels map[string]string, containers ...corev1.Container) corev1.Pod {
		return corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Labels: labels},
			Spec: corev1.PodSpec{Containers: containers}}
	}
	given := corev1.EnvVar{Name: "HF_ENDPOINT", Value: hubEndpoint}
	require.Eventually(t, func() bool { // the API server enforces a policy some time after it has taken it
		return len(create(in("models", nil, container("a"))).Containers[0].Env) > 0
	}, time.Minute, 100*time.Millisecond)

	own := corev1.EnvVar{Name: "HF_ENDPOINT", Value: "https://hub.example"}
	secret := corev1.EnvVar{Name: "HF_ENDPOINT", ValueFrom: &corev1.EnvVarSource{
		SecretKeyRef: &corev1.SecretKeySelector{Key: "k",
			LocalObjectReference: corev1.LocalObjectReference{Name: "s"}}}}
	other := corev1.EnvVar{Name: "HF_TOKEN", Value: "t"}
	resolving := func(pod corev1.Pod, hostNetwork bool, by corev1.DNSPolicy) corev1.Pod {
		pod.Spec.HostNetwork, pod.Spec.DNSPolicy = hostNetwork, by
		if by == corev1.DNSNone {
			pod.Spec.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{"192.0.2.53"}}
		}
		return pod
	}
	for name, tc := range map[string]struct {
		pod  corev1.Pod
		want [][]corev1.EnvVar // of each container
	}{
		"each container is given it, beside what it has": {
			in("models", nil, container("a"), container("b", other)), [][]corev1.EnvVar{{given}, {other, given}},
		},
		"a container keeps its own": {
			in("models", nil, container("a", own), container("b", secret), container("c")),
			[][]corev1.EnvVar{{own}, {secret}, {given}},
		},
		"a pod that declines is left alone": {
			in("models", map[string]string{"shoal.dev/hub": "disabled"}, container("a")), [][]corev1.EnvVar{nil},
		},
		"the host's network with the node's DNS": {
			resolving(in("models", nil, container("a")), true, corev1.DNSClusterFirst), [][]corev1.EnvVar{nil},
		},
		"the host's network with the cluster's DNS": {
			resolving(in("models", nil, container("a")), true, corev1.DNSClusterFirstWithHostNet),
			[][]corev1.EnvVar{{given}},
		},
		"the node's DNS": {
			resolving(in("models", nil, container("a")), false, corev1.DNSDefault), [][]corev1.EnvVar{nil},
		},
		"a DNS of its own": {
			resolving(in("models", nil, container("a")), false, corev1.DNSNone), [][]corev1.EnvVar{nil},
		},
		"a namespace that does not ask is left alone": {in("plain", nil, container("a")), [][]corev1.EnvVar{nil}},
		"a namespace that declines is left alone":     {in("declined", nil, container("a")), [][]corev1.EnvVar{nil}},
	} {
		t.Run(name, func(t *testing.T) {
			for i, c := range create(tc.pod).Containers {
				require.ElementsMatch(t, tc.want[i], c.Env, c.Name)
				require.Equal(t, "loader", c.Image)
			}
		})
	}
	t.Run("init containers are given it too", func(t *testing.T) {
		pod := in("models", nil, container("a"))
		pod.Spec.InitContainers = []corev1.Container{container("load"), container("keep", own)}
		spec := create(pod)
		require.Equal(t, []corev1.EnvVar{given}, spec.InitContainers[0].Env)
		require.Equal(t, []corev1.EnvVar{own}, spec.InitContainers[1].Env)
		require.Equal(t, []corev1.EnvVar{given}, spec.Containers[0].Env)
	})
}
