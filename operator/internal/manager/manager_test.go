package manager_test

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	regtypes "github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-cache/shoal/api/apitest"
	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/operator/internal/manager"
	"github.com/shoal-cache/shoal/operator/internal/optest"
)

// operatorEnv makes this test binary run as the operator, so that tests can end it by SIGKILL. Its value is a
// kubeconfig.
const operatorEnv = "SHOAL_TEST_OPERATOR"

var cluster *apitest.Cluster

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	if kubeconfig := os.Getenv(operatorEnv); kubeconfig != "" {
		config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
		if err == nil {
			config.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:" + apitest.Namespace + ":" +
				apitest.OperatorServiceAccount}
			err = runOperator(context.Background(), config)
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	apitest.Main(m, func(c *apitest.Cluster) { cluster = c })
}

// runOperator runs the operator until ctx ends.
func runOperator(ctx context.Context, config *rest.Config) error {
	mgr, err := newOperator(ctx, config, false)
	if err != nil {
		return err
	}
	return mgr.Start(ctx)
}

func newOperator(ctx context.Context, config *rest.Config, leaderElection bool) (ctrl.Manager, error) {
	o := options()
	o.LeaderElection = leaderElection
	config.QPS, config.Burst = 500, 1000
	return manager.New(ctx, config, o)
}

func options() manager.Options {
	return manager.Options{
		MetricsAddress: "0", HealthAddress: "0", SkipNameValidation: true, Metrics: prometheus.NewRegistry(),
		RetireAfter:         2 * time.Second,
		AgentServiceAccount: types.NamespacedName{Namespace: apitest.Namespace, Name: apitest.AgentServiceAccount},
		Registries: func(string) http.RoundTripper {
			return http.DefaultTransport
		}, Namespace: apitest.Namespace,
	}
}

// clockOff is a clock that is off by so much.
type clockOff struct {
	clock.RealClock
	by time.Duration
}

func (c clockOff) Now() time.Time                  { return c.RealClock.Now().Add(c.by) }
func (c clockOff) Since(t time.Time) time.Duration { return c.Now().Sub(t) }

// world is a cluster with an operator, with the rights of its role, for one test.
type world struct {
	*testing.T
	*apitest.Cluster
	fleet    *optest.Fleet
	registry string
	// patience bounds every wait; two minutes where it is 0, because the machine may have other work.
	patience time.Duration
}

// newWorld starts an operator and a fleet. Tests with one don't run in parallel, for nodes and Swarm are the cluster's.
func newWorld(t *testing.T, nodes, zones int) *world { return newWorldOf(t, nodes, zones, runOperator) }

// newWorldOf is newWorld with an operator of one's own, or several.
func newWorldOf(t *testing.T, nodes, zones int, run func(context.Context, *rest.Config) error) *world {
	c := apitest.Require(t, cluster)
	ctx, cancel := context.WithCancel(t.Context())
	w := &world{T: t, Cluster: c}

	server := httptest.NewServer(registry.New(registry.WithReferrersSupport(true),
		registry.Logger(log.New(io.Discard, "", 0))))
	w.registry = strings.TrimPrefix(server.URL, "http://")
	swarm := &v1alpha1.Swarm{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SwarmName}}
	require.NoError(t, c.Client.Create(ctx, swarm))

	operator := make(chan error, 1)
	go func() { operator <- run(ctx, c.Impersonate("", apitest.OperatorServiceAccount)) }()
	var err error
	w.fleet, err = optest.NewFleet(ctx, c, strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-")), nodes, zones)
	require.NoError(t, err)
	agents := make(chan struct{})
	go func() { w.fleet.Run(ctx); close(agents) }()

	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-operator)
		<-agents
		server.Close()
		w.clear(swarm)
	})
	return w
}

// clear removes everything that the test made, finalizers too.
func (w *world) clear(swarm *v1alpha1.Swarm) {
	ctx := context.Background()
	var pins v1alpha1.ArtifactPinList
	require.NoError(w, w.Client.List(ctx, &pins))
	for i := range pins.Items {
		p := &pins.Items[i]
		p.Finalizers = nil
		require.NoError(w, client.IgnoreNotFound(w.Client.Update(ctx, p)))
		require.NoError(w, client.IgnoreNotFound(w.Client.Delete(ctx, p)))
	}
	for _, kind := range []client.Object{&v1alpha1.NodeCache{}, &v1alpha1.Peer{}, &corev1.Node{},
		&v1alpha1.CachePolicy{}} {
		require.NoError(w, w.Client.DeleteAllOf(ctx, kind))
	}
	require.NoError(w, w.Client.Delete(ctx, swarm))
}

// push puts a random image under a reference of the world's registry and returns reference and digest.
func (w *world) push(path string) (string, string) {
	w.Helper()
	reference := w.registry + "/" + path
	tag, err := name.NewTag(reference)
	require.NoError(w, err)
	image, err := random.Image(256, 2)
	require.NoError(w, err)
	require.NoError(w, remote.Write(tag, image))
	digest, err := image.Digest()
	require.NoError(w, err)
	return reference, digest.String()
}

