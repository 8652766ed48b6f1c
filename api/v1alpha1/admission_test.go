package v1alpha1_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-cache/shoal/api/apitest"
	"github.com/shoal-cache/shoal/api/v1alpha1"
)

const peerID = "12D3KooWBhSnGQkzYtGRVRGdQFDwNxQvXyqHLSSrkMfTwRjgDYaK"

// TestAgentWritesOnlyItsOwnNode has a hostile agent, with a token that the API server bound to a pod on its node, try
// to write what is not its own.
func TestAgentWritesOnlyItsOwnNode(t *testing.T) {
	t.Parallel()
	c := apitest.Require(t, cluster)
	ctx := t.Context()
	for _, node := range []string{"mine", "theirs"} {
		require.NoError(t, c.Client.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}))
	}
	mine, theirs := c.AgentClient(t, "mine"), c.AgentClient(t, "theirs")
	apply := client.ApplyConfigurationFromUnstructured
	owner := client.FieldOwner(v1alpha1.AgentFieldManager)

	t.Log("each registers itself, by server-side apply as the contract says")
	require.NoError(t, mine.Apply(ctx, apply(applyConfiguration(t, apitest.NewPeer("mine", peerID))), owner))
	require.NoError(t, theirs.Apply(ctx, apply(applyConfiguration(t, apitest.NewPeer("theirs", peerID))), owner))

	t.Log("the other's Peer can't be made, changed or deleted")
	forbidden(t, mine.Apply(ctx, apply(applyConfiguration(t, apitest.NewPeer("elsewhere", peerID))), owner),
		"the agent of node mine writes the Peer of that name and no other, not elsewhere")
	forbidden(t, mine.Apply(ctx, apply(applyConfiguration(t, apitest.NewPeer("theirs", peerID))), owner,
		client.ForceOwnership),
		"the agent of node mine writes the Peer of that name and no other, not theirs")
	forbidden(t, mine.Delete(ctx, apitest.NewPeer("theirs", peerID)), "")

	t.Log("no agent admits itself, not even by way of the main resource")
	var own v1alpha1.Peer
	require.NoError(t, mine.Get(ctx, client.ObjectKey{Name: "mine"}, &own))
	own.Status.Admitted, own.Status.AdmittedPeerID = true, peerID
	forbidden(t, mine.Status().Update(ctx, &own), "")
	sneaky := applyConfiguration(t, apitest.NewPeer("mine", peerID))
	sneaky.Object["status"] = map[string]any{"admitted": true, "admittedPeerID": peerID}
	require.NoError(t, mine.Apply(ctx, apply(sneaky), owner, client.ForceOwnership))
	require.NoError(t, mine.Get(ctx, client.ObjectKey{Name: "mine"}, &own))
	require.False(t, own.Status.Admitted)

	t.Log("assignments come from the operator alone, reports from the own node's agent alone")
	operator := c.ClientFor(t, c.Impersonate("", apitest.OperatorServiceAccount))
	for _, node := range []string{"mine", "theirs"} {
		require.NoError(t, operator.Create(ctx, &v1alpha1.NodeCache{ObjectMeta: metav1.ObjectMeta{Name: node}}))
	}
	report := func(node string) *v1alpha1.NodeCache {
		return &v1alpha1.NodeCache{ObjectMeta: metav1.ObjectMeta{Name: node},
			Status: v1alpha1.NodeCacheStatus{Version: "test"}}
	}
	require.NoError(t, mine.Status().Apply(ctx, apply(applyConfiguration(t, report("mine"))), owner))
	forbidden(t, mine.Status().Apply(ctx, apply(applyConfiguration(t, report("theirs"))), owner),
		"the agent of node mine writes the status of the NodeCache of that name and no other, not theirs")
	forbidden(t, mine.Delete(ctx, report("mine")), "")

	t.Log("an agent sees no secret of its own accord")
	forbidden(t, mine.List(ctx, &corev1.SecretList{}), "")
}

