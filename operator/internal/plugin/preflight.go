package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-cache/shoal/api/view"
)

const (
	// runtimeFolder is where a node's containerd has its configuration.
	runtimeFolder = "/etc/containerd"
	// preflightLife bounds a pod that looks at a node, preflightKept how long the cluster keeps what is left of it
	// where this program did not come to removing it.
	preflightLife, preflightKept = 2 * time.Minute, time.Minute
	// cleanUpWithin is how long the removal may take after the user has given up.
	cleanUpWithin = 10 * time.Second
	// preflightAtOnce is how many nodes are looked at at one time.
	preflightAtOnce = 16
)

var preflightLabels = map[string]string{"app.kubernetes.io/part-of": "shoal", "app.kubernetes.io/component": "check"}

// preflight looks at nodes from within, by a pod of a Job on each, all at once. The pods hold shoal-node, which reads
// the configuration of the node's containerd. They may do nothing else: see job. The Jobs are removed in any case, by
// the cluster itself where this program is killed.
type preflight struct {
	api              client.Client
	namespace, image string
	secrets          []string
	timeout          time.Duration
}

// nodeLook is what a pod saw on its node.
type nodeLook struct {
	findings []view.Finding
	err      error
}

// imageError is that a node does not get the image.
type imageError struct{ why string }

func (e *imageError) Error() string { return e.why }

// look looks at the nodes, by name.
func (f *preflight) look(ctx context.Context, nodes []corev1.Node) (map[string]nodeLook, error) {
	trial := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "shoal-check-", Namespace: f.namespace},
		Spec: f.pod(&nodes[0])}
	if err := f.api.Create(ctx, trial, client.DryRunAll); err != nil {
		return nil, fmt.Errorf("start a pod in %s: %w", f.namespace, err) // the Job would hide why
	}
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	looks := make([]nodeLook, len(nodes))
	slots := make(chan struct{}, preflightAtOnce)
	var looking sync.WaitGroup
	for i := range nodes {
		looking.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			looks[i].findings, looks[i].err = f.lookAt(ctx, &nodes[i])
		})
	}
	looking.Wait()
	byName := map[string]nodeLook{}
	for i := range nodes {
		byName[nodes[i].Name] = looks[i]
	}
	return byName, nil
}

// lookAt looks at one node.
func (f *preflight) lookAt(ctx context.Context, node *corev1.Node) (found []view.Finding, err error) {
	job := f.job(node)
	if err := f.create(ctx, job); err != nil {
		return nil, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpWithin)
		defer cancel()
		with := client.PropagationPolicy(metav1.DeletePropagationBackground)
		if gone := client.IgnoreNotFound(f.api.Delete(ctx, job, with)); gone != nil {
			err = errors.Join(err, fmt.Errorf("remove job %s/%s: %w", f.namespace, job.Name, gone))
		}
	}()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	why := errors.New("no pod was made for its job")
	for {
		var pods corev1.PodList
		err := f.api.List(ctx, &pods, client.InNamespace(f.namespace),
			client.MatchingLabels{batchv1.JobNameLabel: job.Name})
		if err != nil && ctx.Err() == nil {
			return nil, err
		}
		for i := range pods.Items {
			done, found, err := f.seen(ctx, &pods.Items[i])
			if done {
				return found, err
			}
			if err != nil {
				why = err
			}
		}
		select {
		case <-ctx.Done():
			return nil, why
		case <-tick.C:
		}
	}
}

// create makes a job. Once that has begun it is not broken off: the cluster may make a job all the same, and nobody
// would know which to remove.
func (f *preflight) create(ctx context.Context, job *batchv1.Job) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpWithin)
	defer cancel()
	return f.api.Create(ctx, job)
}