func (w *world) pin(name, image string, change func(*v1alpha1.ArtifactPinSpec)) *v1alpha1.ArtifactPin {
	w.Helper()
	p := &v1alpha1.ArtifactPin{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	p.Spec.Artifacts = []v1alpha1.Artifact{{Image: image}}
	p.Spec.Replicas = intstr.FromInt32(3)
	p.Spec.RepairDelay.Duration = time.Minute
	if change != nil {
		change(&p.Spec)
	}
	require.NoError(w, w.Client.Create(w.Context(), p))
	return p
}

// edit changes a pin's spec as a user does.
func (w *world) edit(p *v1alpha1.ArtifactPin, change func(*v1alpha1.ArtifactPinSpec)) {
	w.Helper()
	var fresh v1alpha1.ArtifactPin
	require.NoError(w, w.Client.Get(w.Context(), client.ObjectKeyFromObject(p), &fresh))
	patch := client.MergeFrom(fresh.DeepCopy())
	change(&fresh.Spec)
	require.NoError(w, w.Client.Patch(w.Context(), &fresh, patch))
}

// watch returns what gives every state of a pin from now to a resource version.
func (w *world) watch(p *v1alpha1.ArtifactPin) func(until string) []*v1alpha1.ArtifactPin {
	w.Helper()
	c, err := client.NewWithWatch(w.Config, client.Options{Scheme: w.Scheme})
	require.NoError(w, err)
	events, err := c.Watch(w.Context(), &v1alpha1.ArtifactPinList{}, client.InNamespace(p.Namespace),
		client.MatchingFields{"metadata.name": p.Name})
	require.NoError(w, err)
	return func(until string) (states []*v1alpha1.ArtifactPin) {
		w.Helper()
		defer events.Stop()
		deadline := time.After(2 * time.Minute)
		for {
			select {
			case e := <-events.ResultChan():
				state, ok := e.Object.(*v1alpha1.ArtifactPin)
				require.True(w, ok, "watch: %v", e)
				states = append(states, state)
				if state.ResourceVersion == until {
					return states
				}
			case <-deadline:
				w.Fatalf("resource version %s was not seen", until)
			}
		}
	}
}

// eventually gets an object until the condition holds.
func eventually[T client.Object](w *world, object T, what string, holds func(T) bool) T {
	w.Helper()
	w.eventuallyTrue(what, func() (bool, any) {
		err := w.Client.Get(w.Context(), client.ObjectKeyFromObject(object), object)
		return err == nil && holds(object), object
	})
	return object
}

func (w *world) eventuallyTrue(what string, holds func() (bool, any)) {
	w.Helper()
	patience := cmp.Or(w.patience, 2*time.Minute)
	deadline := time.Now().Add(patience)
	for {
		ok, seen := holds()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			w.Fatalf("not within %s: %s. Last seen: %+v", patience, what, seen)
		}
		time.Sleep(50 * time.Millisecond) // paces a wait for another process, the API server
	}
}

func isReady(p *v1alpha1.ArtifactPin) bool {
	return p.Status.ObservedGeneration == p.Generation &&
		apimeta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.ConditionReady)
}

func reasonOf(p *v1alpha1.ArtifactPin, kind string) string {
	if c := apimeta.FindStatusCondition(p.Status.Conditions, kind); c != nil &&
		p.Status.ObservedGeneration == p.Generation {
		return c.Reason
	}
	return ""
}

func TestTheOtherOperatorTakesOverWhenTheFirstGoes(t *testing.T) {
	first, firstEnds := context.WithCancel(t.Context())
	defer firstEnds()
	firstEnded := make(chan struct{})
	w := newWorldOf(t, 3, 3, func(ctx context.Context, config *rest.Config) error {
		a, err := newOperator(ctx, rest.CopyConfig(config), true)
		if err != nil {
			return err
		}
		b, err := newOperator(ctx, rest.CopyConfig(config), true)
		if err != nil {
			return err
		}
		var both errgroup.Group
		both.Go(func() error { defer close(firstEnded); return a.Start(first) })
		both.Go(func() error {
			select {
			case <-a.Elected():
				return b.Start(ctx)
			case <-firstEnded:
				return nil
			}
		})
		return both.Wait()
	})
	image, _ := w.push("team/app:1")
	p := w.pin("before", image, nil)
	eventually(w, p, "three copies", isReady)
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: apitest.Namespace, Name: manager.LeaseName}}
	require.NoError(t, w.Client.Get(t.Context(), client.ObjectKeyFromObject(lease), lease))
	leader := *lease.Spec.HolderIdentity
	require.NotEmpty(t, leader)

	firstEnds()
	<-firstEnded
	require.NoError(t, w.Client.Get(t.Context(), client.ObjectKeyFromObject(lease), lease))
	require.NotEqual(t, leader, *lease.Spec.HolderIdentity,
		"it gave up its lease, so nobody waits until that has run out")
	held := w.fleet.Holders(string(p.UID))
	eventually(w, w.pin("after", image, nil), "three copies", isReady)
	require.Equal(t, held, w.fleet.Holders(string(p.UID)), "the other comes to the same plan")
}

func TestAnOperatorWhoseClockIsOffKeepsPinsAsAnyOther(t *testing.T) {
	for which, off := range map[string]time.Duration{"ahead": 2 * v1alpha1.StaleAfter,
		"behind": -2 * v1alpha1.StaleAfter} {
		t.Run(which, func(t *testing.T) {
			w := newWorldOf(t, 3, 3, func(ctx context.Context, config *rest.Config) error {
				o := options()
				o.Clock = clockOff{by: off}
				mgr, err := manager.New(ctx, config, o)
				if err != nil {
					return err
				}
				return mgr.Start(ctx)
			})
			image, _ := w.push("team/app:1")
			p := w.pin("app", image, nil)
			eventually(w, p, "three copies", isReady)
			require.Len(t, w.fleet.Holders(string(p.UID)), 3)
			swarm := &v1alpha1.Swarm{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SwarmName}}
			eventually(w, swarm, "peers to start from", func(s *v1alpha1.Swarm) bool {
				return len(s.Status.Bootstrap) == 3
			})

			gone := w.fleet.Holders(string(p.UID))[0]
			require.NoError(t, w.Client.Delete(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: gone}}))
			w.eventuallyTrue("the Peer of a node that is gone goes", func() (bool, any) {
				var peer v1alpha1.Peer
				return apierrors.IsNotFound(w.Client.Get(t.Context(), client.ObjectKey{Name: gone}, &peer)), &peer
			})
		})
	}
}

