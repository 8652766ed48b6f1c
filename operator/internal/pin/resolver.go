package pin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/shoal-cache/shoal/api/pullsecret"
	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/operator/internal/access"
	"github.com/shoal-cache/shoal/operator/internal/apply"
	"github.com/shoal-cache/shoal/operator/internal/condition"
	"github.com/shoal-cache/shoal/operator/internal/debounce"
	"github.com/shoal-cache/shoal/operator/internal/resolve"
	"github.com/shoal-cache/shoal/operator/internal/share"
)

const (
	// resolverManager is the field manager of the resolver's part of the status.
	resolverManager = v1alpha1.ManagedByOperator + "-resolver"
	// checkInterval is how often upstream is asked about pins that follow no tags, to tell whether it still has them.
	checkInterval = time.Hour
	// resolveWorkers is the number of pins that are resolved at one time, registryCalls that of artifacts of one pin.
	// Namespaces share the workers, because one may name registries that are silent. Pins beyond a share wait, and hold
	// none.
	resolveWorkers, registryCalls = 24, 4
	// maxResolved is what ArtifactPinStatus holds.
	maxResolved = 64
	// podGather is how long changes of pods are gathered before the pins of their namespace are looked at.
	podGather = 5 * time.Second
	// platformsEvery is how often all nodes are looked at for their platforms, which every pin asks for.
	platformsEvery = 10 * time.Second
)

// resolverFields are those of ArtifactPin.status that the resolver writes; StatusReconciler writes the others.
var resolverFields = []string{"summary", "artifacts", "lastResolved", "lastAttempt", "failedAttempts",
	"resolvedGeneration", "pullSecrets", "conditions"}

// ArtifactResolver asks registries. It is *resolve.Resolver, but for tests.
type ArtifactResolver interface {
	// Resolve fails with *resolve.Error.
	Resolve(context.Context, v1alpha1.Artifact, resolve.Options) (v1alpha1.ResolvedArtifact, error)
}

// +kubebuilder:rbac:groups=shoal.dev,resources=artifactpins,verbs=get;list;watch
// +kubebuilder:rbac:groups=shoal.dev,resources=artifactpins/status,verbs=patch
// +kubebuilder:rbac:groups="",resources=secrets;serviceaccounts,verbs=get
// +kubebuilder:rbac:groups="",resources=pods,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=nodes,verbs=get;list;watch

// Resolver turns what pins name into digests.
type Resolver struct {
	Client client.Client
	// Live reads Secrets and ServiceAccounts, of which no cache is kept.
	Live client.Reader
	// Secrets says in which namespaces pins may name pull secrets.
	Secrets    access.Scope
	Registries ArtifactResolver
	Recorder   events.EventRecorder
	Clock      clock.Clock
	Metrics    prometheus.Registerer

	attempts  *prometheus.CounterVec
	watchPods func() error

	mu           sync.Mutex
	platforms    []string // of the cluster's nodes
	platformsDue time.Time
	workers      *share.Places
	waiting      map[string][]types.NamespacedName // pins that had no worker, by namespace
	called       map[types.NamespacedName]bool     // those of them that have one now, and have not come yet
	turns        inbox                             // is sent those
}

// SetupWithManager wires the resolver to pins, and to pods as soon as a pin selects some: most clusters then never hold
// all their pods in this process.
func (r *Resolver) SetupWithManager(mgr ctrl.Manager) error {
	r.attempts = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "shoal_operator_resolutions_total", Help: "Attempts to resolve a pin, by the reason " +
			"of its condition Resolved."}, []string{"reason"})
	if err := r.Metrics.Register(r.attempts); err != nil {
		return fmt.Errorf("resolver: %w", err)
	}
	c, err := ctrl.NewControllerManagedBy(mgr).Named("resolver").
		For(&v1alpha1.ArtifactPin{}, builder.WithPredicates(predicate.Or(predicate.GenerationChangedPredicate{},
			expiryChanged()))).
		WatchesRawSource(r.turns.source()).
		// One more than there are workers, so that a pin of a namespace that has none is always seen.
		WithOptions(controller.Options{MaxConcurrentReconciles: resolveWorkers + 1}).
		Build(r)
	if err != nil {
		return fmt.Errorf("resolver: %w", err)
	}
	r.watchPods = sync.OnceValue(func() error { return c.Watch(r.pods(mgr.GetCache())) })
	return nil
}

