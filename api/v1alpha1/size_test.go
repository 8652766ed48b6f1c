package v1alpha1_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-cache/shoal/api/apitest"
	"github.com/shoal-cache/shoal/api/v1alpha1"
)

// TestTheFullestNodeCacheIsTaken gives a node as much as the bounds allow, with every field set, and has its agent fail
// with all of it at length. Were the API server to refuse that, no pin would reach the node any more.
func TestTheFullestNodeCacheIsTaken(t *testing.T) {
	t.Parallel()
	c := apitest.Require(t, cluster)
	ctx := t.Context()
	const node = "fullest"
	require.NoError(t, c.Client.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}))
	operator := c.ClientFor(t, c.Impersonate("", apitest.OperatorServiceAccount))
	agent := c.ClientFor(t, c.Impersonate(node, apitest.AgentServiceAccount))

	rate, limit := resource.MustParse("100Mi"), metav1.Duration{Duration: time.Hour}
	cache := &v1alpha1.NodeCache{ObjectMeta: metav1.ObjectMeta{Name: node}}
	report := &v1alpha1.NodeCache{ObjectMeta: metav1.ObjectMeta{Name: node}}
	report.Status.ReportedAt = &metav1.Time{Time: time.Now()}
	bytes := 0
	for i := range v1alpha1.MaxPinsPerNode {
		entry := v1alpha1.PinAssignment{
			UID: fmt.Sprintf("00000000-0000-0000-0000-%012d", i), Namespace: "team", Name: fmt.Sprintf("pin-%d", i),
			Revision: fmt.Sprintf("%016x", i),
			Action:   v1alpha1.ActionKeep, Platforms: []string{"linux/amd64"}, Target: v1alpha1.TargetCacheAndRuntime,
			PullSecrets: []string{"pull"},
			Priority:    1, Bandwidth: &rate, SizeLimit: &rate, TimeLimit: &limit,
			Backoff: &v1alpha1.Backoff{Initial: limit, Max: limit},
			Artifacts: []v1alpha1.AssignedArtifact{{Repository: "registry.example/app", Tag: "1", Digest: digestA,
				MediaType: "application/vnd.oci.image.manifest.v1+json"}},
		}
		length := func() int {
			b, err := json.Marshal(entry)
			require.NoError(t, err)
			return len(b)
		}
		for length() < v1alpha1.MaxPinBytesPerNode/v1alpha1.MaxPinsPerNode-len(digestA) {
			entry.Artifacts[0].Referrers = append(entry.Artifacts[0].Referrers, digestA)
		}
		bytes += length()
		cache.Spec.Pins = append(cache.Spec.Pins, entry)
		report.Status.Pins = append(report.Status.Pins, v1alpha1.PinProgress{
			UID: entry.UID, Revision: entry.Revision, State: v1alpha1.PinFailed, HeldRevision: entry.Revision,
			Reason: v1alpha1.ReasonRegistryUnreachable,
			Message: strings.Repeat("m",
				512), BytesHeld: 1 << 40, BytesWanted: 1 << 40, LastUsed: report.Status.ReportedAt})
	}
	require.InEpsilon(t, v1alpha1.MaxPinBytesPerNode, bytes, 0.1)

	apply := client.ApplyConfigurationFromUnstructured
	spec := applyConfiguration(t, cache)
	content, err := kruntime.DefaultUnstructuredConverter.ToUnstructured(cache)
	require.NoError(t, err)
	spec.Object["spec"] = content["spec"]
	delete(spec.Object, "status")
	require.NoError(t, operator.Apply(ctx, apply(spec.DeepCopy()), client.FieldOwner(v1alpha1.ManagedByOperator)))
	require.NoError(t, agent.Status().Apply(ctx, apply(applyConfiguration(t, report)),
		client.FieldOwner(v1alpha1.AgentFieldManager)))
	require.NoError(t, operator.Apply(ctx, apply(spec.DeepCopy()), client.FieldOwner(v1alpha1.ManagedByOperator)),
		"with all that the agent wrote")

	var stored v1alpha1.NodeCache
	require.NoError(t, c.Client.Get(ctx, client.ObjectKey{Name: node}, &stored))
	b, err := json.Marshal(&stored)
	require.NoError(t, err)
	t.Logf("%d bytes of 1.5 MiB (%d)", len(b), 3<<19)
}