func TestPinsFollowTheirSpecAndTheFleet(t *testing.T) {
	w := newWorld(t, 6, 3)
	ctx := t.Context()

	t.Log("the swarm forms")
	swarm := eventually(w, &v1alpha1.Swarm{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SwarmName}},
		"six members, and a bootstrap set in all zones",
		func(s *v1alpha1.Swarm) bool {
			zones := map[string]bool{}
			for _, b := range s.Status.Bootstrap {
				zones[b.Zone] = true
			}
			return s.Status.Members == 6 && len(s.Status.Bootstrap) == 5 && len(zones) == 3
		})
	require.True(t, apimeta.IsStatusConditionTrue(swarm.Status.Conditions, v1alpha1.ConditionReady))

	t.Log("a pin of three copies gets them in three zones")
	image, first := w.push("team/app:1")
	p := w.pin("app", image, nil)
	eventually(w, p, "three copies", isReady)
	require.Equal(t, int32(3), p.Status.Ready)
	require.Equal(t, int32(3), p.Status.Domains)
	require.Equal(t, int32(6), p.Status.Eligible)
	require.Equal(t, first, p.Status.Artifacts[0].Digest)
	require.NotEmpty(t, p.Status.Artifacts[0].CID)
	require.Equal(t, image, p.Status.Summary)
	require.Equal(t, v1alpha1.ReasonCurrent, reasonOf(p, v1alpha1.ConditionUpToDate))
	uid := string(p.UID)
	holders := w.fleet.Holders(uid)
	require.Len(t, holders, 3)

	t.Log("a node is lost: its copy is made elsewhere, the others stay, its Peer is retired")
	lost := holders[0]
	require.NoError(t, w.Client.Delete(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: lost}}))
	delete(w.fleet.Agents, lost)
	w.eventuallyTrue("three copies on nodes that are there", func() (bool, any) {
		now := w.fleet.Holders(uid)
		return len(now) == 3 && now[0] != lost, now
	})
	for _, stays := range holders[1:] {
		require.Contains(t, w.fleet.Holders(uid), stays)
	}
	w.eventuallyTrue("the Peer and NodeCache of the lost node go", func() (bool, any) {
		key := client.ObjectKey{Name: lost}
		peer, cache := w.Client.Get(ctx, key, &v1alpha1.Peer{}), w.Client.Get(ctx, key, &v1alpha1.NodeCache{})
		return apierrors.IsNotFound(peer) && apierrors.IsNotFound(cache), []error{peer, cache}
	})

	t.Log("an edit propagates: every node")
	w.edit(p, func(s *v1alpha1.ArtifactPinSpec) { s.Replicas = intstr.FromString(v1alpha1.AllNodes) })
	eventually(w, p, "five copies", func(p *v1alpha1.ArtifactPin) bool { return isReady(p) && p.Status.Ready == 5 })

	t.Log("and back to one, without a moment of none")
	w.edit(p, func(s *v1alpha1.ArtifactPinSpec) { s.Replicas = intstr.FromInt32(1) })
	w.eventuallyTrue("one copy", func() (bool, any) {
		now := w.fleet.Holders(uid)
		require.NotEmpty(t, now)
		return len(now) == 1, now
	})

	t.Log("a tag that moves is followed, and what was pinned before counts until the new is there")
	_, second := w.push("team/app:1")
	for _, a := range w.fleet.Agents {
		a.Pause(true)
	}
	states := w.watch(p)
	w.edit(p, func(s *v1alpha1.ArtifactPinSpec) { s.Priority = 7 })
	eventually(w, p, "the new digest is on its way", func(p *v1alpha1.ArtifactPin) bool {
		return p.Status.Artifacts[0].Digest == second && p.Status.Pending == 1 &&
			reasonOf(p, v1alpha1.ConditionReady) == v1alpha1.ReasonFetching
	})
	require.Equal(t, v1alpha1.ReasonEnoughCopies, reasonOf(p, v1alpha1.ConditionDegraded))
	for _, state := range states(p.ResourceVersion) {
		require.False(t, state.Generation == p.Generation && isReady(state),
			"ready for the edited spec before any node has what it names: %+v", state.Status)
	}
	for _, a := range w.fleet.Agents {
		a.Pause(false)
	}
	eventually(w, p, "the new digest", isReady)

	t.Log("suspended, it stands as it is")
	w.edit(p, func(s *v1alpha1.ArtifactPinSpec) { s.Suspend = true; s.Replicas = intstr.FromInt32(4) })
	eventually(w, p, "reason Suspended", func(p *v1alpha1.ArtifactPin) bool {
		return reasonOf(p, v1alpha1.ConditionReady) == v1alpha1.ReasonSuspended
	})
	require.Len(t, w.fleet.Holders(uid), 1)

	t.Log("deleted with Purge, it goes at once, and the nodes remove it")
	w.edit(p, func(s *v1alpha1.ArtifactPinSpec) { s.Suspend = false; s.DeletionPolicy = v1alpha1.DeletionPurge })
	eventually(w, p, "four copies", isReady)
	require.NoError(t, w.Client.Delete(ctx, p))
	w.eventuallyTrue("pin and copies gone", func() (bool, any) {
		err := w.Client.Get(ctx, client.ObjectKeyFromObject(p), p)
		return apierrors.IsNotFound(err) && len(w.fleet.Holders(uid)) == 0, err
	})
}