// expiryChanged passes updates in which a pin expires, or no longer has: an expired one is not resolved. It passes too
// that somebody has wiped a status.
func expiryChanged() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, after := e.ObjectOld.(*v1alpha1.ArtifactPin), e.ObjectNew.(*v1alpha1.ArtifactPin)
		return isExpired(before) != isExpired(after) || resolution(before) != nil && resolution(after) == nil
	}}
}

func isExpired(p *v1alpha1.ArtifactPin) bool {
	return apimeta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.ConditionExpired)
}

func (r *Resolver) pods(c cache.Cache) source.Source {
	return source.Kind[client.Object](c, &corev1.Pod{}, debounce.Each(func(o client.Object) []reconcile.Request {
		var pins v1alpha1.ArtifactPinList
		if err := r.Client.List(context.Background(), &pins, client.InNamespace(o.GetNamespace()),
			client.UnsafeDisableDeepCopy); err != nil {
			return nil // reads the cache, which has started: it fails only when the process ends
		}
		var requests []reconcile.Request
		for i := range pins.Items {
			if pins.Items[i].Spec.Workloads != nil {
				requests = append(requests,
					reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&pins.Items[i])})
			}
		}
		return requests
	}, podGather))
}

// Reconcile resolves one pin if that is due, and comes back when it is due again.
func (r *Resolver) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	if !r.enter(req.NamespacedName) {
		return ctrl.Result{}, nil
	}
	defer r.leave(req.Namespace)
	var p v1alpha1.ArtifactPin
	if err := r.Client.Get(ctx, req.NamespacedName, &p); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !p.DeletionTimestamp.IsZero() || p.Spec.Suspend || isExpired(&p) {
		return ctrl.Result{}, nil
	}
	artifacts, malformed, err := r.named(ctx, &p)
	if err != nil {
		return ctrl.Result{}, err
	}
	if wait := due(&p, artifacts, r.Clock.Now()); wait > 0 {
		return ctrl.Result{RequeueAfter: wait}, nil
	}
	before := p.DeepCopy()
	outcome := outcome{resolved: p.Status.Artifacts, secrets: p.Status.PullSecrets,
		failures: []*resolve.Error{malformed}}
	if malformed == nil {
		outcome = r.resolveAll(ctx, &p, artifacts)
	}
	if ctx.Err() != nil {
		return ctrl.Result{}, ctx.Err() // the process ends: that is no word about the pin
	}
	conclude(&p, outcome, artifacts, r.Clock.Now())
	if err := apply.Status(ctx, r.Client, &p, resolverManager, resolverFields...); err != nil {
		return ctrl.Result{}, err
	}
	r.report(before, &p)
	// The status has the last attempt to the second, so the next may be due already; and 0 would mean never.
	return ctrl.Result{RequeueAfter: max(time.Second, due(&p, artifacts, r.Clock.Now()))}, nil
}

// enter takes a worker for a pin, if its namespace may have one more. If not, the pin waits for one that leaves.
func (r *Resolver) enter(pin types.NamespacedName) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.workers == nil {
		r.workers = share.New(resolveWorkers)
		r.waiting, r.called = map[string][]types.NamespacedName{}, map[types.NamespacedName]bool{}
	}
	if r.called[pin] {
		delete(r.called, pin)
		return true
	}
	if r.workers.Take(pin.Namespace) {
		return true
	}
	if !slices.Contains(r.waiting[pin.Namespace], pin) {
		r.waiting[pin.Namespace] = append(r.waiting[pin.Namespace], pin)
	}
	return false
}

