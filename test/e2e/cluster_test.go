package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/shoal-cache/shoal/test/hubtest"
)

const (
	shoalNamespace = "shoal-system"
	workNamespace  = "e2e"
	release        = "shoal"
	agents         = "daemonset/shoal-agent"
)

// cluster is the Kubernetes cluster as its users see it.
type cluster struct {
	rig             rig
	nodes           []string
	public, private registry
	current         version
	previous        version // what upgrades start from

	hub      *hubtest.Hub      // where models come from
	cold     image             // what every node's cache holds
	original map[string]string // each node's mirror configuration before Shoal was installed
}

func connect(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{
		rig:      rig{program: setting(t, "SHOAL_E2E_RIG")},
		public:   registry{address: setting(t, "SHOAL_E2E_REGISTRY")},
		private:  registry{address: setting(t, "SHOAL_E2E_PRIVATE_REGISTRY"), user: "user", password: "secret"},
		current:  version{chart: setting(t, "SHOAL_E2E_CHART"), tag: setting(t, "SHOAL_E2E_TAG")},
		previous: version{chart: setting(t, "SHOAL_E2E_PREVIOUS_CHART"), tag: setting(t, "SHOAL_E2E_PREVIOUS_TAG")},
	}
	c.hub = startHub(t, c.public)
	c.nodes = c.rig.nodes(t)
	require.GreaterOrEqual(t, len(c.nodes), 3, "the suite needs three nodes")
	if _, err := run(t.Context(), "", "kubectl", "get", "namespace", workNamespace); err != nil {
		c.kubectl(t, "create", "namespace", workNamespace)
	}
	return c
}

// version is a version of Shoal.
type version struct {
	chart string // folder or archive
	tag   string // of the images; the programs call themselves so too
}

func (c *cluster) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := run(t.Context(), "", "kubectl", args...)
	require.NoError(t, err)
	return strings.TrimSpace(out)
}

func (c *cluster) helm(t *testing.T, args ...string) string {
	t.Helper()
	out, err := run(t.Context(), "", "helm", args...)
	require.NoError(t, err)
	return out
}

// get reads an object or a list.
func (c *cluster) get(t *testing.T, into any, args ...string) {
	t.Helper()
	require.NoError(t, c.tryGet(t.Context(), into, args...))
}

func (c *cluster) tryGet(ctx context.Context, into any, args ...string) error {
	out, err := run(ctx, "", "kubectl", append([]string{"get", "-o", "json"}, args...)...)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(out), into)
}

// apply applies a manifest, as YAML text or as an object, in the suite's own namespace.
func (c *cluster) apply(t *testing.T, manifest any) {
	t.Helper()
	text, ok := manifest.(string)
	if !ok {
		data, err := json.Marshal(manifest)
		require.NoError(t, err)
		text = string(data)
	}
	_, err := run(t.Context(), text, "kubectl", "-n", workNamespace, "apply", "--server-side", "-f", "-")
	require.NoError(t, err)
}

// delete removes an object of the suite and waits until it is gone. It runs as a cleanup too, so the test's context
// does not end it.
func (c *cluster) delete(t *testing.T, kind, name string) {
	t.Helper()
	if _, err := run(context.WithoutCancel(t.Context()), "", "kubectl", "-n", workNamespace, "delete", kind, name,
		"--ignore-not-found", "--timeout=60s"); err != nil {
		t.Errorf("clean up: %v", err)
	}
}

// workload is a DaemonSet that runs an image on all nodes, or on one, pulled anew for every pod.
type workload struct {
	name, image string
	node        string // empty: all
	pullSecret  string
	volume      string // an image to mount at /volume
	neverPull   bool   // the runtime must have the image already
}

func (w workload) podSpec() corev1.PodSpec {
	spec := corev1.PodSpec{
		TerminationGracePeriodSeconds: new(int64),
		Containers: []corev1.Container{{
			Name: "probe", Image: w.image, ImagePullPolicy: corev1.PullAlways,
			ReadinessProbe: &corev1.Probe{
				ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/",
					Port: intstr.FromInt32(8080)}},
				PeriodSeconds: 1,
			},
		}},
	}
	if w.neverPull {
		spec.Containers[0].ImagePullPolicy = corev1.PullNever
	}
	if w.node != "" {
		spec.NodeSelector = map[string]string{corev1.LabelHostname: w.node}
	}
	if w.pullSecret != "" {
		spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: w.pullSecret}}
	}
	if w.volume != "" {
		spec.Volumes = []corev1.Volume{{Name: "volume", VolumeSource: corev1.VolumeSource{
			Image: &corev1.ImageVolumeSource{Reference: w.volume, PullPolicy: corev1.PullAlways},
		}}}
		spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "volume", MountPath: "/volume"}}
	}
	return spec
}

func (w workload) daemonSet() *appsv1.DaemonSet {
	labels := map[string]string{"app": w.name}
	return &appsv1.DaemonSet{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "DaemonSet"},
		ObjectMeta: metav1.ObjectMeta{Name: w.name},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: w.podSpec()},
		},
	}
}

// rollout creates the workload, waits until all its pods are ready, and removes it when the test ends. It returns how
// long the pods took.
func (c *cluster) rollout(t *testing.T, w workload, within time.Duration) time.Duration {
	t.Helper()
	start := time.Now()
	t.Cleanup(func() { c.delete(t, "daemonset", w.name) })
	c.apply(t, w.daemonSet())
	c.awaitRollout(t, w.name, within)
	return time.Since(start)
}

