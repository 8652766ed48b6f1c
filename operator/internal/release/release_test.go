package release_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-cache/shoal/api/apitest"
	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/operator/internal/access"
	"github.com/shoal-cache/shoal/operator/internal/release"
)

var cluster *apitest.Cluster

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	apitest.Main(m, func(c *apitest.Cluster) { cluster = c })
}

const (
	account = "shoal-release"
	lease   = "shoal-operator"
)

// asJob is a config with the rights of the chart's Job and no others.
func asJob(t *testing.T) *rest.Config {
	t.Helper()
	ctx := t.Context()
	require.NoError(t, cluster.Apply(ctx, filepath.Join(apitest.APIDir(), "rbac/release.yaml")))
	meta := metav1.ObjectMeta{Name: account, Namespace: apitest.Namespace}
	subjects := []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: account, Namespace: apitest.Namespace}}
	for _, object := range []client.Object{
		&rbacv1.ClusterRoleBinding{ObjectMeta: meta, Subjects: subjects, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: account}},
		&rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{
			APIGroups: []string{coordinationv1.GroupName}, Resources: []string{"leases"}, Verbs: []string{"get", "create", "update"}}}},
		&rbacv1.RoleBinding{ObjectMeta: meta, Subjects: subjects, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: account}},
	} {
		require.NoError(t, cluster.Client.Create(ctx, object))
	}
	return cluster.Impersonate("", account)
}

// asking calls something when the lease is asked for the n-th time.
type asking struct {
	http.RoundTripper
	left atomic.Int32
	call func()
}

func (a *asking) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/leases/"+lease) && a.left.Add(-1) == 0 {
		a.call()
	}
	return a.RoundTripper.RoundTrip(r)
}

// afterAsking is a config whose clients do so: by the second time the answer to the first has been looked at.
func afterAsking(config *rest.Config, n int32, call func()) *rest.Config {
	config = rest.CopyConfig(config)
	config.Wrap(func(inner http.RoundTripper) http.RoundTripper {
		a := &asking{RoundTripper: inner, call: call}
		a.left.Store(n)
		return a
	})
	return config
}

// rights are those of agents in a namespace with pull secrets.
func rights(namespace, manager string) []client.Object {
	meta := metav1.ObjectMeta{Name: access.Name, Namespace: namespace, Labels: map[string]string{v1alpha1.ManagedByLabel: manager}}
	return []client.Object{&rbacv1.Role{ObjectMeta: meta}, &rbacv1.RoleBinding{ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: access.Name}}}
}

// The steps are one story: there is one lease.
func TestNothingWaitsForTheLastOperatorWhenItHasGone(t *testing.T) { //nolint:paralleltest // alone with the cluster's lease
	apitest.Require(t, cluster)
	ctx := t.Context()
	job := asJob(t)
	const foreign = "example.com/mine"
	pins := map[string]*v1alpha1.ArtifactPin{}
	for name, finalizers := range map[string][]string{
		"deleted": {v1alpha1.PurgeFinalizer}, "standing": {v1alpha1.PurgeFinalizer}, "shared": {foreign, v1alpha1.PurgeFinalizer}, "plain": nil,
	} {
		p := &v1alpha1.ArtifactPin{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Finalizers: finalizers}}
		p.Spec.Artifacts = []v1alpha1.Artifact{{Digest: fmt.Sprintf("sha256:%064x", 1)}}
		p.Spec.DeletionPolicy = v1alpha1.DeletionPurge
		require.NoError(t, cluster.Client.Create(ctx, p))
		pins[name] = p
	}
	require.NoError(t, cluster.Client.Delete(ctx, pins["deleted"]))
	agents, admins := rights("default", v1alpha1.ManagedByOperator), rights("kube-public", "somebody")
	for _, object := range slices.Concat(agents, admins) {
		require.NoError(t, cluster.Client.Create(ctx, object))
	}
	seconds, now := int32(60), metav1.NewMicroTime(time.Now())
	held := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: apitest.Namespace, Name: lease}}
	held.Spec.HolderIdentity, held.Spec.LeaseDurationSeconds, held.Spec.AcquireTime, held.Spec.RenewTime = new("operator-a"), &seconds, &now, &now
	require.NoError(t, cluster.Client.Create(ctx, held))

	t.Log("while an operator runs, nothing is touched")
	short, cancel := context.WithCancel(ctx)
	defer cancel()
	released, err := release.Run(short, afterAsking(job, 2, cancel), apitest.Namespace, lease, slog.New(slog.DiscardHandler))
	require.ErrorIs(t, err, release.ErrOperatorRuns)
	require.ErrorContains(t, err, "operator-a")
	require.Zero(t, released)
	require.NoError(t, cluster.Client.Get(ctx, client.ObjectKeyFromObject(pins["deleted"]), pins["deleted"]))

	t.Log("when it has given the lease up, its finalizers go and no others")
	held.Spec.HolderIdentity = new("")
	require.NoError(t, cluster.Client.Update(ctx, held))
	long, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	released, err = release.Run(long, job, apitest.Namespace, lease, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.Equal(t, release.Released{Pins: 3, Rights: 2}, released)
	for _, object := range agents {
		require.True(t, apierrors.IsNotFound(cluster.Client.Get(ctx, client.ObjectKeyFromObject(object), object)), "%T", object)
	}
	for _, object := range admins {
		require.NoError(t, cluster.Client.Get(ctx, client.ObjectKeyFromObject(object), object), "what an operator did not make stays")
	}
	require.True(t, apierrors.IsNotFound(cluster.Client.Get(ctx, client.ObjectKeyFromObject(pins["deleted"]), pins["deleted"])))
	for name, want := range map[string][]string{"standing": nil, "plain": nil, "shared": {foreign}} {
		require.NoError(t, cluster.Client.Get(ctx, client.ObjectKeyFromObject(pins[name]), pins[name]))
		require.Equal(t, want, pins[name].Finalizers, name)
	}
	require.NoError(t, cluster.Client.Get(ctx, client.ObjectKeyFromObject(held), held))
	require.Empty(t, *held.Spec.HolderIdentity, "the lease is given back")

	t.Log("once more finds nothing to do")
	released, err = release.Run(long, job, apitest.Namespace, lease, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.Zero(t, released)
}