// TestRulesHoldWhateverRBACAllows gives agents all rights, so that the admission policy stands alone.
func TestRulesHoldWhateverRBACAllows(t *testing.T) {
	t.Parallel()
	c := apitest.Require(t, cluster)
	ctx := t.Context()
	withRights := func(config *rest.Config) client.Client {
		config.Impersonate.Groups = append(config.Impersonate.Groups, "system:masters")
		return c.ClientFor(t, config)
	}
	agent := withRights(c.Impersonate("careless", apitest.AgentServiceAccount))
	unbound := withRights(c.Impersonate("", apitest.AgentServiceAccount))
	stranger := withRights(c.Impersonate("", "default"))
	operator := withRights(c.Impersonate("", apitest.OperatorServiceAccount))

	peer := apitest.NewPeer("careless", peerID)
	forbidden(t, unbound.Create(ctx, peer.DeepCopy()), "this token is bound to no pod, so it proves no node")
	forbidden(t, stranger.Create(ctx, peer.DeepCopy()), "this token is bound to no pod, so it proves no node")
	require.NoError(t, agent.Create(ctx, peer))
	peer.Status.Admitted = true
	for who, writer := range map[string]client.Client{"agent": agent, "stranger": stranger, "administrator": c.Client} {
		forbidden(t, writer.Status().Update(ctx, peer.DeepCopy()),
			"only the Shoal operator writes the status of a Peer", who)
	}
	require.NoError(t, operator.Status().Update(ctx, peer))
	forbidden(t, stranger.DeleteAllOf(ctx, &v1alpha1.Peer{}), "this token is bound to no pod")

	cache := &v1alpha1.NodeCache{ObjectMeta: metav1.ObjectMeta{Name: "careless"}}
	forbidden(t, agent.Create(ctx, cache.DeepCopy()), "only the Shoal operator says what a node's cache is to keep")
	require.NoError(t, operator.Create(ctx, cache))
	forbidden(t, agent.Delete(ctx, cache.DeepCopy()), "only the Shoal operator says what a node's cache is to keep")
	cache.Status.Version = "made up"
	forbidden(t, operator.Status().Update(ctx, cache.DeepCopy()), "this token proves no node")
	require.NoError(t, agent.Status().Update(ctx, cache))

	t.Log("a person with rights cleans up")
	require.NoError(t, c.Client.Delete(ctx, cache))
	require.NoError(t, c.Client.Delete(ctx, peer))
}

// TestGuide_ItsPolicyBoundsThePinsOfATeam applies what the guide has an administrator write.
//
//nolint:paralleltest // the policy is for the namespaces of other tests too
func TestGuide_ItsPolicyBoundsThePinsOfATeam(t *testing.T) {
	c := apitest.Require(t, cluster)
	ctx := t.Context()
	guide, err := os.ReadFile(filepath.Join(apitest.APIDir(), "../charts/shoal/GUIDE.md"))
	require.NoError(t, err)
	_, section, _ := strings.Cut(string(guide), "## Pins of several teams")
	_, text, _ := strings.Cut(section, "```yaml\n")
	text, _, _ = strings.Cut(text, "```")
	file := filepath.Join(t.TempDir(), "teams.yaml")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	require.NoError(t, c.Client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "team"}}))
	require.NoError(t, c.Apply(ctx, file))
	counted := func(pins string) { // as the controller manager does, which does not run here
		quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "pins"}}
		require.NoError(t, c.Client.Get(ctx, client.ObjectKeyFromObject(quota), quota))
		quota.Status.Hard = quota.Spec.Hard
		quota.Status.Used = corev1.ResourceList{"count/artifactpins.shoal.dev": resource.MustParse(pins)}
		require.NoError(t, c.Client.Status().Update(ctx, quota))
	}
	pin := func(spec string) error {
		p := newObject(t, "ArtifactPin", image+"\n"+spec)
		p.SetNamespace("team")
		return c.Client.Create(ctx, p, client.DryRunAll)
	}
	comesTo := func(spec, refused string) {
		require.Eventually(t, func() bool {
			err := pin(spec)
			return refused == "" && err == nil || refused != "" && err != nil && strings.Contains(err.Error(), refused)
		}, time.Minute, 100*time.Millisecond, "%s: %s; last answer: %v", spec, refused, pin(spec))
	}
	counted("19")
	for _, tc := range [][2]string{
		{"sizeLimit: 20.1Gi", "set sizeLimit, to 20Gi at most"}, {"sizeLimit: 20Gi", ""},
		{"sizeLimit: 5000\npriority: -7", ""}, {"priority: 0", "set sizeLimit"},
		{"sizeLimit: 1Gi\npriority: 1", "a priority above 0 is for the pins of the administrator"},
	} {
		comesTo(tc[0], tc[1])
	}
	counted("20")
	comesTo("sizeLimit: 20Gi", "exceeded quota: pins")
	require.NoError(t, c.Client.Delete(ctx, &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "pins"}}))
	require.NoError(t, c.Client.Delete(ctx, &admissionv1.ValidatingAdmissionPolicyBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "pins-of-teams"}}))
	comesTo("sizeLimit: 21Gi", "")
}

func forbidden(t *testing.T, err error, message string, args ...any) {
	t.Helper()
	require.Error(t, err, args...)
	require.True(t, apierrors.IsForbidden(err), "%v %v", args, err)
	require.ErrorContains(t, err, message, args...)
}
