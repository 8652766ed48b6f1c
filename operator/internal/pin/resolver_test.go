package pin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/operator/internal/resolve"
)

// store holds one pin, and takes whatever is applied to its status.
type store struct {
	client.Client
	pin *v1alpha1.ArtifactPin
}

func (s store) Get(_ context.Context, _ client.ObjectKey, object client.Object, _ ...client.GetOption) error {
	s.pin.DeepCopyInto(object.(*v1alpha1.ArtifactPin))
	return nil
}

func (store) List(context.Context, client.ObjectList, ...client.ListOption) error { return nil }

func (store) Scheme() *runtime.Scheme {
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		panic(err)
	}
	return scheme
}

func (s store) Status() client.SubResourceWriter { return statusOf{} }

type statusOf struct{ client.SubResourceWriter }

func (statusOf) Apply(context.Context, runtime.ApplyConfiguration, ...client.SubResourceApplyOption) error {
	return nil
}

// registries answer every resolution alike, and remember what they were asked with.
type registries struct {
	err   error
	asked *resolve.Options
}

func (r registries) Resolve(_ context.Context, _ v1alpha1.Artifact,
	options resolve.Options) (v1alpha1.ResolvedArtifact, error) {
	if r.asked != nil {
		*r.asked = options
	}
	return v1alpha1.ResolvedArtifact{}, r.err
}

func newResolver(p *v1alpha1.ArtifactPin, of registries, at clock.Clock) *Resolver {
	return &Resolver{Client: store{pin: p}, Registries: of, Recorder: events.NewFakeRecorder(100), Clock: at,
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "attempts_total", Help: "Attempts."}, []string{"reason"})}
}

func TestAResolutionThatFailsIsTriedAgain(t *testing.T) {
	t.Parallel()
	p := &v1alpha1.ArtifactPin{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "a", UID: "a", Generation: 1}}
	p.Spec.Artifacts = []v1alpha1.Artifact{{Image: "registry.example/app:1"}}
	p.Spec.Backoff = v1alpha1.Backoff{Initial: metav1.Duration{Duration: time.Second},
		Max: metav1.Duration{Duration: time.Second}}
	// The status has the second in which an attempt was made, and this is its end.
	at := clocktesting.NewFakeClock(time.Date(2026, 6, 1, 12, 0, 0, 999_999_999, time.UTC))
	r := newResolver(p, registries{err: errors.New("no route")}, at)
	for range 100 { // the pause is drawn
		result, err := r.Reconcile(t.Context(), ctrl.Request{NamespacedName: client.ObjectKeyFromObject(p)})
		require.NoError(t, err)
		require.Positive(t, result.RequeueAfter, "0 means never")
	}
}

func TestResolver_WhatAPinNamesTwiceIsAskedForOnce(t *testing.T) {
	t.Parallel()
	p := &v1alpha1.ArtifactPin{}
	app, other := v1alpha1.Artifact{Image: "a.example/app:1"}, v1alpha1.Artifact{Digest: "sha256:aa", Repository: "a.example/app"}
	elsewhere := v1alpha1.Artifact{Digest: "sha256:aa", Repository: "b.example/app"}
	model := func() v1alpha1.Artifact { return v1alpha1.Artifact{Hub: &v1alpha1.HubArtifact{Repository: "org/m"}} }
	p.Spec.Artifacts = []v1alpha1.Artifact{app, other, app, model(), elsewhere, model(), app}
	named, malformed, err := (&Resolver{}).named(t.Context(), p)
	require.NoError(t, err)
	require.Nil(t, malformed)
	require.Equal(t, []v1alpha1.Artifact{app, other, model(), elsewhere}, named)
}

// silent are registries that give no answer before they are let.
type silent struct{ asked, goOn chan struct{} }

func (s silent) Resolve(context.Context, v1alpha1.Artifact, resolve.Options) (v1alpha1.ResolvedArtifact, error) {
	s.asked <- struct{}{}
	<-s.goOn
	return v1alpha1.ResolvedArtifact{}, errors.New("no route")
}