// leave gives a worker back, and calls those who may have one now: first the namespace that has the fewest, and of its
// pins the one that has waited longest. Whatever becomes of that one, even if it is deleted, it enters and leaves: so
// all have their turn.
func (r *Resolver) leave(namespace string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.workers.Give(namespace)
	for len(r.waiting) > 0 {
		next := slices.MinFunc(slices.Collect(maps.Keys(r.waiting)), func(a, b string) int {
			return cmp.Compare(r.workers.Of(a), r.workers.Of(b))
		})
		if !r.workers.Take(next) {
			return
		}
		pins := r.waiting[next]
		if r.waiting[next] = pins[1:]; len(pins) == 1 {
			delete(r.waiting, next)
		}
		r.called[pins[0]] = true
		r.turns.send(pins[0], 0)
	}
}

// named lists what the pin names: its artifacts, or the images of its pods. malformed says what in the spec keeps it
// from that.
func (r *Resolver) named(ctx context.Context,
	p *v1alpha1.ArtifactPin) (artifacts []v1alpha1.Artifact, malformed *resolve.Error, err error) {
	if p.Spec.Workloads == nil {
		return distinct(p.Spec.Artifacts), nil, nil
	}
	if err := r.watchPods(); err != nil {
		return nil, nil, fmt.Errorf("watch pods: %w", err)
	}
	selector, err := v1alpha1.Selector(p.Spec.Workloads.Selector)
	if err != nil {
		return nil, &resolve.Error{Reason: v1alpha1.ReasonInvalidSpec, Err: fmt.Errorf("workloads.selector: %w", err)},
			nil
	}
	var pods corev1.PodList
	if err := r.Client.List(ctx, &pods, client.InNamespace(p.Namespace),
		client.MatchingLabelsSelector{Selector: selector}); err != nil {
		return nil, nil, fmt.Errorf("list pods of %s: %w", p.Namespace, err)
	}
	return imagesOf(pods.Items, p.Spec.Workloads.InitContainers == v1alpha1.Include), nil, nil
}

// distinct leaves of artifacts that are the same the first: a registry is asked once, and a copy counts once.
func distinct(artifacts []v1alpha1.Artifact) []v1alpha1.Artifact {
	var all []v1alpha1.Artifact
	for _, a := range artifacts {
		if !slices.ContainsFunc(all, func(b v1alpha1.Artifact) bool { return equality.Semantic.DeepEqual(a, b) }) {
			all = append(all, a)
		}
	}
	return all
}

// imagesOf lists the images of running pods, each once, in order, by the digest that runs where the runtime has told
// it.
func imagesOf(pods []corev1.Pod, initContainers bool) []v1alpha1.Artifact {
	var images []string
	add := func(containers []corev1.Container, statuses []corev1.ContainerStatus) {
		for _, c := range containers {
			image := c.Image
			for _, s := range statuses {
				if _, digest, ok := strings.Cut(s.ImageID, "@"); ok && s.Name == c.Name &&
					!strings.Contains(image, "@") {
					image += "@" + digest
				}
			}
			images = append(images, image)
		}
	}
	for i := range pods {
		p := &pods[i]
		if p.Status.Phase != corev1.PodRunning {
			continue
		}
		add(p.Spec.Containers, p.Status.ContainerStatuses)
		if initContainers {
			add(p.Spec.InitContainers, p.Status.InitContainerStatuses)
		}
	}
	slices.Sort(images)
	var artifacts []v1alpha1.Artifact
	for _, image := range slices.Compact(images) {
		artifacts = append(artifacts, v1alpha1.Artifact{Image: image})
	}
	return artifacts
}

