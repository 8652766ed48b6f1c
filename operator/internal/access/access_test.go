package access

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/shoal-cache/shoal/api/v1alpha1"
)

func TestAccess_ANamespaceThatIsBeingDeletedIsLeftAlone(t *testing.T) {
	t.Parallel()
	terminating := apierrors.NewForbidden(rbacv1.Resource("roles"), Name, errors.New("it is being terminated"))
	terminating.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: corev1.NamespaceTerminatingCause}}
	other := apierrors.NewForbidden(rbacv1.Resource("roles"), Name, errors.New("no"))
	scheme := runtime.NewScheme()
	require.NoError(t, errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)))
	for answer, fails := range map[*apierrors.StatusError]bool{terminating: false, other: true} {
		pin := &v1alpha1.ArtifactPin{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "app"}}
		pin.Status.PullSecrets = []string{"login"}
		c := fake.NewClientBuilder().WithScheme(scheme).WithObjects(pin).WithInterceptorFuncs(interceptor.Funcs{
			Apply: func(context.Context, client.WithWatch, runtime.ApplyConfiguration, ...client.ApplyOption) error {
				return answer
			}}).Build()
		_, err := (&Reconciler{Client: c}).Reconcile(t.Context(), ctrl.Request{NamespacedName: types.NamespacedName{Name: "team"}})
		require.Equal(t, fails, err != nil, "%v", err)
	}
}
