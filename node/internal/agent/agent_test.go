package agent_test

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-cache/shoal/api/apitest"
	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/node/internal/agent"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/test/registrytest"
)

// origin is a registry with one image, and a password where asked.
type origin struct {
	*registrytest.Registry
	artifact v1alpha1.AssignedArtifact
	closure  []digest.Digest
}

func newOrigin(t *testing.T, password string) *origin {
	t.Helper()
	o := &origin{Registry: registrytest.New(t)}
	image, err := random.Image(3000, 3)
	require.NoError(t, err)
	o.Push(t, "team/app:1", image)
	if password != "" {
		o.Protect("team/app", registrytest.Basic("u", password))
	}
	o.closure = registrytest.Closure(t, image)
	mediaType, err := image.MediaType()
	require.NoError(t, err)
	o.artifact = v1alpha1.AssignedArtifact{Repository: o.Host + "/team/app", Tag: "1", Digest: o.closure[0].String(),
		MediaType: string(mediaType)}
	slices.Sort(o.closure)
	return o
}

func keep(uid, revision string, o *origin) v1alpha1.PinAssignment {
	return v1alpha1.PinAssignment{
		UID: uid, Namespace: "default", Name: uid, Revision: revision, Action: v1alpha1.ActionKeep,
		Target:    v1alpha1.TargetCache,
		Artifacts: []v1alpha1.AssignedArtifact{o.artifact},
	}
}

func bypass(name string, labels map[string]string) *v1alpha1.CachePolicy {
	mode := v1alpha1.ModeBypass
	return &v1alpha1.CachePolicy{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1alpha1.CachePolicySpec{
			NodeSelector: &metav1.LabelSelector{MatchLabels: labels},
			Rules:        []v1alpha1.RepositoryRule{{Match: []string{name + ".example/team-*/**"}, Mode: &mode}},
		},
	}
}

func mode(l *policy.Live, registry string) policy.Mode {
	return l.Load().For(content.Repository{Registry: registry + ".example", Name: "team-a/app"}).Mode
}

func TestWithoutAPIServerEverythingHolds(t *testing.T) {
	t.Parallel()
	m, other := newMachine(t, "fault-a", "z1"), newMachine(t, "fault-b", "z1")
	o := newOrigin(t, "")
	require.NoError(t, cluster.Client.Create(t.Context(),
		bypass("fault", map[string]string{corev1.LabelTopologyZone: "z1"})))
	line := plug(t, m.config)
	m.start()
	other.start()
	m.peer(func(*v1alpha1.Peer) bool { return true })
	other.peer(func(*v1alpha1.Peer) bool { return true })
	judge(t, m.name, true)
	judge(t, other.name, true)
	assign(t, m.name, keep("a", "1", o))
	holds := func() {
		t.Helper()
		eventually(t, func() bool {
			return m.agent.Ready() == nil && m.swarm.admits(other.id()) && m.swarm.startsFrom(other.id()) &&
				mode(m.live, "fault") == policy.Bypass &&
				slices.Equal(o.closure, slices.Sorted(slices.Values(m.store.Pins()["pin/a"])))
		})
		for _, d := range o.closure {
			_, err := m.store.Stat(d)
			require.NoError(t, err)
		}
	}
	eventually(t, func() bool {
		return len(m.store.Pins()["pin/a"]) == len(o.closure) && m.store.Usage().Blobs == len(o.closure)
	})
	holds()

	line.cut()
	o.Close()
	holds()
	m.stop()
	m.start()
	holds()
	require.Equal(t, "z1", m.zone)
	// What it remembers is enough to find the other node again, whose addresses it has from its last life only.
	eventually(t, func() bool { return len(m.swarm.Peers()) == 1 })

	judge(t, other.name, false)
	line.mend()
	eventually(t, func() bool { return !m.swarm.admits(other.id()) })
	eventually(t, func() bool { return len(m.swarm.Peers()) == 0 })
	require.Equal(t, o.closure, slices.Sorted(slices.Values(m.store.Pins()["pin/a"])))
	m.cache(func(c *v1alpha1.NodeCache) bool { return c.Status.PinsReady == 1 })
	require.Zero(t, m.writes("Peer"), "nothing about the peer has changed since its last life")
}