func TestOnlyPeersWithNodeAndProofAreAdmitted(t *testing.T) {
	w := newWorld(t, 2, 1)
	ctx := t.Context()
	verdict := func(node string) string {
		p := eventually(w, &v1alpha1.Peer{ObjectMeta: metav1.ObjectMeta{Name: node}}, "a verdict about "+node,
			func(p *v1alpha1.Peer) bool {
				return p.Status.ObservedGeneration == p.Generation
			})
		return apimeta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionAdmitted).Reason
	}
	honest := w.fleet.Agents["testonlypeerswithnodeandproofareadmitted-0"].Node
	require.Equal(t, v1alpha1.ReasonNodeVerified, verdict(honest))

	t.Log("a peer without node is refused, and retired")
	ghost, err := optest.NewPeer("ghost")
	require.NoError(t, err)
	require.NoError(t, w.Client.Create(ctx, ghost))
	require.Equal(t, v1alpha1.ReasonNodeNotFound, verdict("ghost"))
	w.eventuallyTrue("the ghost is gone", func() (bool, any) {
		err := w.Client.Get(ctx, client.ObjectKey{Name: "ghost"}, ghost)
		return apierrors.IsNotFound(err), err
	})

	t.Log("a node that claims the peer ID of another is refused: it can't prove it")
	for _, node := range []string{"thief", "clone", "late"} {
		require.NoError(t, w.Client.Create(ctx, optest.NewNode(node, "zone-a")))
	}
	var victim v1alpha1.Peer
	require.NoError(t, w.Client.Get(ctx, client.ObjectKey{Name: honest}, &victim))
	thief := apitest.NewPeer("thief", victim.Spec.PeerID)
	thief.Spec.Proof = victim.Spec.Proof
	require.NoError(t, w.Client.Create(ctx, thief))
	require.Equal(t, v1alpha1.ReasonInvalidProof, verdict("thief"))
	require.Equal(t, v1alpha1.ReasonNodeVerified, verdict(honest))

	t.Log("of two nodes with one key the first keeps it, until it goes")
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	require.NoError(t, err)
	original, err := optest.PeerOf("thief", key)
	require.NoError(t, err)
	require.NoError(t, w.Client.Delete(ctx, thief))
	require.NoError(t, w.Client.Create(ctx, original))
	require.Equal(t, v1alpha1.ReasonNodeVerified, verdict("thief"))
	clone, err := optest.PeerOf("clone", key)
	require.NoError(t, err)
	require.NoError(t, w.Client.Create(ctx, clone))
	require.Equal(t, v1alpha1.ReasonDuplicatePeerID, verdict("clone"))
	require.NoError(t, w.Client.Delete(ctx, original))
	eventually(w, clone, "the clone takes over", func(p *v1alpha1.Peer) bool { return p.IsAdmitted() })

	t.Log("a frozen swarm admits no newcomer and puts no one out")
	var swarm v1alpha1.Swarm
	require.NoError(t, w.Client.Get(ctx, client.ObjectKey{Name: v1alpha1.SwarmName}, &swarm))
	patch := client.MergeFrom(swarm.DeepCopy())
	swarm.Spec.Admission.Mode = v1alpha1.AdmitFrozen
	swarm.Spec.Admission.DenyNodes = []string{w.fleet.Agents["testonlypeerswithnodeandproofareadmitted-1"].Node}
	require.NoError(t, w.Client.Patch(ctx, &swarm, patch))
	eventually(w, &v1alpha1.Peer{ObjectMeta: metav1.ObjectMeta{Name: swarm.Spec.Admission.DenyNodes[0]}},
		"the denied peer is put out",
		func(p *v1alpha1.Peer) bool { return !p.IsAdmitted() })
	late, err := optest.NewPeer("late")
	require.NoError(t, err)
	require.NoError(t, w.Client.Create(ctx, late))
	require.Equal(t, v1alpha1.ReasonAdmissionFrozen, verdict("late"))
	require.Equal(t, v1alpha1.ReasonNodeVerified, verdict(honest))
}