// due is how long it is until the pin is to be resolved; 0: now.
func due(p *v1alpha1.ArtifactPin, artifacts []v1alpha1.Artifact, now time.Time) time.Duration {
	s := &p.Status
	if s.LastAttempt == nil || resolution(p) == nil || resolution(p).ObservedGeneration != p.Generation {
		return 0
	}
	if s.LastAttempt.After(now) {
		return 0 // an operator whose clock was ahead wrote it: nobody knows when that was
	}
	if s.FailedAttempts > 0 {
		return max(0, s.LastAttempt.Add(p.Spec.Backoff.Pause(s.FailedAttempts)).Sub(now))
	}
	if p.Spec.Workloads != nil && !sameSources(s.Artifacts, artifacts) {
		return 0
	}
	return max(0, s.LastAttempt.Add(interval(p)).Sub(now))
}

func sameSources(resolved []v1alpha1.ResolvedArtifact, artifacts []v1alpha1.Artifact) bool {
	return slices.EqualFunc(resolved, artifacts[:min(len(artifacts), maxResolved)],
		func(r v1alpha1.ResolvedArtifact, a v1alpha1.Artifact) bool {
			return r.Source == a.Source()
		})
}

func interval(p *v1alpha1.ArtifactPin) time.Duration {
	if p.Spec.Resolve.Policy == v1alpha1.ResolveInterval && p.Spec.Resolve.Interval != nil {
		return p.Spec.Resolve.Interval.Duration
	}
	return checkInterval
}

// outcome is what an attempt came to.
type outcome struct {
	resolved []v1alpha1.ResolvedArtifact // in order; those that failed are as they were before, or missing
	secrets  []string
	failures []*resolve.Error
	moved    []string // tags that name another digest than the one that is kept
	vanished []string // artifacts that were resolved before and are gone upstream
}

// resolveAll resolves every artifact. What fails keeps its last resolution, and hinders no other.
func (r *Resolver) resolveAll(ctx context.Context, p *v1alpha1.ArtifactPin, artifacts []v1alpha1.Artifact) outcome {
	var o outcome
	secrets, credentials, lacking, failure := r.credentials(ctx, p)
	o.secrets = secrets
	platforms, err := r.nodePlatforms(ctx)
	if err != nil && failure == nil {
		failure = &resolve.Error{Reason: v1alpha1.ReasonResolving, Err: err}
	}
	if failure != nil {
		o.failures = append(o.failures, failure)
		o.resolved = keptOf(p, artifacts)
		return o
	}
	if len(artifacts) > maxResolved {
		o.failures = append(o.failures, &resolve.Error{Reason: v1alpha1.ReasonTooManyArtifacts,
			Err: fmt.Errorf("%d images run, and one pin holds %d: split the pin by labels", len(artifacts),
				maxResolved)})
		artifacts = artifacts[:maxResolved]
	}
	if lacking != nil { // it goes before what a registry refuses, which may be for want of it
		o.failures = append(o.failures, lacking)
	}

	results := make([]v1alpha1.ResolvedArtifact, len(artifacts))
	errs := make([]error, len(artifacts))
	var calls errgroup.Group
	calls.SetLimit(registryCalls)
	for i, a := range artifacts {
		calls.Go(func() error {
			options := resolve.Options{Platforms: p.Spec.Platforms, NodePlatforms: platforms,
				Referrers: p.Spec.Referrers == v1alpha1.Include, Running: p.Spec.Workloads != nil,
				Credentials: credentials, Secrets: len(secrets), Namespace: p.Namespace}
			if p.Status.ResolvedGeneration == p.Generation {
				options.Previous = kept(p, a)
			}
			results[i], errs[i] = r.Registries.Resolve(ctx, a, options)
			return nil
		})
	}
	_ = calls.Wait() // each call keeps its error in errs

	for i, a := range artifacts {
		o.add(p, a, results[i], errs[i])
	}
	if lacking != nil { // many a registry says of what is private that it is not there
		o.vanished = nil
	}
	return o
}

