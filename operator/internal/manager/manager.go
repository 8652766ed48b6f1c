// Package manager puts the controllers together: what they watch, how much of it they hold, and whom they answer to.
package manager

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/operator/internal/access"
	"github.com/shoal-cache/shoal/operator/internal/membership"
	"github.com/shoal-cache/shoal/operator/internal/page"
	"github.com/shoal-cache/shoal/operator/internal/pin"
	"github.com/shoal-cache/shoal/operator/internal/policy"
	"github.com/shoal-cache/shoal/operator/internal/resolve"
	"github.com/shoal-cache/shoal/operator/internal/survey"
)

// LeaseName is the name of the Lease by which one operator leads.
const LeaseName = "shoal-operator"

// Options are the operator's settings.
type Options struct {
	MetricsAddress, HealthAddress string
	LeaderElection                bool
	// Namespace of the lease.
	Namespace           string
	AgentServiceAccount types.NamespacedName
	// Owner is the name of the ClusterRole that owns what the operator makes for itself and for the agents, so that
	// Kubernetes deletes it with the installation. Empty: nobody owns it.
	Owner string
	// PullSecrets says in which namespaces pins may name pull secrets.
	PullSecrets access.Scope
	// OwnPin is the spec of the pin of Shoal's own images, which has the name OwnPinName in Namespace. Nil: there is
	// none.
	OwnPin     *v1alpha1.ArtifactPinSpec
	OwnPinName string
	// Registries gives the transport for pulls from a registry, which it is given by host.
	Registries func(registry string) http.RoundTripper
	// Hub is the base URL of the model hub whose files pins may name; nil: none.
	Hub *url.URL
	// StatusPage is the address of the status page; empty: there is none. StatusPageLive lets it ask the agents too.
	StatusPage     string
	StatusPageLive bool
	// Version of the operator, as the status page shows it.
	Version string
	// Clock is the real one where it is nil.
	Clock clock.WithTicker
	// Metrics is controller-runtime's registry where it is nil.
	Metrics prometheus.Registerer
	// RetireAfter is membership.DefaultRetireAfter where it is 0.
	RetireAfter time.Duration
	// SkipNameValidation lets several managers be made in one process, one after the other, as tests do.
	SkipNameValidation bool
}

// +kubebuilder:rbac:groups=coordination.k8s.io,namespace=shoal-system,resources=leases,verbs=get;create;update
// +kubebuilder:rbac:groups="",namespace=shoal-system,resources=events,verbs=create;patch