func TestEachFailureHasItsReason(t *testing.T) {
	w := newWorld(t, 3, 3)
	ctx := t.Context()
	image, _ := w.push("team/good:1")
	docker := func(name string, data string) {
		require.NoError(t, w.Client.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default",
			Name: name},
			Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{corev1.DockerConfigJsonKey: []byte(data)}}))
	}
	docker("pull", `{"auths": {"`+w.registry+`": {"username": "u", "password": "p"}}}`)
	docker("broken", `{"auths": {"`+w.registry+`": {"auth": "%%%"}}}`)
	down := httptest.NewServer(nil)
	down.Close()
	locked := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("WWW-Authenticate", `Basic realm="locked"`)
		rw.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(locked.Close)
	busy := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v2/" {
			rw.WriteHeader(http.StatusTooManyRequests)
		}
	}))
	t.Cleanup(busy.Close)
	// An image of which one copy is larger than the nodes' caches.
	huge := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/" {
			return
		}
		rw.Header().Set("Content-Type", string(regtypes.OCIManifestSchema1))
		_, _ = fmt.Fprintf(rw, `{"schemaVersion": 2, "mediaType": %q, "config": {"size": 2, "digest": "sha256:%064x"},
			"layers": [{"size": %d, "digest": "sha256:%064x"}]}`, regtypes.OCIManifestSchema1, 1, int64(100<<30), 2)
	}))
	t.Cleanup(huge.Close)
	host := func(s *httptest.Server) string { return strings.TrimPrefix(s.URL, "http://") }
	tiny := resource.MustParse("10")

	for reason, tc := range map[string]struct {
		image  string
		change func(*v1alpha1.ArtifactPinSpec)
	}{
		v1alpha1.ReasonNotFoundUpstream:    {image: w.registry + "/team/good:vanished"},
		v1alpha1.ReasonRegistryUnreachable: {image: host(down) + "/team/app:1"},
		v1alpha1.ReasonUnauthorized:        {image: host(locked) + "/team/app:1"},
		v1alpha1.ReasonRateLimited:         {image: host(busy) + "/team/app:1"},
		v1alpha1.ReasonSecretNotFound: {host(locked) + "/team/app:1", func(s *v1alpha1.ArtifactPinSpec) {
			s.PullSecrets = []corev1.LocalObjectReference{{Name: "none"}}
		}},
		v1alpha1.ReasonInvalidSecret: {host(locked) + "/team/app:1", func(s *v1alpha1.ArtifactPinSpec) {
			s.PullSecrets = []corev1.LocalObjectReference{{Name: "broken"}}
		}},
		v1alpha1.ReasonServiceAccountNotFound: {host(locked) + "/team/app:1", func(s *v1alpha1.ArtifactPinSpec) {
			s.ServiceAccountName = "none"
		}},
		v1alpha1.ReasonSizeLimitExceeded: {image, func(s *v1alpha1.ArtifactPinSpec) { s.SizeLimit = &tiny }},
		v1alpha1.ReasonTooFewNodes: {image, func(s *v1alpha1.ArtifactPinSpec) {
			s.Replicas = intstr.FromInt32(9)
		}},
		v1alpha1.ReasonInsufficientCapacity: {image: host(huge) + "/team/huge:1"},
		v1alpha1.ReasonNoWorkloads: {image, func(s *v1alpha1.ArtifactPinSpec) {
			s.Artifacts, s.Workloads = nil, &v1alpha1.WorkloadSelector{}
		}},
		v1alpha1.ReasonNoEligibleNodes: {image, func(s *v1alpha1.ArtifactPinSpec) {
			s.NodeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"no": "such"}}
		}},
		v1alpha1.ReasonInvalidSpec: {image, func(s *v1alpha1.ArtifactPinSpec) {
			s.Schedule = &v1alpha1.Schedule{Cron: "99 * * * *", TimeZone: "Mars/Olympus"}
		}},
		v1alpha1.ReasonWaitingForSchedule: {image, func(s *v1alpha1.ArtifactPinSpec) {
			s.Schedule = &v1alpha1.Schedule{Cron: fmt.Sprintf("0 0 1 %d *", time.Now().AddDate(0, 3, 0).Month()),
				Window: metav1.Duration{Duration: time.Minute}}
		}},
		v1alpha1.ReasonExpired: {image, func(s *v1alpha1.ArtifactPinSpec) {
			s.Expiry = &v1alpha1.Expiry{Until: &metav1.Time{Time: time.Now().Add(-time.Minute)}}
		}},
		v1alpha1.ReasonAllReady: {image, func(s *v1alpha1.ArtifactPinSpec) {
			s.PullSecrets = []corev1.LocalObjectReference{{Name: "pull"}}
		}},
	} {
		p := w.pin(strings.ToLower(reason), tc.image, tc.change)
		eventually(w, p, "reason "+reason, func(p *v1alpha1.ArtifactPin) bool {
			return reasonOf(p, v1alpha1.ConditionReady) == reason
		})
		message := apimeta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady).Message
		require.NotEmpty(t, message)
		t.Logf("%-24s %s", reason, message)
	}

	t.Log("agents may read the secrets that pins name, and no others")
	agent := w.ClientFor(t, w.Impersonate("", apitest.AgentServiceAccount))
	w.eventuallyTrue("the agents' right to the secret", func() (bool, any) {
		err := agent.Get(ctx, client.ObjectKey{Namespace: "default", Name: "pull"}, &corev1.Secret{})
		return err == nil, err
	})
	docker("private", `{}`)
	require.True(t, apierrors.IsForbidden(agent.Get(ctx, client.ObjectKey{Namespace: "default", Name: "private"},
		&corev1.Secret{})))
	var pins v1alpha1.ArtifactPinList
	require.NoError(t, w.Client.List(ctx, &pins))
	for i := range pins.Items {
		require.NoError(t, w.Client.Delete(ctx, &pins.Items[i]))
	}
	w.eventuallyTrue("the right goes with the last pin", func() (bool, any) {
		err := w.Client.Get(ctx, client.ObjectKey{Namespace: "default", Name: "shoal-agent-pull-secrets"},
			&rbacv1.Role{})
		return apierrors.IsNotFound(err), err
	})
}