// add takes one artifact's result into the outcome.
func (o *outcome) add(p *v1alpha1.ArtifactPin, a v1alpha1.Artifact, result v1alpha1.ResolvedArtifact, err error) {
	before := kept(p, a)
	if err == nil {
		if p.Spec.Resolve.Policy == v1alpha1.ResolveOnce && before != nil &&
			p.Status.ResolvedGeneration == p.Generation && before.Root() != result.Root() {
			o.moved = append(o.moved, fmt.Sprintf("%s names %s now", a.Source(), result.Root()))
			result = *before
		}
		o.resolved = append(o.resolved, result)
		return
	}
	var failure *resolve.Error
	if !errors.As(err, &failure) {
		failure = &resolve.Error{Reason: v1alpha1.ReasonRegistryUnreachable, Err: err}
	}
	if before != nil && before.Root() != "" {
		o.resolved = append(o.resolved, *before)
		if failure.Reason == v1alpha1.ReasonNotFoundUpstream {
			o.vanished = append(o.vanished, a.Source())
		}
	} else if result.Digest != "" && a.Image == "" {
		// Peers may have a digest that the registry does not.
		o.resolved = append(o.resolved, result)
	}
	o.failures = append(o.failures, failure)
}

// kept is how an artifact was resolved last, nil if it was not.
func kept(p *v1alpha1.ArtifactPin, a v1alpha1.Artifact) *v1alpha1.ResolvedArtifact {
	for i := range p.Status.Artifacts {
		if p.Status.Artifacts[i].Source == a.Source() {
			return &p.Status.Artifacts[i]
		}
	}
	return nil
}

func keptOf(p *v1alpha1.ArtifactPin, artifacts []v1alpha1.Artifact) []v1alpha1.ResolvedArtifact {
	var all []v1alpha1.ResolvedArtifact
	for _, a := range artifacts {
		if k := kept(p, a); k != nil {
			all = append(all, *k)
		}
	}
	return all
}

// credentials reads the pull secrets of the pin and of its service account. It names those that it found to be some,
// for agents are let read what is named; where the API server gives no answer, those that were named before. lacking is
// the first problem that hinders nothing else: as with the kubelet, what is in order is used.
func (r *Resolver) credentials(ctx context.Context, p *v1alpha1.ArtifactPin) (found []string,
	all pullsecret.Credentials, lacking, failure *resolve.Error) {
	var names []string
	for _, s := range p.Spec.PullSecrets {
		names = append(names, s.Name)
	}
	account := p.Spec.ServiceAccountName
	if (account != "" || len(names) > 0) && !r.Secrets.Allows(p.Namespace) {
		return nil, nil, nil, &resolve.Error{Reason: v1alpha1.ReasonPullSecretsNotAllowed, Err: fmt.Errorf(
			"pull secrets may not be read in namespace %s: "+
				"take them off the pin, or allow them with the chart's value pins.pullSecrets", p.Namespace)}
	}
	if account != "" {
		var sa corev1.ServiceAccount
		err := r.Live.Get(ctx, client.ObjectKey{Namespace: p.Namespace, Name: account}, &sa)
		if err != nil {
			lacking = missing(err, v1alpha1.ReasonServiceAccountNotFound, "service account", p.Namespace, account)
			if lacking.Reason == v1alpha1.ReasonResolving {
				return p.Status.PullSecrets, nil, nil, lacking
			}
		}
		for _, s := range sa.ImagePullSecrets {
			if !slices.Contains(names, s.Name) {
				names = append(names, s.Name)
			}
		}
	}
	for _, name := range names[:min(len(names), 16)] { // what PinAssignment holds
		credentials, err := r.pullSecret(ctx, p.Namespace, name)
		switch {
		case err == nil:
			found, all = append(found, name), append(all, credentials...)
		case err.Reason == v1alpha1.ReasonResolving:
			return p.Status.PullSecrets, nil, nil, err
		default:
			lacking = cmp.Or(lacking, err)
		}
	}
	return found, all, lacking, nil
}

