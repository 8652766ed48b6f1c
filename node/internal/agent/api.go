package agent

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/shoal-cache/shoal/api/v1alpha1"
)

// requestTimeout bounds one request that is no watch.
const requestTimeout = 15 * time.Second

// api holds the clients and the informers. The informers keep only what the agent reads, because it sees every Peer of
// the cluster.
type api struct {
	log   *slog.Logger
	shoal *rest.RESTClient
	core  typedcorev1.CoreV1Interface

	peers    informer[*v1alpha1.Peer]
	swarms   informer[*v1alpha1.Swarm]
	policies informer[*v1alpha1.CachePolicy]
	caches   informer[*v1alpha1.NodeCache]
	node     informer[*metav1.PartialObjectMetadata]
}

func newAPI(config *rest.Config, nodeName string, log *slog.Logger) (*api, error) {
	shoal, err := shoalClient(config)
	if err != nil {
		return nil, err
	}
	core, err := typedcorev1.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("client of the core API: %w", err)
	}
	nodes, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("client of metadata: %w", err)
	}
	named := func(name string) fields.Selector { return fields.OneTermEqualSelector(metav1.ObjectNameField, name) }
	watch := func(resource string, which fields.Selector, example runtime.Object) cache.SharedIndexInformer {
		lw := cache.NewListWatchFromClient(shoal, resource, metav1.NamespaceAll, which)
		return cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(lw, shoal), example, 0, nil)
	}
	a := &api{log: log, shoal: shoal, core: core}
	a.peers.SharedIndexInformer = watch("peers", fields.Everything(), &v1alpha1.Peer{})
	a.swarms.SharedIndexInformer = watch("swarms", named(v1alpha1.SwarmName), &v1alpha1.Swarm{})
	a.policies.SharedIndexInformer = watch("cachepolicies", fields.Everything(), &v1alpha1.CachePolicy{})
	a.caches.SharedIndexInformer = watch("nodecaches", named(nodeName), &v1alpha1.NodeCache{})
	a.node.SharedIndexInformer = metadatainformer.NewFilteredMetadataInformer(nodes,
		corev1.SchemeGroupVersion.WithResource("nodes"),
		metav1.NamespaceAll, 0, nil, func(o *metav1.ListOptions) {
			o.FieldSelector = named(nodeName).String()
		}).Informer()
	for what, i := range a.informers() {
		if err := i.SetTransform(strip); err != nil {
			return nil, fmt.Errorf("informer of %s: %w", what, err)
		}
		if err := i.SetWatchErrorHandlerWithContext(a.watchFailed(what)); err != nil {
			return nil, fmt.Errorf("informer of %s: %w", what, err)
		}
	}
	return a, nil
}

// shoalClient speaks shoal.dev/v1alpha1 with its own types, which cost less than unstructured ones.
func shoalClient(config *rest.Config) (*rest.RESTClient, error) {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	config = rest.CopyConfig(config)
	config.APIPath = "/apis"
	config.GroupVersion = &v1alpha1.GroupVersion
	config.ContentType, config.AcceptContentTypes = runtime.ContentTypeJSON, runtime.ContentTypeJSON
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("client of %s: %w", v1alpha1.GroupVersion, err)
	}
	return client, nil
}

func (a *api) informers() map[string]cache.SharedIndexInformer {
	return map[string]cache.SharedIndexInformer{
		"peers": a.peers, "swarms": a.swarms, "cachepolicies": a.policies, "nodecaches": a.caches, "nodes": a.node,
	}
}

// run keeps the informers running until ctx ends.
func (a *api) run(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	for _, i := range a.informers() {
		all.Go(func() { i.RunWithContext(ctx) })
	}
}

// watchFailed tells of a watch that broke. The informer goes on trying, with back-off, and holds what it has.
func (a *api) watchFailed(what string) cache.WatchErrorHandlerWithContext {
	return func(ctx context.Context, _ *cache.Reflector, err error) {
		switch {
		case ctx.Err() != nil:
		case apierrors.IsResourceExpired(err), apierrors.IsGone(err): // the watch was away for long, and lists anew
			a.log.Debug("watch starts again", "resource", what, "error", err)
		default:
			a.log.Warn("watch is broken; going on with what is known", "resource", what, "error", err)
		}
	}
}

// apply writes an object by server-side apply. subresource is "" for the object itself.
func (a *api) apply(ctx context.Context, resource, name, subresource string, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return a.shoal.Patch(types.ApplyYAMLPatchType).Resource(resource).Name(name).SubResource(subresource).
		VersionedParams(&metav1.PatchOptions{FieldManager: v1alpha1.AgentFieldManager, Force: new(true)},
			metav1.ParameterCodec).
		Body(body).Do(ctx).Error()
}

// strip drops what the agent never reads.
func strip(object any) (any, error) {
	m, err := meta.Accessor(object)
	if err != nil {
		return object, nil //nolint:nilerror // a tombstone, which holds an object that was stripped before
	}
	m.SetManagedFields(nil)
	m.SetAnnotations(nil)
	m.SetOwnerReferences(nil)
	switch o := object.(type) {
	case *v1alpha1.Peer:
		o.Labels = nil
		o.Status.Conditions = nil
	case *v1alpha1.CachePolicy:
		o.Labels = nil
		o.Status = v1alpha1.CachePolicyStatus{}
	case *v1alpha1.NodeCache:
		o.Labels = nil
		o.Status = v1alpha1.NodeCacheStatus{Conditions: o.Status.Conditions}
	}
	return object, nil
}

// informer is a cache.SharedIndexInformer of one type.
type informer[T metav1.Object] struct{ cache.SharedIndexInformer }

// get returns the object of a cluster-scoped kind as it was last seen. The caller does not change it.
func (i informer[T]) get(name string) (object T, ok bool) {
	found, ok, err := i.GetStore().GetByKey(name)
	if !ok || err != nil {
		return object, false
	}
	object, ok = found.(T)
	return object, ok
}

// list returns every object as it was last seen, in no order. The caller changes none.
func (i informer[T]) list() []T {
	found := i.GetStore().List()
	objects := make([]T, 0, len(found))
	for _, o := range found {
		if object, ok := o.(T); ok {
			objects = append(objects, object)
		}
	}
	return objects
}

// synced returns when the first list has been read, and tells false when ctx ended before.
func (i informer[T]) synced(ctx context.Context) bool {
	select {
	case <-i.HasSyncedChecker().Done():
		return true
	case <-ctx.Done():
		return false
	}
}

// notify calls changed after any object has changed. It is called before the informer runs.
func (i informer[T]) notify(changed func()) {
	i.handle(func(metav1.Object) { changed() })
}

// notifyOf calls changed after the object of that name has changed.
func (i informer[T]) notifyOf(name string, changed func()) {
	i.handle(func(o metav1.Object) {
		if o.GetName() == name {
			changed()
		}
	})
}

func (i informer[T]) handle(see func(metav1.Object)) {
	each := func(object any) {
		if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
			object = gone.Obj
		}
		if o, ok := object.(metav1.Object); ok {
			see(o)
		}
	}
	// It fails only for an informer that has stopped, and this one has not begun.
	_, _ = i.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: each, UpdateFunc: func(_, now any) { each(now) }, DeleteFunc: each,
	})
}