func (c *cluster) awaitRollout(t *testing.T, name string, within time.Duration) {
	t.Helper()
	_, err := run(t.Context(), "", "kubectl", "-n", workNamespace, "rollout", "status", "daemonset/"+name,
		"--timeout="+within.String())
	if err != nil {
		t.Logf("pods of %s:\n%s", name, c.kubectl(t, "-n", workNamespace, "describe", "pods", "-l", "app="+name))
	}
	require.NoError(t, err)
}

// forget removes an image from the runtimes of all nodes, with its content, so that the next pod pulls it again. What
// ran it must have been deleted: a container keeps its snapshots, and a runtime does not pull the layers of snapshots
// that it has. The kubelet takes its time, up to a minute, to remove the containers of a pod that is gone.
func (c *cluster) forget(t *testing.T, img image) {
	t.Helper()
	repository := strings.TrimSuffix(img.ref, ":1")
	for _, node := range c.nodes {
		eventually(t, 3*time.Minute, func() error {
			left, err := c.rig.tryExec(t.Context(), node, "sh", "-c",
				"ctr -n k8s.io containers ls | grep -F '"+repository+"' || true")
			if err == nil && left != "" {
				err = fmt.Errorf("%s still has containers of %s: %s", node, repository, left)
			}
			return err
		})
		// By tag, by digest, and by ID: each name alone keeps the content.
		c.rig.exec(t, node, "sh", "-c",
			"ctr -n k8s.io images ls -q | grep -F -e '"+repository+"' -e '"+img.id+"' | xargs -r ctr -n k8s.io images rm --sync")
	}
}

// requireServed runs a pull, and fails unless the agents of the nodes have served the image's own bytes meanwhile: else
// it showed nothing, for the runtime had the layers.
func (c *cluster) requireServed(t *testing.T, img image, nodes []string, pull func()) {
	t.Helper()
	before := make(map[string]float64)
	for _, node := range nodes {
		before[node] = c.metric(t, node, "shoal_served_bytes_total")
	}
	pull()
	for _, node := range nodes {
		served := c.metric(t, node, "shoal_served_bytes_total") - before[node]
		require.GreaterOrEqual(t, served, float64(img.own), "bytes that the agent of %s served", node)
	}
}

// agentPods are the agents' pods by node.
func (c *cluster) agentPods(ctx context.Context) (map[string]corev1.Pod, error) {
	var list corev1.PodList
	if err := c.tryGet(ctx, &list, "pods", "-n", shoalNamespace, "-l",
		"app.kubernetes.io/component=agent"); err != nil {
		return nil, err
	}
	pods := make(map[string]corev1.Pod)
	for _, pod := range list.Items {
		if pod.DeletionTimestamp == nil {
			pods[pod.Spec.NodeName] = pod
		}
	}
	return pods, nil
}

// containers are the IDs of the agents' containers by node, and not of their guards'. A container that is started again
// is another.
func (c *cluster) containers(ctx context.Context) (map[string]string, error) {
	pods, err := c.agentPods(ctx)
	containers := make(map[string]string)
	for node, pod := range pods {
		for _, status := range pod.Status.ContainerStatuses {
			if status.Name == "agent" {
				containers[node] = status.ContainerID
			}
		}
	}
	return containers, err
}

// metric is the sum over all series of a node's agent whose line starts with the given text: a name, or a name with the
// start of its labels.
func (c *cluster) metric(t *testing.T, node, prefix string) float64 {
	t.Helper()
	sum, err := c.tryMetric(t.Context(), node, prefix)
	require.NoError(t, err)
	return sum
}

func (c *cluster) tryMetric(ctx context.Context, node, prefix string) (float64, error) {
	metrics, err := c.rig.tryExec(ctx, node, "curl", "-sf", "-m", "10", "http://127.0.0.1:5051/metrics")
	if err != nil {
		return 0, err
	}
	var sum float64
	for line := range strings.Lines(metrics) {
		rest, ok := strings.CutPrefix(line, prefix)
		if !ok || !strings.ContainsRune(" {,}", rune(rest[0])) {
			continue
		}
		value, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(line, ' '):]), 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", line, err)
		}
		sum += value
	}
	return sum, nil
}

// mirrorConfiguration is all that a node's runtime is configured by, mirrors among it: every name below its folder with
// type, mode and owner, and every file's digest.
func (c *cluster) mirrorConfiguration(t *testing.T, node string) string {
	t.Helper()
	return c.rig.exec(t, node, "sh", "-c",
		`cd /etc/containerd && find . -printf '%y %m %U:%G %p\n' | sort && find . -type f | sort | xargs -r sha256sum`)
}

// tell adds a line to the story.
func tell(t *testing.T, format string, args ...any) {
	t.Helper()
	fmt.Fprintf(t.Output(), format+"\n", args...)
}

// show adds what a user sees on the terminal to the story.
func (c *cluster) show(t *testing.T, args ...string) {
	t.Helper()
	fmt.Fprintf(t.Output(), "$ kubectl %s\n%s\n", strings.Join(args, " "), c.kubectl(t, args...))
}

// showHelm does the same of Helm.
func (c *cluster) showHelm(t *testing.T, args ...string) {
	t.Helper()
	fmt.Fprintf(t.Output(), "$ helm %s\n%s\n", strings.Join(args, " "), c.helm(t, args...))
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/mib) }

func readFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(data)
}