// pullSecret reads one pull secret.
func (r *Resolver) pullSecret(ctx context.Context, namespace, name string) (pullsecret.Credentials, *resolve.Error) {
	if len(validation.IsDNS1123Subdomain(name)) > 0 { // a service account names what it likes
		return nil, &resolve.Error{Reason: v1alpha1.ReasonSecretNotFound,
			Err: fmt.Errorf("%.64q can't be the name of a pull secret: it has lower-case letters, digits, '-' and "+
				"'.', from a letter or digit to a letter or digit", name)}
	}
	var secret corev1.Secret
	if err := r.Live.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &secret); err != nil {
		return nil, missing(err, v1alpha1.ReasonSecretNotFound, "pull secret", namespace, name)
	}
	credentials, err := pullsecret.Parse(&secret)
	if err != nil {
		return nil, &resolve.Error{Reason: v1alpha1.ReasonInvalidSecret, Err: err}
	}
	return credentials, nil
}

// missing is the error of what was to be read. Its reason is ReasonResolving where the API server gave no answer.
func missing(err error, reason, what, namespace, name string) *resolve.Error {
	if apierrors.IsNotFound(err) {
		return &resolve.Error{Reason: reason,
			Err: fmt.Errorf("%s %s/%s does not exist: make it, or take it off the pin", what, namespace, name)}
	}
	return &resolve.Error{Reason: v1alpha1.ReasonResolving,
		Err: fmt.Errorf("read %s %s/%s: %w", what, namespace, name, err)}
}

// nodePlatforms are the platforms of the cluster's nodes.
func (r *Resolver) nodePlatforms(ctx context.Context) ([]string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.Clock.Now().Before(r.platformsDue) {
		return r.platforms, nil
	}
	var nodes corev1.NodeList
	if err := r.Client.List(ctx, &nodes, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	var platforms []string
	for i := range nodes.Items {
		labels := nodes.Items[i].Labels
		platform := labels[corev1.LabelOSStable] + "/" + labels[corev1.LabelArchStable]
		if platform != "/" && !slices.Contains(platforms, platform) {
			platforms = append(platforms, platform)
		}
	}
	r.platforms, r.platformsDue = platforms, r.Clock.Now().Add(platformsEvery)
	return platforms, nil
}

// conclude writes an outcome into the pin's status.
func conclude(p *v1alpha1.ArtifactPin, o outcome, artifacts []v1alpha1.Artifact, now time.Time) {
	s := &p.Status
	s.Artifacts, s.PullSecrets, s.Summary = o.resolved, o.secrets, summary(artifacts)
	s.LastAttempt = &metav1.Time{Time: now.Truncate(time.Second)}
	complete := len(o.resolved) == min(len(artifacts), maxResolved) && len(artifacts) > 0
	if complete {
		s.ResolvedGeneration = p.Generation
	}
	if len(o.failures) == 0 {
		s.FailedAttempts, s.LastResolved = 0, s.LastAttempt
	} else {
		s.FailedAttempts = min(s.FailedAttempts+1, 1000)
	}
	resolved, upToDate := conditions(o, artifacts, complete)
	s.Conditions = slices.DeleteFunc(s.Conditions, func(c metav1.Condition) bool {
		return slices.Contains(statusConditions, c.Type)
	})
	for _, c := range []metav1.Condition{resolved, upToDate} {
		c.ObservedGeneration = p.Generation
		condition.Set(&s.Conditions, c, now)
	}
}

// conditions are Resolved and UpToDate.
func conditions(o outcome, artifacts []v1alpha1.Artifact, complete bool) (resolved, upToDate metav1.Condition) {
	resolved = metav1.Condition{Type: v1alpha1.ConditionResolved, Status: metav1.ConditionTrue,
		Reason:  v1alpha1.ReasonResolved,
		Message: view.Count(len(o.resolved), "artifact") + " resolved to a digest, CID or commit"}
	upToDate = metav1.Condition{Type: v1alpha1.ConditionUpToDate, Status: metav1.ConditionTrue,
		Reason:  v1alpha1.ReasonCurrent,
		Message: "upstream names the digests that are kept"}
	messages := make([]string, 0, len(o.failures))
	for _, f := range o.failures {
		messages = append(messages, f.Error())
	}
	message := strings.Join(messages, "; ")
	switch {
	case len(artifacts) == 0 && len(o.failures) == 0:
		resolved.Status, resolved.Reason = metav1.ConditionFalse, v1alpha1.ReasonNoWorkloads
		resolved.Message = "spec.workloads matches no running pod of this namespace"
	case !complete || len(o.failures) > 0 && o.failures[0].Reason == v1alpha1.ReasonTooManyArtifacts:
		resolved.Status, resolved.Reason, resolved.Message = metav1.ConditionFalse, v1alpha1.ReasonResolving, message
		if len(o.failures) > 0 {
			resolved.Reason = o.failures[0].Reason
		}
	}
	switch {
	case len(o.vanished) > 0:
		upToDate.Status, upToDate.Reason = metav1.ConditionFalse, v1alpha1.ReasonVanishedUpstream
		upToDate.Message = "gone upstream, copies are kept: " + strings.Join(o.vanished, ", ")
	case len(o.moved) > 0:
		upToDate.Status, upToDate.Reason = metav1.ConditionFalse, v1alpha1.ReasonTagMoved
		upToDate.Message = "resolve.policy Once keeps the first digest: " + strings.Join(o.moved, ", ")
	case len(o.failures) > 0:
		upToDate.Status, upToDate.Reason, upToDate.Message = metav1.ConditionUnknown, o.failures[0].Reason, message
	case !slices.ContainsFunc(o.resolved, func(a v1alpha1.ResolvedArtifact) bool { return a.Repository != "" }):
		upToDate.Status, upToDate.Reason = metav1.ConditionUnknown, v1alpha1.ReasonNotChecked
		upToDate.Message = "no artifact names a repository, so there is no registry to ask"
	}
	return resolved, upToDate
}

// summary names the artifacts in one line.
func summary(artifacts []v1alpha1.Artifact) string {
	if len(artifacts) == 0 {
		return ""
	}
	s := artifacts[0].Source()
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "") + "..."
	}
	if len(artifacts) > 1 {
		s += fmt.Sprintf(" and %d more", len(artifacts)-1)
	}
	return s
}