func TestAPinThatIsMendedGoesOn(t *testing.T) {
	w := newWorld(t, 3, 3)
	ctx := t.Context()
	image, _ := w.push("team/app:1")
	fails := func(p *v1alpha1.ArtifactPin, reason, message string) {
		t.Helper()
		eventually(w, p, "reason "+reason, func(p *v1alpha1.ArtifactPin) bool {
			return reasonOf(p, v1alpha1.ConditionReady) == reason
		})
		require.Contains(t, apimeta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady).Message, message)
	}

	t.Log("one that has expired, and is given more time")
	p := w.pin("expired", image, func(s *v1alpha1.ArtifactPinSpec) {
		s.Expiry = &v1alpha1.Expiry{Until: &metav1.Time{Time: time.Now().Add(-time.Minute)}}
	})
	fails(p, v1alpha1.ReasonExpired, "spec.expiry has passed")
	w.edit(p, func(s *v1alpha1.ArtifactPinSpec) { s.Expiry = nil })
	eventually(w, p, "three copies", isReady)

	t.Log("one whose selector of pods was malformed")
	p = w.pin("malformed", "", func(s *v1alpha1.ArtifactPinSpec) {
		s.Artifacts, s.Workloads = nil, &v1alpha1.WorkloadSelector{Selector: &metav1.LabelSelector{
			MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: "Near",
				Values: []string{"web"}}}}}
	})
	fails(p, v1alpha1.ReasonInvalidSpec, "workloads.selector")
	w.edit(p, func(s *v1alpha1.ArtifactPinSpec) { s.Workloads.Selector = nil })
	fails(p, v1alpha1.ReasonNoWorkloads, "no running pod")

	t.Log("one whose service account names what can't be a secret: the nodes that hold it go on taking other pins")
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "odd"},
		ImagePullSecrets: []corev1.LocalObjectReference{{Name: strings.Repeat("x", 300)}}}
	require.NoError(t, w.Client.Create(ctx, account))
	p = w.pin("odd", image, nil)
	eventually(w, p, "three copies", isReady)
	w.edit(p, func(s *v1alpha1.ArtifactPinSpec) { s.ServiceAccountName = account.Name })
	eventually(w, p, "that upstream could not be asked, and why", func(p *v1alpha1.ArtifactPin) bool {
		return isReady(p) && reasonOf(p, v1alpha1.ConditionUpToDate) == v1alpha1.ReasonSecretNotFound
	})
	eventually(w, w.pin("other", image, nil), "three copies", isReady)

	t.Log("one on every node, one of which is down")
	p = w.pin("all", image, func(s *v1alpha1.ArtifactPinSpec) {
		s.Replicas = intstr.FromString(v1alpha1.AllNodes)
		s.RepairDelay.Duration = time.Second
	})
	eventually(w, p, "three copies", isReady)
	var node corev1.Node
	require.NoError(t, w.Client.Get(ctx, client.ObjectKey{Name: w.fleet.Holders(string(p.UID))[0]}, &node))
	require.NoError(t, optest.SetReady(ctx, w.Client, &node, corev1.ConditionFalse, time.Now()))
	fails(p, v1alpha1.ReasonNodesDown, "2 of 3 copies are whole; 1 eligible node is not Ready")
	require.NoError(t, optest.SetReady(ctx, w.Client, &node, corev1.ConditionTrue, time.Now()))
	eventually(w, p, "three copies", isReady)
}

func TestAPinFollowsTheImagesOfRunningPods(t *testing.T) {
	w := newWorld(t, 3, 3)
	ctx := t.Context()
	running := func(name, app, image, imageID string) *corev1.Pod {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name,
			Labels: map[string]string{"app": app}},
			Spec: corev1.PodSpec{
				Containers:     []corev1.Container{{Name: "main", Image: image}},
				InitContainers: []corev1.Container{{Name: "init", Image: w.registry + "/team/never-asked-for:1"}},
			}}
		require.NoError(t, w.Client.Create(ctx, pod))
		pod.Status.Phase = corev1.PodRunning
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "main", Image: image, ImageID: imageID}}
		require.NoError(t, w.Client.Status().Update(ctx, pod))
		t.Cleanup(func() {
			require.NoError(t, client.IgnoreNotFound(w.Client.Delete(context.Background(), pod,
				client.GracePeriodSeconds(0))))
		})
		return pod
	}
	web, webDigest := w.push("team/web:1")
	worker, workerDigest := w.push("team/worker:1")
	other, _ := w.push("team/other:1")
	first := running("web-0", "shop", web, "")
	running("other-0", "elsewhere", other, "")
	p := w.pin("shop", "", func(s *v1alpha1.ArtifactPinSpec) {
		s.Artifacts = nil
		s.Workloads = &v1alpha1.WorkloadSelector{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "shop"}}, InitContainers: v1alpha1.Exclude}
	})
	digests := func(p *v1alpha1.ArtifactPin) (all []string) {
		for _, a := range p.Status.Artifacts {
			all = append(all, a.Digest)
		}
		slices.Sort(all)
		return all
	}
	want := func(digests ...string) []string { slices.Sort(digests); return digests }
	eventually(w, p, "the image of the one pod that matches", func(p *v1alpha1.ArtifactPin) bool {
		return isReady(p) && slices.Equal(digests(p), want(webDigest))
	})

	t.Log("another pod with another image, by the digest that runs")
	_, moved := w.push("team/worker:1")
	require.NotEqual(t, workerDigest, moved)
	running("worker-0", "shop", worker, w.registry+"/team/worker@"+workerDigest)
	eventually(w, p, "both images, that of the tag that has moved as it runs", func(p *v1alpha1.ArtifactPin) bool {
		return isReady(p) && slices.Equal(digests(p), want(webDigest, workerDigest))
	})

	t.Log("a pod that goes takes its image off the pin")
	require.NoError(t, w.Client.Delete(ctx, first, client.GracePeriodSeconds(0)))
	eventually(w, p, "the image that still runs", func(p *v1alpha1.ArtifactPin) bool {
		return isReady(p) && slices.Equal(digests(p), want(workerDigest))
	})
}