func TestAnAgentRegistersItsPeer(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "register", "z7")
	m.start()
	p := m.peer(func(*v1alpha1.Peer) bool { return true })
	require.Equal(t, m.name, p.Spec.NodeName)
	require.Equal(t, m.id().String(), p.Spec.PeerID)
	require.Equal(t, "z7", p.Spec.Zone)
	require.Len(t, p.Spec.Addresses, 1)
	require.True(t, strings.HasPrefix(p.Spec.Addresses[0], "/ip4/127.0.0.1/tcp/"))
	ok, err := m.key.GetPublic().Verify(v1alpha1.ProofMessage(m.name), p.Spec.Proof)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, v1alpha1.AgentFieldManager, p.ManagedFields[0].Manager)
	// A write is counted when its answer is there, which may be after others can see what it wrote.
	eventually(t, func() bool { return m.writes("Peer") == 1 })

	// Deleted while its agent runs, it is made again. The first life has written within the interval, so a second one
	// shows it.
	m.stop()
	m.start()
	eventually(t, func() bool { return m.agent.Ready() == nil })
	uid := p.UID
	require.NoError(t, cluster.Client.Delete(t.Context(), p))
	m.peer(func(p *v1alpha1.Peer) bool { return p.UID != uid && p.Spec.PeerID == m.id().String() })
}

func TestAdmissionFollowsTheOperator(t *testing.T) {
	t.Parallel()
	m, other := newMachine(t, "admit-a", "z1"), newMachine(t, "admit-b", "z1")
	m.start()
	other.start()
	m.peer(func(*v1alpha1.Peer) bool { return true })
	other.peer(func(*v1alpha1.Peer) bool { return true })
	require.False(t, m.swarm.admits(other.id()), "a peer that only claims to be one")
	judge(t, m.name, true)
	judge(t, other.name, true)
	eventually(t, func() bool { return len(m.swarm.Peers()) > 0 && other.swarm.admits(m.id()) })

	// A claim of another peer ID voids the verdict until the operator has judged again.
	var p v1alpha1.Peer
	require.NoError(t, cluster.Client.Get(t.Context(), client.ObjectKey{Name: other.name}, &p))
	other.stop()
	p.Spec.PeerID = "12D3KooWBhSnGQkzYtGRVRGdQFDwNxQvXyqHLSSrkMfTwRjgDYaK"
	require.NoError(t, cluster.Client.Update(t.Context(), &p))
	eventually(t, func() bool { return !m.swarm.admits(other.id()) })
	claimed, err := peer.Decode(p.Spec.PeerID)
	require.NoError(t, err)
	require.False(t, m.swarm.admits(claimed))
}

func TestPolicyChangesReachARunningAgent(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "policy", "z1")
	m.start()
	p := bypass("policy", map[string]string{"tier": "edge"})
	capacity := resource.MustParse("3Gi")
	p.Spec.Storage = &v1alpha1.StoragePolicy{Capacity: &capacity}
	require.NoError(t, cluster.Client.Create(t.Context(), p))
	require.NotEqual(t, policy.Bypass, mode(m.live, "policy"), "the node has not the label")

	var node corev1.Node
	require.NoError(t, cluster.Client.Get(t.Context(), client.ObjectKey{Name: m.name}, &node))
	node.Labels["tier"] = "edge"
	require.NoError(t, cluster.Client.Update(t.Context(), &node))
	eventually(t, func() bool { return mode(m.live, "policy") == policy.Bypass })
	require.Equal(t, int64(3<<30), m.live.Load().Store.Capacity.Bytes)

	require.NoError(t, cluster.Client.Delete(t.Context(), p))
	eventually(t, func() bool { return mode(m.live, "policy") != policy.Bypass })
}