// New makes a manager with every controller. Leader election goes by a Lease in the operator's namespace.
func New(ctx context.Context, restConfig *rest.Config, o Options) (ctrl.Manager, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("scheme: %w", err)
		}
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	o.RetireAfter = cmp.Or(o.RetireAfter, membership.DefaultRetireAfter)
	if o.Metrics == nil {
		o.Metrics = metrics.Registry
	}
	restConfig = rest.CopyConfig(restConfig)
	server := &survey.ServerClock{Machine: o.Clock}
	restConfig.Wrap(server.Wrap)
	mgr, err := ctrl.NewManager(restConfig, ctrl.Options{
		Scheme:                        scheme,
		Metrics:                       metricsserver.Options{BindAddress: o.MetricsAddress},
		HealthProbeBindAddress:        o.HealthAddress,
		LeaderElection:                o.LeaderElection,
		LeaderElectionID:              LeaseName,
		LeaderElectionNamespace:       o.Namespace,
		LeaderElectionReleaseOnCancel: true, // the process ends when its manager does
		Cache:                         cacheOptions(o.PullSecrets),
		Controller:                    config.Controller{SkipNameValidation: &o.SkipNameValidation},
		GracefulShutdownTimeout:       new(15 * time.Second),
	})
	if err != nil {
		return nil, fmt.Errorf("manager: %w", err)
	}
	if err := addControllers(ctx, mgr, o); err != nil {
		return nil, err
	}
	if o.StatusPage != "" {
		if err := addPage(mgr, o, server.Now); err != nil {
			return nil, fmt.Errorf("status page: %w", err)
		}
	}
	if err := mgr.AddHealthzCheck("ping", healthz.Ping); err != nil {
		return nil, fmt.Errorf("health check: %w", err)
	}
	err = mgr.AddReadyzCheck("caches", func(r *http.Request) error {
		ctx, cancel := context.WithTimeout(r.Context(), time.Second)
		defer cancel()
		if !mgr.GetCache().WaitForCacheSync(ctx) {
			return fmt.Errorf("caches have not synced")
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("readiness check: %w", err)
	}
	return mgr, nil
}

// +kubebuilder:rbac:groups="",namespace=shoal-system,resources=pods/portforward,verbs=create
// +kubebuilder:rbac:groups=apps,namespace=shoal-system,resources=daemonsets,verbs=list

// addPage adds the status page. It reads from the API server itself what the cache keeps a part of only,
// and tells how old that is by the API server's clock.
func addPage(mgr ctrl.Manager, o Options, now func() time.Time) error {
	p := page.Options{Address: o.StatusPage, Live: mgr.GetAPIReader(), Cached: mgr.GetClient(), Namespace: o.Namespace,
		Version: o.Version, Clock: o.Clock, Now: now,
		Log: slog.New(logr.ToSlogHandler(mgr.GetLogger().WithName("page")))}
	if o.StatusPageLive {
		core, err := kubernetes.NewForConfigAndClient(mgr.GetConfig(), mgr.GetHTTPClient())
		if err != nil {
			return err
		}
		p.Agents = &survey.Forwarded{Config: mgr.GetConfig(), Core: core}
	}
	return mgr.Add(page.New(p))
}

// +kubebuilder:rbac:groups=rbac.authorization.k8s.io,resources=clusterroles,verbs=get

// owners finds the ClusterRole that owns what the operator makes.
func owners(ctx context.Context, mgr ctrl.Manager, o Options) ([]metav1.OwnerReference, error) {
	if o.Owner == "" {
		return nil, nil
	}
	var role rbacv1.ClusterRole
	if err := mgr.GetAPIReader().Get(ctx, client.ObjectKey{Name: o.Owner}, &role); err != nil {
		return nil, fmt.Errorf("owner: %w", err)
	}
	return []metav1.OwnerReference{{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "ClusterRole",
		Name: role.Name, UID: role.UID}}, nil
}

func addControllers(ctx context.Context, mgr ctrl.Manager, o Options) error {
	owned, err := owners(ctx, mgr, o)
	if err != nil {
		return err
	}
	c, recorder := mgr.GetClient(), mgr.GetEventRecorder("shoal-operator")
	all := map[string]func() error{
		"peer": func() error {
			r := &membership.PeerReconciler{Client: c, Live: mgr.GetAPIReader(), Recorder: recorder, Clock: o.Clock,
				Metrics: o.Metrics, RetireAfter: o.RetireAfter}
			return r.SetupWithManager(ctx, mgr)
		},
		"swarm": func() error {
			return (&membership.SwarmReconciler{Client: c, Recorder: recorder, Clock: o.Clock,
				Metrics: o.Metrics}).SetupWithManager(mgr)
		},
		"policy": func() error {
			return (&policy.Reconciler{Client: c, Recorder: recorder, Clock: o.Clock}).SetupWithManager(mgr)
		},
		"access": func() error {
			if o.PullSecrets.Off {
				return nil
			}
			r := &access.Reconciler{Client: c, AgentServiceAccount: o.AgentServiceAccount, Scope: o.PullSecrets,
				Owners: owned}
			return r.SetupWithManager(mgr)
		},
	}
	maps.Copy(all, pinControllers(mgr, o, owned, recorder))
	for name, setup := range all {
		if err := setup(); err != nil {
			return fmt.Errorf("controller %s: %w", name, err)
		}
	}
	return nil
}

// pinControllers are those that see to pins.
func pinControllers(mgr ctrl.Manager, o Options, owned []metav1.OwnerReference,
	recorder events.EventRecorder) map[string]func() error {
	c, board := mgr.GetClient(), &pin.Board{}
	return map[string]func() error{
		"ownpin": func() error {
			if o.OwnPin == nil {
				return nil
			}
			meta := metav1.ObjectMeta{Namespace: o.Namespace, Name: o.OwnPinName, OwnerReferences: owned,
				Labels: map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedByOperator}}
			return (&pin.OwnReconciler{Client: c,
				Pin: &v1alpha1.ArtifactPin{ObjectMeta: meta, Spec: *o.OwnPin}}).SetupWithManager(mgr)
		},
		"planner": func() error {
			return (&pin.Planner{Client: c, Clock: o.Clock, Board: board, Metrics: o.Metrics}).SetupWithManager(mgr)
		},
		"nodecache": func() error { return (&pin.NodeCacheReconciler{Client: c, Board: board}).SetupWithManager(mgr) },
		"pinstatus": func() error {
			return (&pin.StatusReconciler{Client: c, Recorder: recorder, Clock: o.Clock,
				Board: board}).SetupWithManager(mgr)
		},
		"startup": func() error {
			r := &pin.StartupReconciler{Client: c, Recorder: recorder, Clock: o.Clock, Board: board}
			return r.SetupWithManager(mgr)
		},
		"resolver": func() error {
			registries := resolve.New(o.Registries, o.Clock.Now)
			registries.Hub = o.Hub
			r := &pin.Resolver{Client: c, Live: mgr.GetAPIReader(), Secrets: o.PullSecrets,
				Registries: registries, Recorder: recorder, Clock: o.Clock,
				Metrics: o.Metrics}
			return r.SetupWithManager(mgr)
		},
	}
}

