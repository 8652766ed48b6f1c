package plugin

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-cache/shoal/api/apitest"
	"github.com/shoal-cache/shoal/api/view"
)

// newPreflight is one in a namespace of its own, for these nodes.
func newPreflight(t *testing.T, c *apitest.Cluster, labels map[string]string, names ...string) (*preflight,
	[]corev1.Node) {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "preflight-", Labels: labels}}
	require.NoError(t, c.Client.Create(t.Context(), ns))
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default", Namespace: ns.Name}}
	require.NoError(t, client.IgnoreAlreadyExists(c.Client.Create(t.Context(), account)))
	nodes := make([]corev1.Node, len(names))
	for i, name := range names {
		nodes[i].Name = name
		nodes[i].Status.NodeInfo.ContainerRuntimeVersion = "containerd://2.4.2"
	}
	return &preflight{api: c.Client, namespace: ns.Name, image: "shoal-node", timeout: time.Minute}, nodes
}

// playJobs makes the pod of every job in a namespace, and ends it as the node's kubelet would, until ctx ends.
func playJobs(ctx context.Context, t *testing.T, c *apitest.Cluster, f *preflight,
	fate func(pod *corev1.Pod) *corev1.Event) {
	t.Helper()
	made := map[string]bool{}
	for ctx.Err() == nil {
		var jobs batchv1.JobList
		if c.Client.List(ctx, &jobs, client.InNamespace(f.namespace)) != nil {
			return
		}
		for i := range jobs.Items {
			job := &jobs.Items[i]
			if made[job.Name] {
				continue
			}
			made[job.Name] = true
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: job.Name + "-x", Namespace: job.Namespace,
				Labels: map[string]string{batchv1.JobNameLabel: job.Name}}, Spec: job.Spec.Template.Spec}
			if c.Client.Create(ctx, pod) != nil {
				return
			}
			event := fate(pod)
			if c.Client.Status().Update(ctx, pod) != nil || event != nil && c.Client.Create(ctx, event) != nil {
				return
			}
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func TestPreflight_SaysOfEachNodeWhatItsPodSaw(t *testing.T) {
	t.Parallel()
	c := apitest.Require(t, cluster1)
	f, nodes := newPreflight(t, c, nil, "well", "list", "no-image", "no-folder", "fails")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := func(message string, code int32) []corev1.ContainerStatus {
		return []corev1.ContainerStatus{{Name: "check", State: corev1.ContainerState{
			Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Message: message}}}}
	}
	go playJobs(ctx, t, c, f, func(pod *corev1.Pod) *corev1.Event {
		switch pod.Spec.NodeName {
		case "well":
			pod.Status.ContainerStatuses = ended(`{"inForce":false,"findings":null}`, 1)
		case "list":
			pod.Status.ContainerStatuses = ended(
				`{"findings":[{"reason":"ConfigPathList","path":"/etc/containerd/config.toml","message":"it is a list"}]}`, 1)
		case "no-image":
			pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "check", State: corev1.ContainerState{
				Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "no such host"}}}}
		case "no-folder":
			return &corev1.Event{
				ObjectMeta:     metav1.ObjectMeta{GenerateName: "e-", Namespace: pod.Namespace},
				InvolvedObject: corev1.ObjectReference{Kind: "Pod", Name: pod.Name, Namespace: pod.Namespace},
				Reason:         "FailedMount",
				Message:        "hostPath type check failed: /etc/containerd is not a directory",
			}
		case "fails":
			pod.Status.ContainerStatuses = ended("exec format error", 2)
		}
		return nil
	})
	looks, err := f.look(t.Context(), nodes)
	require.NoError(t, err)
	require.Equal(t, nodeLook{}, looks["well"])
	require.Equal(t, nodeLook{findings: []view.Finding{{Reason: "ConfigPathList", Message: "it is a list"}}}, looks["list"])
	require.ErrorContains(t, looks["no-image"].err, "no such host")
	require.Contains(t, toLook(looks["no-image"].err), "name and tag")
	require.ErrorContains(t, looks["no-folder"].err, "no folder /etc/containerd")
	require.Contains(t, toLook(looks["no-folder"].err), "the same folder")
	require.ErrorContains(t, looks["fails"].err, "code 2: exec format error")
	requireNoJobs(t, c, f)
}

func requireNoJobs(t *testing.T, c *apitest.Cluster, f *preflight) {
	t.Helper()
	var jobs batchv1.JobList
	require.NoError(t, c.Client.List(t.Context(), &jobs, client.InNamespace(f.namespace)))
	for _, job := range jobs.Items {
		require.NotNil(t, job.DeletionTimestamp, "a job is left")
	}
}

func TestPreflight_LeavesNothingWhenItIsInterrupted(t *testing.T) {
	t.Parallel()
	c := apitest.Require(t, cluster1)
	f, nodes := newPreflight(t, c, nil, "node1", "node2")
	ctx, interrupt := context.WithCancel(t.Context())
	go playJobs(ctx, t, c, f, func(*corev1.Pod) *corev1.Event { interrupt(); return nil })
	looks, err := f.look(ctx, nodes)
	require.NoError(t, err)
	require.Error(t, looks["node1"].err)
	requireNoJobs(t, c, f)
}

// Where this program is killed, the cluster ends and removes what it left.
func TestPreflight_ItsJobsEndAndGoByThemselves(t *testing.T) {
	t.Parallel()
	f := &preflight{namespace: "shoal-system", image: "shoal-node"}
	spec := f.job(&corev1.Node{}).Spec
	require.NotNil(t, spec.TTLSecondsAfterFinished)
	require.NotNil(t, spec.ActiveDeadlineSeconds)
	require.Zero(t, *spec.BackoffLimit, "a pod that fails is not made again")
}

// The pod may do no more than read one folder.
func TestPreflight_ItsPodHasTheLeastRights(t *testing.T) {
	t.Parallel()
	f := &preflight{namespace: "shoal-system", image: "shoal-node"}
	pod := f.pod(&corev1.Node{})
	require.False(t, *pod.AutomountServiceAccountToken)
	require.False(t, pod.HostNetwork || pod.HostPID || pod.HostIPC)
	require.Len(t, pod.Volumes, 1)
	require.Len(t, pod.Containers, 1)
	check := pod.Containers[0]
	require.True(t, check.VolumeMounts[0].ReadOnly)
	require.False(t, *check.SecurityContext.AllowPrivilegeEscalation)
	require.True(t, *check.SecurityContext.ReadOnlyRootFilesystem)
	require.Equal(t, []corev1.Capability{"ALL"}, check.SecurityContext.Capabilities.Drop)
}

func TestPreflight_ANamespaceThatRefusesItsPodsIsNamedAtOnce(t *testing.T) {
	t.Parallel()
	c := apitest.Require(t, cluster1)
	f, nodes := newPreflight(t, c, map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}, "node1")
	_, err := f.look(t.Context(), nodes)
	require.ErrorContains(t, err, "violates PodSecurity")
	requireNoJobs(t, c, f)
}