func TestPinsAreKeptAndReported(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "pins", "z1")
	o := newOrigin(t, "open sesame")
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "pull", Namespace: "default"}, Type: corev1.SecretTypeDockerConfigJson,
		Data: map[string][]byte{corev1.DockerConfigJsonKey: fmt.Appendf(nil,
			`{"auths": {%q: {"username": "u", "password": "open sesame"}}}`,
			o.Host)},
	}
	require.NoError(t, cluster.Client.Create(t.Context(), secret))
	allowSecret(t, secret)
	private, refused := keep("private", "1", o), keep("refused", "1", o)
	private.PullSecrets = []string{"pull"}
	refused.Artifacts[0].Digest = digest.FromString("something else").String()
	assign(t, m.name, private, refused)
	began := time.Now()
	m.start()

	c := m.cache(func(c *v1alpha1.NodeCache) bool {
		return len(c.Status.Pins) == 2 && c.Status.Pins[0].State == v1alpha1.PinReady &&
			c.Status.Pins[1].State == v1alpha1.PinFailed
	})
	require.Equal(t, "private", c.Status.Pins[0].UID)
	require.Equal(t, "1", c.Status.Pins[0].Revision)
	require.Positive(t, c.Status.Pins[0].BytesWanted)
	require.Equal(t, c.Status.Pins[0].BytesWanted, c.Status.Pins[0].BytesHeld)
	require.Equal(t, v1alpha1.ReasonUnauthorized, c.Status.Pins[1].Reason)
	require.EqualValues(t, 1, c.Status.PinsReady)
	condition := apimeta.FindStatusCondition(c.Status.Conditions, v1alpha1.ConditionPinsReady)
	require.Equal(t, v1alpha1.ReasonFetchFailed, condition.Reason)
	require.Equal(t, "1 of 2 pins fail; status.pins says why", condition.Message)
	require.True(t, apimeta.IsStatusConditionTrue(c.Status.Conditions, v1alpha1.ConditionPolicyApplied))
	require.Equal(t, "v0-test", c.Status.Version)
	require.NotEmpty(t, c.Status.PolicyRevision)
	require.EqualValues(t, 7, c.Status.Counters.Hits)
	require.Equal(t, c.Status.Usage.Bytes.Value(), c.Status.Usage.PinnedBytes.Value())
	require.False(t, c.Status.ReportedAt.Time.Before(began.Truncate(time.Second)))
	require.False(t, c.Status.ReportedAt.After(time.Now()))
	require.Equal(t, o.closure, slices.Sorted(slices.Values(m.store.Pins()["pin/private"])))
	writes := m.writes("NodeCache")
	require.LessOrEqual(t, writes, int(time.Since(began)/v1alpha1.ReportInterval)+2, "what comes at once is written at once, or with the next")

	// A NodeCache that is gone releases nothing, nor does one that is made anew; an entry that is gone does.
	require.NoError(t, cluster.Client.Delete(t.Context(), c))
	assign(t, m.name, private)
	c = m.cache(func(c *v1alpha1.NodeCache) bool { return len(c.Status.Pins) == 2 })
	require.Equal(t, []string{"", v1alpha1.ReasonUnlisted},
		[]string{c.Status.Pins[0].Reason, c.Status.Pins[1].Reason})
	require.True(t, strings.HasPrefix(c.Status.Pins[1].Message, v1alpha1.ReasonUnauthorized+": "), c.Status.Pins[1].Message)
	require.NotNil(t, m.store.Pins()["pin/refused"])
	letGo := v1alpha1.PinAssignment{UID: "refused", Revision: "gone", Action: v1alpha1.ActionKeep}
	assign(t, m.name, private, letGo)
	m.cache(func(c *v1alpha1.NodeCache) bool {
		return len(c.Status.Pins) == 2 && c.Status.Pins[1].Revision == letGo.Revision &&
			c.Status.Pins[1].State == v1alpha1.PinReady && c.Status.Pins[1].Reason == ""
	})
	assign(t, m.name, private)
	eventually(t, func() bool { return m.store.Pins()["pin/refused"] == nil })
	require.Equal(t, o.closure, slices.Sorted(slices.Values(m.store.Pins()["pin/private"])))
}

func TestAnAgentThatStartsAnewDoesNotSeemToHaveLostItsPins(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "anew", "z1")
	o := newOrigin(t, "")
	assign(t, m.name, keep("a", "1", o))
	m.start()
	holds := func(d digest.Digest) bool { _, err := m.store.Stat(d); return err == nil }
	eventually(t, func() bool {
		return !slices.ContainsFunc(o.closure, func(d digest.Digest) bool { return !holds(d) })
	})
	m.stop()
	o.Close()
	m.held = &heldFetcher{asked: make(chan struct{}), open: make(chan struct{})}
	require.NoError(t, cluster.Client.Delete(t.Context(),
		&v1alpha1.NodeCache{ObjectMeta: metav1.ObjectMeta{Name: m.name}}))
	assign(t, m.name, keep("a", "1", o), keep("b", "1", o))
	m.start()
	for _, from := range []string{"its memory", "the API server"} {
		select {
		case <-m.held.asked:
		case <-time.After(patience):
			require.FailNow(t, "no pin was looked at", "from %s", from)
		}
	}
	close(m.held.open)
	eventually(t, func() bool { return m.writes("NodeCache") == 1 })
	c := m.cache(func(*v1alpha1.NodeCache) bool { return true })
	require.EqualValues(t, 2, c.Status.PinsReady, "in the first report of its new life")
}

