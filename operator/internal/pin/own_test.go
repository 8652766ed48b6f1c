package pin

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/shoal-cache/shoal/api/v1alpha1"
)

func TestOwnPin_LosesWhatTheConfigurationNoLongerSays(t *testing.T) {
	t.Parallel()
	scheme := runtime.NewScheme()
	require.NoError(t, errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)))
	c := fake.NewClientBuilder().WithScheme(scheme).Build()
	own := &v1alpha1.ArtifactPin{ObjectMeta: metav1.ObjectMeta{Namespace: "shoal-system", Name: "shoal"},
		Spec: v1alpha1.ArtifactPinSpec{Artifacts: []v1alpha1.Artifact{{Image: "a.example/node:1"}},
			Replicas: intstr.FromString(v1alpha1.AllNodes), ServiceAccountName: "builder"}}
	reconciled := func() *v1alpha1.ArtifactPin {
		_, err := (&OwnReconciler{Client: c, Pin: own}).Reconcile(t.Context(), reconcile.Request{})
		require.NoError(t, err)
		var have v1alpha1.ArtifactPin
		require.NoError(t, c.Get(t.Context(), client.ObjectKeyFromObject(own), &have))
		return &have
	}
	require.Equal(t, "builder", reconciled().Spec.ServiceAccountName)
	own.Spec.ServiceAccountName = ""
	have := reconciled()
	require.Empty(t, have.Spec.ServiceAccountName)
	require.Len(t, have.Spec.Artifacts, 1)
}