// queued is a Resolver whose registries are silent, and the queue that it calls pins by.
func queued(t *testing.T, hole silent) (*Resolver, workqueue.TypedRateLimitingInterface[ctrl.Request]) {
	t.Helper()
	p := &v1alpha1.ArtifactPin{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "a", UID: "a", Generation: 1}}
	p.Spec.Artifacts = []v1alpha1.Artifact{{Image: "registry.example/app:1"}}
	p.Spec.Backoff = v1alpha1.Backoff{Initial: metav1.Duration{Duration: time.Minute},
		Max: metav1.Duration{Duration: time.Minute}}
	r := newResolver(p, registries{}, clock.RealClock{})
	r.Registries = hole
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[ctrl.Request]())
	t.Cleanup(queue.ShutDown)
	r.turns.queue.Store(&queue)
	return r, queue
}

func TestResolver_EachPinBeyondTheShareOfItsNamespaceHasItsTurn(t *testing.T) {
	t.Parallel()
	hole := silent{make(chan struct{}), make(chan struct{})}
	r, queue := queued(t, hole)
	reconcile := func(name string) {
		_, _ = r.Reconcile(t.Context(), ctrl.Request{NamespacedName: types.NamespacedName{Namespace: "team", Name: name}})
	}
	var working sync.WaitGroup
	for i := range resolveWorkers / 2 {
		working.Go(func() { reconcile(fmt.Sprint("silent-", i)) })
		<-hole.asked
	}
	for range 2 { // the second time something has changed
		for _, name := range []string{"first", "second", "third"} {
			reconcile(name) // returns at once, and holds no worker
		}
	}
	require.Zero(t, queue.Len())

	hole.goOn <- struct{}{}
	for _, name := range []string{"first", "second", "third"} { // as the one before leaves, and no sooner
		request, _ := queue.Get()
		require.Equal(t, name, request.Name)
		require.Zero(t, queue.Len())
		reconcile("silent-0") // what comes in between waits too
		working.Go(func() { reconcile(request.Name) })
		<-hole.asked
		hole.goOn <- struct{}{}
		queue.Done(request)
	}
	request, _ := queue.Get()
	require.Equal(t, "silent-0", request.Name)
	working.Go(func() { reconcile(request.Name) })
	<-hole.asked
	close(hole.goOn)
	working.Wait()
	require.Zero(t, r.workers.Of("team"))
	require.Empty(t, r.waiting)
	require.Empty(t, r.called)
	require.Zero(t, queue.Len(), "each came once")
}

func TestResolver_ManyNamespacesOfSilentRegistriesLeaveWorkersForOthers(t *testing.T) {
	t.Parallel()
	r, queue := queued(t, silent{})
	hostile := func(i int) types.NamespacedName {
		return types.NamespacedName{Namespace: fmt.Sprint("hostile-", i%5), Name: fmt.Sprint(i)}
	}
	var working []types.NamespacedName
	for i := range 1000 {
		if pin := hostile(i); r.enter(pin) {
			working = append(working, pin)
		}
	}
	leaves := func() {
		r.leave(working[0].Namespace)
		for working = working[1:]; queue.Len() > 0; {
			request, _ := queue.Get()
			require.True(t, r.enter(request.NamespacedName), "who is called has a worker")
			working = append(working, request.NamespacedName)
			queue.Done(request)
		}
	}
	for range 100 {
		leaves()
	}
	newcomer := types.NamespacedName{Namespace: "team", Name: "a"}
	require.True(t, r.enter(newcomer))
	for i := range 5 {
		require.LessOrEqual(t, r.workers.Of(fmt.Sprint("hostile-", i)), resolveWorkers/6)
	}
	for r.enter(newcomer) { // until the team has its share
	}
	r.leave("team")
	request, _ := queue.Get()
	require.Equal(t, newcomer, request.NamespacedName, "its namespace has the fewest, so it is called first")
}

// secrets are what the API server has; of those without a Secret it gives no answer.
type secrets struct {
	client.Reader
	all map[string]*corev1.Secret
}

func (s secrets) Get(_ context.Context, key client.ObjectKey, object client.Object, _ ...client.GetOption) error {
	if account, ok := object.(*corev1.ServiceAccount); ok {
		account.ImagePullSecrets = []corev1.LocalObjectReference{{Name: key.Name}}
		return nil
	}
	switch secret, has := s.all[key.Name]; {
	case !has:
		return apierrors.NewNotFound(corev1.Resource("secrets"), key.Name)
	case secret == nil:
		return errors.New("no answer")
	default:
		secret.DeepCopyInto(object.(*corev1.Secret))
		return nil
	}
}

