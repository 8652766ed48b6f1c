// Package access lets agents read the pull secrets that pins name, and no others.
package access

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/operator/internal/apply"
	"github.com/shoal-cache/shoal/operator/internal/debounce"
)

// gather is how long changes of pins are gathered before their namespace is looked at.
const gather = 250 * time.Millisecond

// Name of the Role and the RoleBinding.
const Name = "shoal-agent-pull-secrets"

// +kubebuilder:rbac:groups=shoal.dev,resources=artifactpins,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=secrets,verbs=get
// +kubebuilder:rbac:groups=rbac.authorization.k8s.io,resources=roles;rolebindings,verbs=get;list;watch;create;patch;delete

// Reconciler keeps a Role and a RoleBinding in each namespace with a pin that names pull secrets.
//
// RBAC lets no one give rights that he does not have, so the operator may itself get Secrets; it may not list them.
type Reconciler struct {
	Client client.Client
	// AgentServiceAccount is the agents' service account.
	AgentServiceAccount types.NamespacedName
	// Scope says in which namespaces there may be rights.
	Scope Scope
	// Owners own the rights, so that Kubernetes deletes these with the operator's installation.
	Owners []metav1.OwnerReference
}

// SetupWithManager wires the reconciler to what it watches.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager) error {
	namespace := debounce.Each(func(o client.Object) []reconcile.Request {
		return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: o.GetNamespace()}}}
	}, gather)
	// Each look takes all pins of the namespace, so it must not be had with every change of one of them.
	names := predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		return !slices.Equal(needed(e.ObjectOld.(*v1alpha1.ArtifactPin)), needed(e.ObjectNew.(*v1alpha1.ArtifactPin)))
	}}
	return ctrl.NewControllerManagedBy(mgr).Named("access").
		Watches(&v1alpha1.ArtifactPin{}, namespace, builder.WithPredicates(names)).
		Watches(&rbacv1.Role{}, namespace).
		Watches(&rbacv1.RoleBinding{}, namespace).
		Complete(r)
}

// needed are the secrets that agents read for a pin: none when it is on its way out, because then nothing is fetched.
func needed(p *v1alpha1.ArtifactPin) []string {
	if !p.DeletionTimestamp.IsZero() || apimeta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.ConditionExpired) {
		return nil
	}
	return p.Status.PullSecrets
}

// Reconcile makes, changes or removes the rights in one namespace.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	if !r.Scope.Allows(req.Name) {
		return ctrl.Result{}, nil // the operator may not look there
	}
	var pins v1alpha1.ArtifactPinList
	if err := r.Client.List(ctx, &pins, client.InNamespace(req.Name), client.UnsafeDisableDeepCopy); err != nil {
		return ctrl.Result{}, fmt.Errorf("list pins of %s: %w", req.Name, err)
	}
	var names []string
	for i := range pins.Items {
		names = append(names, needed(&pins.Items[i])...)
	}
	slices.Sort(names)
	names = slices.Compact(names)

	role, binding := r.rights(req.Name, names)
	if len(names) == 0 {
		return ctrl.Result{}, r.remove(ctx, binding, role)
	}
	err := r.grant(ctx, role, binding)
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return ctrl.Result{}, nil // its pins go too
	}
	return ctrl.Result{}, err
}

func (r *Reconciler) rights(namespace string, secrets []string) (*rbacv1.Role, *rbacv1.RoleBinding) {
	meta := metav1.ObjectMeta{Name: Name, Namespace: namespace, OwnerReferences: r.Owners,
		Labels: map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedByOperator}}
	role := &rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{
		APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"get"}, ResourceNames: secrets}}}
	binding := &rbacv1.RoleBinding{ObjectMeta: meta,
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: Name},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: r.AgentServiceAccount.Name,
			Namespace: r.AgentServiceAccount.Namespace}}}
	return role, binding
}

// grant applies what differs.
func (r *Reconciler) grant(ctx context.Context, role *rbacv1.Role, binding *rbacv1.RoleBinding) error {
	var haveRole rbacv1.Role
	err := r.Client.Get(ctx, client.ObjectKeyFromObject(role), &haveRole)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("get role: %w", err)
	}
	if err != nil || !slices.EqualFunc(haveRole.Rules, role.Rules, sameRule) || !sameOwners(&haveRole, role) {
		if err := apply.Object(ctx, r.Client, role); err != nil {
			return err
		}
	}
	var haveBinding rbacv1.RoleBinding
	err = r.Client.Get(ctx, client.ObjectKeyFromObject(binding), &haveBinding)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("get role binding: %w", err)
	}
	if err != nil || !sameSubjects(haveBinding.Subjects, binding.Subjects) || !sameOwners(&haveBinding, binding) {
		return apply.Object(ctx, r.Client, binding)
	}
	return nil
}

func sameOwners(a, b client.Object) bool {
	return equality.Semantic.DeepEqual(a.GetOwnerReferences(), b.GetOwnerReferences())
}

func sameSubjects(a, b []rbacv1.Subject) bool {
	return slices.EqualFunc(a, b, func(x, y rbacv1.Subject) bool {
		return x.Kind == y.Kind && x.Name == y.Name && x.Namespace == y.Namespace
	})
}

func sameRule(a, b rbacv1.PolicyRule) bool {
	return slices.Equal(a.APIGroups, b.APIGroups) && slices.Equal(a.Resources, b.Resources) &&
		slices.Equal(a.Verbs, b.Verbs) && slices.Equal(a.ResourceNames, b.ResourceNames)
}

// remove deletes what the cache knows of; that the rest is gone already is no error.
func (r *Reconciler) remove(ctx context.Context, objects ...client.Object) error {
	for _, o := range objects {
		err := r.Client.Get(ctx, client.ObjectKeyFromObject(o), o)
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("get %T: %w", o, err)
		}
		if err := r.Client.Delete(ctx, o); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("delete %T %s: %w", o, client.ObjectKeyFromObject(o), err)
		}
	}
	return nil
}