// cacheOptions keep in memory only what the controllers read, and watch Roles only where the operator may.
func cacheOptions(secrets access.Scope) cache.Options {
	ours, err := labels.NewRequirement(v1alpha1.ManagedByLabel, "=", []string{v1alpha1.ManagedByOperator})
	if err != nil {
		panic(err) // made of constants
	}
	managed := cache.ByObject{Label: labels.NewSelector().Add(*ours)}
	if len(secrets.Namespaces) > 0 {
		managed.Namespaces = make(map[string]cache.Config)
		for _, namespace := range secrets.Namespaces {
			managed.Namespaces[namespace] = cache.Config{}
		}
	}
	return cache.Options{
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Node{}:        {Transform: stripNode},
			&corev1.Pod{}:         {Transform: stripPod},
			&v1alpha1.NodeCache{}: {Transform: stripNodeCache},
			&rbacv1.Role{}:        managed,
			&rbacv1.RoleBinding{}: managed,
		},
	}
}

// stripNode keeps of a Node its labels, taints, condition Ready and since when it starts: a node lists all its images,
// which is most of it.
func stripNode(o any) (any, error) {
	n, ok := o.(*corev1.Node)
	if !ok {
		return o, nil
	}
	n.ManagedFields = nil
	maps.DeleteFunc(n.Annotations, func(key, _ string) bool { return key != v1alpha1.StartingSince })
	n.Spec = corev1.NodeSpec{Taints: n.Spec.Taints}
	var conditions []corev1.NodeCondition
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			conditions = append(conditions, corev1.NodeCondition{Type: c.Type, Status: c.Status,
				LastTransitionTime: c.LastTransitionTime, Message: c.Message})
		}
	}
	n.Status = corev1.NodeStatus{Conditions: conditions}
	return n, nil
}

// stripNodeCache keeps when each manager of its fields wrote, by which the status page compares clocks, and not which
// fields, which is most of a NodeCache.
func stripNodeCache(o any) (any, error) {
	c, ok := o.(*v1alpha1.NodeCache)
	if !ok {
		return o, nil
	}
	for i := range c.ManagedFields {
		c.ManagedFields[i].FieldsV1 = nil
	}
	return c, nil
}

// stripPod keeps of a Pod its labels, phase and images.
func stripPod(o any) (any, error) {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return o, nil
	}
	p.ManagedFields, p.Annotations, p.OwnerReferences = nil, nil, nil
	p.Spec = corev1.PodSpec{Containers: bare(p.Spec.Containers), InitContainers: bare(p.Spec.InitContainers)}
	p.Status = corev1.PodStatus{Phase: p.Status.Phase,
		ContainerStatuses:     bareStatuses(p.Status.ContainerStatuses),
		InitContainerStatuses: bareStatuses(p.Status.InitContainerStatuses)}
	return p, nil
}

func bare(containers []corev1.Container) []corev1.Container {
	var kept []corev1.Container
	for _, c := range containers {
		kept = append(kept, corev1.Container{Name: c.Name, Image: c.Image})
	}
	return kept
}

func bareStatuses(statuses []corev1.ContainerStatus) []corev1.ContainerStatus {
	var kept []corev1.ContainerStatus
	for _, s := range statuses {
		kept = append(kept, corev1.ContainerStatus{Name: s.Name, ImageID: s.ImageID})
	}
	return kept
}