// report makes events and counts.
func (r *Resolver) report(before, after *v1alpha1.ArtifactPin) {
	r.attempts.WithLabelValues(resolution(after).Reason).Inc()
	for _, kind := range []string{v1alpha1.ConditionResolved, v1alpha1.ConditionUpToDate} {
		b, a := apimeta.FindStatusCondition(before.Status.Conditions,
			kind), apimeta.FindStatusCondition(after.Status.Conditions, kind)
		if b != nil && b.Reason == a.Reason || b == nil && a.Status == metav1.ConditionTrue {
			continue
		}
		if kind == v1alpha1.ConditionUpToDate && a.Reason == resolution(after).Reason {
			continue // one failure, one event
		}
		level := corev1.EventTypeNormal
		if a.Status == metav1.ConditionFalse {
			level = corev1.EventTypeWarning
		}
		r.Recorder.Eventf(after, nil, level, a.Reason, "Resolve", "%s", a.Message)
	}
	for i := range after.Status.Artifacts {
		a := &after.Status.Artifacts[i]
		b := slices.IndexFunc(before.Status.Artifacts, func(x v1alpha1.ResolvedArtifact) bool {
			return x.Source == a.Source
		})
		if b >= 0 && before.Status.Artifacts[b].Root() != a.Root() {
			r.Recorder.Eventf(after, nil, corev1.EventTypeNormal, "TagFollowed", "Resolve", "%s: from %s to %s",
				a.Source, before.Status.Artifacts[b].Root(), a.Root())
		}
	}
}