// allowSecret lets the agents read a secret, as the operator does.
func allowSecret(t *testing.T, secret *corev1.Secret) {
	t.Helper()
	meta := metav1.ObjectMeta{Name: "shoal-agent-pull-secrets", Namespace: secret.Namespace}
	require.NoError(t, cluster.Client.Create(t.Context(), &rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{
		APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{secret.Name},
		Verbs: []string{"get"},
	}}}))
	require.NoError(t, cluster.Client.Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: meta.Name},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: apitest.AgentServiceAccount,
			Namespace: apitest.Namespace}},
	}))
}

func TestFindingsAreEventsOnTheNodeAndACondition(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "findings", "z1")
	m.start()
	assign(t, m.name)
	mirror := func(status metav1.ConditionStatus, reason string) *metav1.Condition {
		return apimeta.FindStatusCondition(m.cache(func(c *v1alpha1.NodeCache) bool {
			found := apimeta.FindStatusCondition(c.Status.Conditions, v1alpha1.ConditionMirrorConfigured)
			return found != nil && found.Status == status && found.Reason == reason
		}).Status.Conditions, v1alpha1.ConditionMirrorConfigured)
	}
	mirror(metav1.ConditionUnknown, v1alpha1.ReasonMirrorNotChecked)
	finding := agent.Finding{Reason: "ConfigPathUnset",
		Message: "containerd reads no mirrors: set config_path to /etc/containerd/certs.d"}
	events := func() (all []string) {
		var list corev1.EventList
		require.NoError(t, cluster.Client.List(t.Context(), &list,
			client.MatchingFields{"involvedObject.name": m.name}))
		for _, e := range list.Items {
			require.Equal(t, "Node", e.InvolvedObject.Kind)
			all = append(all, fmt.Sprintf("%s %s %d", e.Type, e.Reason, e.Count))
		}
		slices.Sort(all)
		return all
	}
	m.agent.SetFindings([]agent.Finding{finding})
	m.agent.SetFindings([]agent.Finding{finding})
	eventually(t, func() bool { return slices.Equal(events(), []string{"Warning ConfigPathUnset 1"}) })
	require.Equal(t, finding.Message, mirror(metav1.ConditionFalse, v1alpha1.ReasonConfigPathUnset).Message)
	m.agent.SetFindings([]agent.Finding{finding})
	m.agent.SetFindings(nil)
	// A finding that stands is told once: events are written in order, and telling it again would have raised its count
	// by now.
	eventually(t, func() bool {
		return slices.Equal(events(), []string{"Normal MirrorConfigured 1", "Warning ConfigPathUnset 1"})
	})
	// A write is counted when its answer is there, which may be after others can see what it wrote.
	eventually(t, func() bool { return m.writes("Event") == 2 })
	mirror(metav1.ConditionTrue, v1alpha1.ReasonMirrorConfigured)
}

// It runs alone, before the parallel tests, so that what is left behind is its own.
func TestAnAgentThatReachesNobodyRunsAndEnds(t *testing.T) {
	m := newMachine(t, "alone", "z1")
	m.config.Host = "https://127.0.0.1:1"
	before := goleak.IgnoreCurrent()
	m.start()
	require.ErrorContains(t, m.agent.Ready(), "not been reached")
	_, err := agent.LookupZone(t.Context(), m.config, m.name, m.store.KV("agent"), slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, m.name)
	m.agent.SetFindings([]agent.Finding{{Reason: "ConfigPathUnset", Message: "nobody hears it"}})
	m.stop()
	// The bootstrapping of the library, which the swarm runs, leaves one goroutine that waits for its first round.
	waits := goleak.IgnoreTopFunction("github.com/ipfs/boxo/bootstrap.Bootstrap.func1")
	deadline := time.Now().Add(patience)
	for err = goleak.Find(before, waits); err != nil && time.Now().Before(deadline); {
		err = goleak.Find(before, waits) // which waits a second, too little for a machine that is busy
	}
	require.NoError(t, err)
}