// seen reads what a pod has seen. While it is not done, the error is what it waits for.
func (f *preflight) seen(ctx context.Context, pod *corev1.Pod) (done bool, found []view.Finding, err error) {
	for _, s := range pod.Status.ContainerStatuses {
		switch ended, waits := s.State.Terminated, s.State.Waiting; {
		case ended != nil:
			var report struct{ Findings []view.Finding }
			if err := json.Unmarshal([]byte(ended.Message), &report); err != nil {
				return true, nil, fmt.Errorf("its pod ended with code %d: %s", ended.ExitCode, ended.Message)
			}
			return true, report.Findings, nil
		case waits != nil && strings.Contains(waits.Reason, "Image"):
			return waits.Reason != "ErrImagePull", nil, &imageError{waits.Reason + ": " + waits.Message}
		case waits != nil:
			err = errors.New(strings.TrimSpace(waits.Reason + " " + waits.Message))
		}
	}
	if pod.Status.Phase == corev1.PodFailed {
		return true, nil, fmt.Errorf("its pod failed: %s %s", pod.Status.Reason, pod.Status.Message)
	}
	var events corev1.EventList
	of := client.MatchingFields{"involvedObject.name": pod.Name}
	if f.api.List(ctx, &events, client.InNamespace(pod.Namespace), of) != nil {
		return false, nil, err // who may not list events waits for longer
	}
	for _, e := range events.Items {
		if e.Reason == "FailedMount" && strings.Contains(e.Message, runtimeFolder) {
			return true, nil, fmt.Errorf("it has no folder %s: %s", runtimeFolder, e.Message)
		}
	}
	return false, nil, err
}

// job is what looks at a node. TTL and deadline bound its life without this program.
func (f *preflight) job(node *corev1.Node) *batchv1.Job {
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "shoal-check-", Namespace: f.namespace, Labels: preflightLabels},
		Spec: batchv1.JobSpec{
			BackoffLimit: new(int32), ActiveDeadlineSeconds: new(int64(preflightLife.Seconds())),
			TTLSecondsAfterFinished: new(int32(preflightKept.Seconds())),
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: maps.Clone(preflightLabels)},
				Spec: f.pod(node)},
		},
	}
}

// pod may read the folder of containerd's configuration, and nothing else: it has no token, no capability, no network
// of the node's, and writes to nothing but its own last words.
func (f *preflight) pod(node *corev1.Node) corev1.PodSpec {
	folder := corev1.HostPathDirectory
	_, release, _ := strings.Cut(node.Status.NodeInfo.ContainerRuntimeVersion, "://")
	spec := corev1.PodSpec{
		NodeName:      node.Name, // past the scheduler: also a node that is full, or cordoned
		Tolerations:   []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		RestartPolicy: corev1.RestartPolicyNever, TerminationGracePeriodSeconds: new(int64),
		AutomountServiceAccountToken: new(bool), EnableServiceLinks: new(bool),
		SecurityContext: &corev1.PodSecurityContext{
			// Configurations that only root may read are common.
			RunAsUser: new(int64), RunAsGroup: new(int64),
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		Containers: []corev1.Container{{
			Name: "check", Image: f.image,
			Args: []string{"mirror", "status", "--root=/host", "--state-dir=/none",
				"--runtime-version=" + strings.TrimPrefix(release, "v"),
				"--report=" + corev1.TerminationMessagePathDefault},
			SecurityContext: &corev1.SecurityContext{
				AllowPrivilegeEscalation: new(bool), ReadOnlyRootFilesystem: new(true),
				Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			},
			VolumeMounts: []corev1.VolumeMount{{Name: "runtime", MountPath: "/host" + runtimeFolder, ReadOnly: true}},
		}},
		Volumes: []corev1.Volume{{Name: "runtime", VolumeSource: corev1.VolumeSource{
			HostPath: &corev1.HostPathVolumeSource{Path: runtimeFolder, Type: &folder}}}},
	}
	for _, name := range f.secrets {
		spec.ImagePullSecrets = append(spec.ImagePullSecrets, corev1.LocalObjectReference{Name: name})
	}
	return spec
}

// preflightNodes are those whose runtime's configuration a pod can read.
func preflightNodes(all []corev1.Node) []corev1.Node {
	return slices.DeleteFunc(slices.Clone(all), func(n corev1.Node) bool {
		info := n.Status.NodeInfo
		// K3s and RKE2 write containerd's configuration themselves, with one folder of mirrors.
		return !strings.HasPrefix(info.ContainerRuntimeVersion, "containerd://") ||
			strings.Contains(info.ContainerRuntimeVersion, "k3s") || info.OperatingSystem == "windows"
	})
}