func TestAPinIsResolvedWithTheIdentityTokenOfItsServiceAccount(t *testing.T) {
	w := newWorld(t, 3, 3)
	ctx := t.Context()
	image, digest := w.push("team/private:1")
	files, err := url.Parse("http://" + w.registry)
	require.NoError(t, err)
	proxy := httputil.NewSingleHostReverseProxy(files)
	var locked *httptest.Server
	locked = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token" && r.PostFormValue("refresh_token") == "alice's":
			_, _ = io.WriteString(rw, `{"access_token": "short-lived"}`)
		case r.URL.Path == "/token":
			rw.WriteHeader(http.StatusUnauthorized)
		case r.Header.Get("Authorization") != "Bearer short-lived":
			rw.Header().Set("WWW-Authenticate", `Bearer realm="`+locked.URL+`/token",service="test"`)
			rw.WriteHeader(http.StatusUnauthorized)
		default:
			proxy.ServeHTTP(rw, r)
		}
	}))
	t.Cleanup(locked.Close)
	host := strings.TrimPrefix(locked.URL, "http://")
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "identity"},
		Type: corev1.SecretTypeDockerConfigJson,
		Data: map[string][]byte{corev1.DockerConfigJsonKey: fmt.Appendf(nil,
			`{"auths": {%q: {"auth": "PHRva2VuPjo=", "identitytoken": "alice's"}}}`, host)}}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "puller"},
		ImagePullSecrets: []corev1.LocalObjectReference{{Name: secret.Name}}}
	require.NoError(t, w.Client.Create(ctx, secret))
	require.NoError(t, w.Client.Create(ctx, account))

	p := w.pin("private", strings.Replace(image, w.registry, host, 1), func(s *v1alpha1.ArtifactPinSpec) {
		s.ServiceAccountName = account.Name
	})
	eventually(w, p, "three copies", isReady)
	require.Equal(t, digest, p.Status.Artifacts[0].Digest)
	require.Equal(t, []string{secret.Name}, p.Status.PullSecrets, "agents are told to use it too")
}

func TestATagIsFollowedAtItsInterval(t *testing.T) {
	// Another operator takes over whose clock says that most of the interval, which is a minute at the least, has passed.
	before, takeOver := context.WithCancel(t.Context())
	defer takeOver()
	w := newWorldOf(t, 3, 3, func(ctx context.Context, config *rest.Config) error {
		before, end := context.WithCancel(before)
		defer end()
		defer context.AfterFunc(ctx, end)()
		if err := runOperator(before, rest.CopyConfig(config)); err != nil || ctx.Err() != nil {
			return err
		}
		o := options()
		o.Clock = clockOff{by: 50 * time.Second}
		mgr, err := manager.New(ctx, config, o)
		if err != nil {
			return err
		}
		return mgr.Start(ctx)
	})
	image, first := w.push("team/app:latest")
	followed := w.pin("followed", image, func(s *v1alpha1.ArtifactPinSpec) {
		// the least
		s.Resolve = v1alpha1.ResolveSpec{Policy: v1alpha1.ResolveInterval,
			Interval: &metav1.Duration{Duration: time.Minute}}
	})
	once := w.pin("once", image, func(s *v1alpha1.ArtifactPinSpec) {
		s.Resolve = v1alpha1.ResolveSpec{Policy: v1alpha1.ResolveOnce}
	})
	eventually(w, followed, "copies", isReady)
	eventually(w, once, "copies", isReady)
	_, second := w.push("team/app:latest")
	takeOver()
	eventually(w, followed, "the digest that the tag names now, with nobody asking",
		func(p *v1alpha1.ArtifactPin) bool {
			return isReady(p) && p.Status.Artifacts[0].Digest == second && p.Generation == 1
		})
	require.NoError(t, w.Client.Get(t.Context(), client.ObjectKeyFromObject(once), once))
	require.Equal(t, first, once.Status.Artifacts[0].Digest)

	t.Log("a tag that vanishes upstream is told, and the copies stay")
	for _, reference := range []string{image, strings.TrimSuffix(image, ":latest") + "@" + second} {
		gone, err := name.ParseReference(reference)
		require.NoError(t, err)
		require.NoError(t, remote.Delete(gone))
	}
	w.edit(followed, func(s *v1alpha1.ArtifactPinSpec) { s.Priority = 1 }) // has it resolved now
	eventually(w, followed, "that it has vanished", func(p *v1alpha1.ArtifactPin) bool {
		return isReady(p) && reasonOf(p, v1alpha1.ConditionUpToDate) == v1alpha1.ReasonVanishedUpstream
	})
	require.Equal(t, second, followed.Status.Artifacts[0].Digest)
	require.Len(t, w.fleet.Holders(string(followed.UID)), 3)
}

