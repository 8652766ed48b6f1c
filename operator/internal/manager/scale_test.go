package manager_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-cache/shoal/api/apitest"
	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/operator/internal/manager"
	"github.com/shoal-cache/shoal/operator/internal/optest"
)

// TestScale measures; it runs only where SHOAL_SCALE says how many peers and pins: "5000 2000". Its figures are in
// operator/README.md.
func TestScale(t *testing.T) {
	sizes := os.Getenv("SHOAL_SCALE")
	if sizes == "" {
		t.Skip(`a measurement, not a test: set SHOAL_SCALE="5000 2000" (peers, pins)`)
	}
	var peers, pins int
	_, err := fmt.Sscan(sizes, &peers, &pins)
	require.NoError(t, err)
	c := apitest.Require(t, cluster)
	ctx, cancel := context.WithCancel(t.Context())
	w := &world{T: t, Cluster: c}
	require.NoError(t, c.Client.Create(ctx, &v1alpha1.Swarm{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SwarmName}}))

	start := time.Now()
	parallel(t, peers, func(i int) error {
		node := optest.NewNode(fmt.Sprintf("scale-%04d", i), fmt.Sprint("zone-", i%6))
		if err := c.Client.Create(ctx, node); err != nil {
			return err
		}
		if err := optest.SetReady(ctx, c.Client, node, corev1.ConditionTrue, time.Now()); err != nil {
			return err
		}
		p, err := optest.NewPeer(node.Name)
		if err != nil {
			return err
		}
		return c.Client.Create(ctx, p)
	})
	parallel(t, pins, func(i int) error {
		p := &v1alpha1.ArtifactPin{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("scale-%04d", i)}}
		p.Spec.Artifacts = []v1alpha1.Artifact{{Digest: fmt.Sprintf("sha256:%064x", i+1)}}
		if i < 5 {
			p.Spec.Replicas = intstr.FromString(v1alpha1.AllNodes)
		}
		return c.Client.Create(ctx, p)
	})
	t.Logf("made %d nodes and peers and %d pins (5 of them on every node, the others three copies) in %s", peers, pins, time.Since(start).Round(time.Second))

	metrics := prometheus.NewRegistry()
	mgr, err := manager.New(ctx, withRate(c), manager.Options{MetricsAddress: "0", HealthAddress: "0", SkipNameValidation: true, Metrics: metrics,
		AgentServiceAccount: types.NamespacedName{Namespace: apitest.Namespace, Name: apitest.AgentServiceAccount}, Registries: http.DefaultTransport})
	require.NoError(t, err)
	done := make(chan error, 1)
	start = time.Now()
	go func() { done <- mgr.Start(ctx) }()

	patiently := func(what string, holds func() bool) {
		for !holds() {
			time.Sleep(200 * time.Millisecond) // paces a wait for another process
			require.Less(t, time.Since(start), 15*time.Minute, what)
		}
		t.Logf("%-60s after %s", what, time.Since(start).Round(100*time.Millisecond))
	}
	patiently("every peer is admitted", func() bool {
		var s v1alpha1.Swarm
		return c.Client.Get(ctx, client.ObjectKey{Name: v1alpha1.SwarmName}, &s) == nil && int(s.Status.Members) == peers
	})
	patiently("every assignment is handed out", func() bool {
		var list v1alpha1.NodeCacheList
		n := 0
		if mgr.GetClient().List(ctx, &list, client.UnsafeDisableDeepCopy) != nil {
			return false
		}
		for i := range list.Items {
			n += len(list.Items[i].Spec.Pins)
		}
		return n == 5*peers+3*(pins-5)
	})
	var memory runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&memory)
	t.Logf("heap in use: %d MiB, from the system: %d MiB (this process: operator and test)", memory.HeapInuse>>20, memory.Sys>>20)

	t.Log("with all of that at rest: one new pin, from its creation to the entry in the NodeCaches")
	for i := range 5 {
		p := w.pin(fmt.Sprint("latency-", i), "unused.invalid/app:1", func(s *v1alpha1.ArtifactPinSpec) {
			s.Artifacts = []v1alpha1.Artifact{{Digest: fmt.Sprintf("sha256:%064x", 1<<20+i)}}
		})
		start = time.Now()
		patiently("three assignments", func() bool {
			var list v1alpha1.NodeCacheList
			n := 0
			if mgr.GetClient().List(ctx, &list, client.UnsafeDisableDeepCopy) != nil {
				return false
			}
			for i := range list.Items {
				for j := range list.Items[i].Spec.Pins {
					if list.Items[i].Spec.Pins[j].UID == string(p.UID) {
						n++
					}
				}
			}
			return n == 3
		})
	}
	gathered, err := metrics.Gather()
	require.NoError(t, err)
	for _, m := range gathered {
		if m.GetName() == "shoal_operator_plan_seconds" {
			h := m.GetMetric()[0].GetHistogram()
			t.Logf("%d plans, %.0f ms each on average", h.GetSampleCount(), 1000*h.GetSampleSum()/float64(h.GetSampleCount()))
		}
	}
	status, err := os.ReadFile("/proc/self/status")
	require.NoError(t, err)
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "VmHWM") || strings.HasPrefix(line, "VmRSS") {
			t.Log(strings.TrimSpace(line))
		}
	}
	cancel()
	require.NoError(t, <-done)
}

// parallel calls do for 0 to n-1, 32 at a time.
func parallel(t *testing.T, n int, do func(i int) error) {
	t.Helper()
	var g errgroup.Group
	g.SetLimit(32)
	for i := range n {
		g.Go(func() error { return do(i) })
	}
	require.NoError(t, g.Wait())
}

// withRate is the operator's config with its default limits of requests.
func withRate(c *apitest.Cluster) *rest.Config {
	config := c.Impersonate("", apitest.OperatorServiceAccount)
	config.QPS, config.Burst = 500, 1000
	return config
}