// TestOnlyWhatIsAPullSecretIsNamed holds because agents are let read what a pin's status names.
func TestOnlyWhatIsAPullSecretIsNamed(t *testing.T) {
	t.Parallel()
	login := &corev1.Secret{Type: corev1.SecretTypeDockerConfigJson,
		Data: map[string][]byte{
			corev1.DockerConfigJsonKey: []byte(`{"auths": {"registry.example": {"auth": "YTpi"}}}`)}}
	reader := secrets{all: map[string]*corev1.Secret{
		"login": login, "other": {Type: corev1.SecretTypeOpaque}, "silent": nil}}
	for name, tc := range map[string]struct {
		named, account string // names apart by a space, a name
		want           []string
		counted        int // -1: no registry is asked
		told           string
	}{
		"a pull secret":                  {named: "login", want: []string{"login"}, counted: 1},
		"a service account's":            {account: "login", want: []string{"login"}, counted: 1},
		"one that is missing":            {named: "none", told: v1alpha1.ReasonSecretNotFound},
		"one of another type":            {named: "other", told: v1alpha1.ReasonInvalidSecret},
		"an account's of another type":   {named: "login", account: "other", want: []string{"login"}, counted: 1, told: v1alpha1.ReasonInvalidSecret},
		"one beside one that is missing": {named: "none login", want: []string{"login"}, counted: 1, told: v1alpha1.ReasonSecretNotFound},
		"one without its account":        {named: "login", account: "none", want: []string{"login"}, counted: 1, told: v1alpha1.ReasonSecretNotFound},
		"one that is not answered for":   {named: "silent", want: []string{"before"}, counted: -1, told: v1alpha1.ReasonResolving},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := &v1alpha1.ArtifactPin{}
			p.Status.PullSecrets = []string{"before"}
			p.Spec.ServiceAccountName = tc.account
			for name := range strings.FieldsSeq(tc.named) {
				p.Spec.PullSecrets = append(p.Spec.PullSecrets, corev1.LocalObjectReference{Name: name})
			}
			asked := resolve.Options{Secrets: -1}
			r := newResolver(p, registries{asked: &asked}, clock.RealClock{})
			r.Live = reader
			o := r.resolveAll(t.Context(), p, []v1alpha1.Artifact{{Image: "registry.example/app:1"}})
			require.ElementsMatch(t, tc.want, o.secrets)
			require.Equal(t, tc.counted, asked.Secrets, "what is in order is used")
			if len(o.failures) > 0 || tc.told != "" {
				require.Len(t, o.failures, 1)
				require.Equal(t, tc.told, o.failures[0].Reason)
			}
		})
	}
}

func TestWithNoPinThereAreNoCopies(t *testing.T) {
	t.Parallel()
	all := prometheus.NewRegistry()
	r := &Planner{Client: store{}, Clock: clock.RealClock{}, Board: &Board{},
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "seconds", Help: "Seconds."}),
		copies:  prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "copies", Help: "Copies."}, []string{"state"})}
	all.MustRegister(r.copies)
	r.copies.WithLabelValues("ready").Set(3) // of a pin that was
	_, err := r.Reconcile(t.Context(), ctrl.Request{})
	require.NoError(t, err)
	families, err := all.Gather()
	require.NoError(t, err)
	require.Len(t, families[0].GetMetric(), 4)
	for _, m := range families[0].GetMetric() {
		require.Zero(t, m.GetGauge().GetValue(), m.GetLabel())
	}
}

func TestResolver_AnAttemptThatIsYetToComeKeepsNoPinFromTheNext(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		last   time.Duration // from now
		failed int32
		most   time.Duration
	}{
		"one that is long over is due":                {last: -2 * checkInterval, most: 0},
		"one just now is followed by the interval":    {last: 0, most: checkInterval},
		"one of a clock that was ahead is due":        {last: 2 * time.Hour, most: 0},
		"also where it failed, and waits for a pause": {last: 2 * time.Hour, failed: 3, most: 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := &v1alpha1.ArtifactPin{}
			p.Status.LastAttempt, p.Status.FailedAttempts = &metav1.Time{Time: now.Add(c.last)}, c.failed
			p.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionResolved, Status: metav1.ConditionTrue}}
			require.Equal(t, c.most, due(p, nil, now))
		})
	}
}