func TestANodeThatFailsShowsAndAStartingNodeWaits(t *testing.T) {
	w := newWorld(t, 3, 3)
	ctx := t.Context()
	image, _ := w.push("team/base:1")
	p := w.pin("base", image, func(s *v1alpha1.ArtifactPinSpec) {
		s.Replicas = intstr.FromString(v1alpha1.AllNodes)
		s.Startup = v1alpha1.StartupGate
		two := int32(3)
		s.MinReplicas = &two
	})
	eventually(w, p, "three copies", isReady)

	t.Log("one node fails, and the pin says where and why")
	var bad *optest.Agent
	for _, a := range w.fleet.Agents {
		bad = a
	}
	bad.Fail(string(p.UID), v1alpha1.FetchDiskFull, "1 GiB wanted, 12 MiB above the floor")
	eventually(w, p, "the failure", func(p *v1alpha1.ArtifactPin) bool {
		return reasonOf(p, v1alpha1.ConditionReady) == v1alpha1.ReasonFetchFailed &&
			reasonOf(p, v1alpha1.ConditionDegraded) == v1alpha1.ReasonTooFewCopies
	})
	require.Equal(t, []v1alpha1.NodeFailure{{NodeName: bad.Node, Reason: v1alpha1.FetchDiskFull,
		Message: "1 GiB wanted, 12 MiB above the floor"}}, p.Status.Failures)
	bad.Fail(string(p.UID), "", "")
	eventually(w, p, "three copies again", isReady)

	t.Log("a node that starts keeps its taint until the pin is there")
	node := optest.NewNode("starting", "zone-a")
	node.Spec.Taints = []corev1.Taint{{Key: v1alpha1.StartupTaint, Effect: corev1.TaintEffectNoSchedule},
		{Key: "other", Effect: corev1.TaintEffectPreferNoSchedule}}
	require.NoError(t, w.Client.Create(ctx, node))
	agent := &optest.Agent{Node: "starting", Client: w.ClientFor(t,
		w.Impersonate("starting", apitest.AgentServiceAccount))}
	agent.Pause(true)
	require.NoError(t, agent.Register(ctx))
	running, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { agent.Run(running, 100*time.Millisecond); close(done) }()
	defer func() { stop(); <-done }()

	eventually(w, p, "one copy is on its way", func(p *v1alpha1.ArtifactPin) bool {
		return p.Status.Desired == 4 && p.Status.Pending == 1
	})
	require.NoError(t, w.Client.Get(ctx, client.ObjectKeyFromObject(node), node))
	has := func(n *corev1.Node, key string) bool {
		return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == key })
	}
	require.True(t, has(node, v1alpha1.StartupTaint))
	agent.Pause(false)
	eventually(w, node, "the taint is lifted", func(n *corev1.Node) bool { return !has(n, v1alpha1.StartupTaint) })
	require.True(t, has(node, "other"), "other taints stay")

	t.Log("a node without an agent keeps it for a while, whichever operator counts that")
	mute := optest.NewNode("mute", "zone-a")
	mute.Spec.Taints = []corev1.Taint{{Key: v1alpha1.StartupTaint, Effect: corev1.TaintEffectNoSchedule}}
	mute.Annotations = map[string]string{"network.example/subnet": "10.1.2.0/24"}
	require.NoError(t, w.Client.Create(ctx, mute))
	eventually(w, mute, "since when it waits", func(n *corev1.Node) bool { return n.Annotations[v1alpha1.StartingSince] != "" })
	require.True(t, has(mute, v1alpha1.StartupTaint))
	mute.Annotations[v1alpha1.StartingSince] = time.Now().Add(-v1alpha1.StartupPatience).UTC().Format(time.RFC3339)
	require.NoError(t, w.Client.Update(ctx, mute))
	eventually(w, mute, "the taint is lifted", func(n *corev1.Node) bool {
		return !has(n, v1alpha1.StartupTaint) && n.Annotations[v1alpha1.StartingSince] == ""
	})
	require.Equal(t, "10.1.2.0/24", mute.Annotations["network.example/subnet"], "what others note on a node stays")
}

func TestPoliciesShowWhereTheyHoldAndConflict(t *testing.T) {
	w := newWorld(t, 2, 2)
	ctx := t.Context()
	gib := resource.MustParse("1Gi")
	more := resource.MustParse("2Gi")
	a := &v1alpha1.CachePolicy{ObjectMeta: metav1.ObjectMeta{Name: "a"},
		Spec: v1alpha1.CachePolicySpec{Storage: &v1alpha1.StoragePolicy{Capacity: &gib}}}
	b := &v1alpha1.CachePolicy{ObjectMeta: metav1.ObjectMeta{Name: "b"},
		Spec: v1alpha1.CachePolicySpec{Storage: &v1alpha1.StoragePolicy{Capacity: &more}}}
	require.NoError(t, w.Client.Create(ctx, optest.NewNode("without-agent", "zone-a")))
	require.NoError(t, w.Client.Create(ctx, a))
	require.NoError(t, w.Client.Create(ctx, b))
	eventually(w, a, "the winner says so", func(p *v1alpha1.CachePolicy) bool {
		return len(p.Status.Conflicts) == 1 &&
			p.Status.Conflicts[0] == v1alpha1.PolicyConflict{Policy: "b", Field: "storage.capacity", Wins: true}
	})
	eventually(w, b, "the loser too", func(p *v1alpha1.CachePolicy) bool {
		return apimeta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.ConditionConflicting) &&
			p.Status.MatchedNodes == 2 && p.Status.AppliedNodes == 0
	})

	t.Log("another priority settles it")
	patch := client.MergeFrom(b.DeepCopy())
	b.Spec.Priority = 1
	require.NoError(t, w.Client.Patch(ctx, b, patch))
	eventually(w, a, "no conflict", func(p *v1alpha1.CachePolicy) bool {
		return apimeta.IsStatusConditionFalse(p.Status.Conditions, v1alpha1.ConditionConflicting)
	})
}
