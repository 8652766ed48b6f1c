// Package apply writes objects by server-side apply, always under the same field manager, so that the operator's fields
// are exactly those of its last write and everyone else's are left alone.
package apply

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"

	"github.com/shoal-cache/shoal/api/v1alpha1"
)

// Object applies metadata and spec of an object, whatever its kind calls the latter. Its status is left out.
func Object(ctx context.Context, c client.Client, object client.Object) error {
	u, err := configuration(c.Scheme(), object)
	if err != nil {
		return err
	}
	unstructured.RemoveNestedField(u.Object, "status")
	err = c.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(v1alpha1.ManagedByOperator),
		client.ForceOwnership)
	if err != nil {
		return fmt.Errorf("apply %s %s: %w", u.GetKind(), client.ObjectKeyFromObject(object), err)
	}
	return nil
}

// Status applies the status of an object under a field manager, and nothing else of it: of the status the fields named,
// or all of it if none is. That the object is gone is no error.
func Status(ctx context.Context, c client.Client, object client.Object, manager string, fields ...string) error {
	u, err := configuration(c.Scheme(), object)
	if err != nil {
		return err
	}
	status, _ := u.Object["status"].(map[string]any)
	if len(fields) > 0 {
		maps.DeleteFunc(status, func(field string, _ any) bool { return !slices.Contains(fields, field) })
	}
	bare := &unstructured.Unstructured{Object: map[string]any{"status": status}}
	bare.SetGroupVersionKind(u.GroupVersionKind())
	bare.SetName(u.GetName())
	bare.SetNamespace(u.GetNamespace())
	bare.SetUID(u.GetUID()) // of an object made anew under the same name nothing is known yet
	err = c.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(bare), client.FieldOwner(manager),
		client.ForceOwnership)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("apply status of %s %s: %w", u.GetKind(), client.ObjectKeyFromObject(object), err)
	}
	return nil
}

func configuration(scheme *runtime.Scheme, object client.Object) (*unstructured.Unstructured, error) {
	gvk, err := apiutil.GVKForObject(object, scheme)
	if err != nil {
		return nil, fmt.Errorf("apply %T: %w", object, err)
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	if err != nil {
		return nil, fmt.Errorf("apply %s %s: %w", gvk.Kind, client.ObjectKeyFromObject(object), err)
	}
	u := &unstructured.Unstructured{Object: content}
	u.SetGroupVersionKind(gvk)
	for _, field := range []string{"managedFields", "resourceVersion", "generation", "creationTimestamp"} {
		unstructured.RemoveNestedField(u.Object, "metadata", field)
	}
	return u, nil
}
