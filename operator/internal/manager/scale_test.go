package manager_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"

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

	tally := newTally(t, c)
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
		p := &v1alpha1.ArtifactPin{ObjectMeta: metav1.ObjectMeta{Namespace: "default",
			Name: fmt.Sprintf("scale-%04d", i)}}
		p.Spec.Artifacts = []v1alpha1.Artifact{{Digest: fmt.Sprintf("sha256:%064x", i+1)}}
		if i < 5 {
			p.Spec.Replicas = intstr.FromString(v1alpha1.AllNodes)
		}
		return c.Client.Create(ctx, p)
	})
	t.Logf("made %d nodes and peers and %d pins (5 of them on every node, the others three copies) in %s", peers, pins,
		time.Since(start).Round(time.Second))

	metrics := prometheus.NewRegistry()
	tally.next("made by the test")
	mgr, err := manager.New(ctx, withRate(c), manager.Options{MetricsAddress: "0", HealthAddress: "0",
		SkipNameValidation: true, Metrics: metrics,
		AgentServiceAccount: types.NamespacedName{Namespace: apitest.Namespace,
			Name: apitest.AgentServiceAccount}, Registries: func(string) http.RoundTripper {
			return http.DefaultTransport
		}})
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
		return c.Client.Get(ctx, client.ObjectKey{Name: v1alpha1.SwarmName}, &s) == nil &&
			int(s.Status.Members) == peers
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
	tally.next("admitted and handed out")
	logMemory(t) // before the agents, which take more than the operator
	agents := make([]*optest.Agent, peers)
	parallel(t, peers, func(i int) error {
		node := fmt.Sprintf("scale-%04d", i)
		agent, err := client.New(c.Impersonate(node, apitest.AgentServiceAccount),
			client.Options{Scheme: c.Scheme, Mapper: c.Client.RESTMapper()})
		if err != nil {
			return err
		}
		agents[i] = &optest.Agent{Node: node, Client: agent}
		return agents[i].Step(ctx)
	})
	t.Logf("%-60s after %s", "every agent has reported its pins ready", time.Since(start).Round(100*time.Millisecond))
	patiently("every pin says so", func() bool {
		var list v1alpha1.ArtifactPinList
		if mgr.GetClient().List(ctx, &list, client.UnsafeDisableDeepCopy) != nil {
			return false
		}
		return !slices.ContainsFunc(list.Items, func(p v1alpha1.ArtifactPin) bool {
			return p.Status.Ready == 0 || p.Status.Ready != p.Status.Desired
		})
	})
	tally.next("reported")
	// paces the agents as their HeartbeatInterval of five minutes does
	minute := time.NewTicker(time.Minute / time.Duration(peers/5))
	for i := range peers / 5 {
		<-minute.C
		require.NoError(t, agents[i].Heartbeat(ctx))
	}
	minute.Stop()
	tally.next(fmt.Sprintf("a minute in which nothing happens and %d agents say so", peers/5))

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
	tally.next("five new pins")
	gathered, err := metrics.Gather()
	require.NoError(t, err)
	for _, m := range gathered {
		if m.GetName() == "shoal_operator_plan_seconds" {
			h := m.GetMetric()[0].GetHistogram()
			t.Logf("%d plans, %.0f ms each on average", h.GetSampleCount(),
				1000*h.GetSampleSum()/float64(h.GetSampleCount()))
		}
	}
	cancel()
	require.NoError(t, <-done)
}

// logMemory logs what this process takes: operator and test.
func logMemory(t *testing.T) {
	t.Helper()
	var memory runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&memory)
	status, err := os.ReadFile("/proc/self/status")
	require.NoError(t, err)
	_, most, _ := strings.Cut(string(status), "VmHWM:")
	most, _, _ = strings.Cut(most, "\n")
	t.Logf("memory of operator and test: %d MiB heap in use, %s resident at most", memory.HeapInuse>>20,
		strings.TrimSpace(most))
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

// tally logs what the API server was asked to write, how often each controller reconciled and what the processor did,
// from one phase to the next.
type tally struct {
	*testing.T
	client *http.Client
	url    string
	before map[string]float64
}

func newTally(t *testing.T, c *apitest.Cluster) *tally {
	h, err := rest.HTTPClientFor(c.Config)
	require.NoError(t, err)
	server, _, err := rest.DefaultServerUrlFor(c.Config)
	require.NoError(t, err)
	a := &tally{T: t, client: h, url: server.JoinPath("metrics").String()}
	a.before = a.read()
	return a
}

func (a *tally) next(phase string) {
	a.Helper()
	now := a.read()
	a.Logf("%s:", phase)
	for _, name := range slices.Sorted(maps.Keys(now)) {
		if n := now[name] - a.before[name]; n > 0 {
			a.Logf("    %-60s %6.0f", name, n)
		}
	}
	a.before = now
}

func (a *tally) read() map[string]float64 {
	a.Helper()
	request, err := http.NewRequestWithContext(a.Context(), http.MethodGet, a.url, nil)
	require.NoError(a, err)
	answer, err := a.client.Do(request)
	require.NoError(a, err)
	defer answer.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(answer.Body)
	require.NoError(a, err)
	own, err := ctrlmetrics.Registry.Gather()
	require.NoError(a, err)
	for _, f := range own {
		families[f.GetName()] = f
	}
	counts := map[string]float64{}
	for _, m := range families["apiserver_request_total"].GetMetric() {
		l := map[string]string{}
		for _, pair := range m.GetLabel() {
			l[pair.GetName()] = pair.GetValue()
		}
		if !slices.Contains([]string{"GET", "LIST", "WATCH", "CONNECT"}, l["verb"]) {
			counts[strings.Join([]string{"write", l["verb"], l["resource"], l["subresource"], l["code"]},
				" ")] += m.GetCounter().GetValue()
		}
	}
	for _, m := range families["controller_runtime_reconcile_total"].GetMetric() {
		for _, pair := range m.GetLabel() {
			if pair.GetName() == "controller" {
				counts["reconcile "+pair.GetValue()] += m.GetCounter().GetValue()
			}
		}
	}
	for name, pid := range a.processes() {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		require.NoError(a, err)
		// proc_pid_stat(5): from the third field on; user and system time are the 14th and 15th
		_, fields, _ := strings.Cut(string(stat), ") ")
		for _, ticks := range strings.Fields(fields)[11:13] {
			n, err := strconv.ParseFloat(ticks, 64)
			require.NoError(a, err)
			counts["seconds of processor, "+name] += n / 100
		}
	}
	return counts
}

// processes are this one and its children, by name.
func (a *tally) processes() map[string]string {
	a.Helper()
	all := map[string]string{"operator and test": "self"}
	threads, err := filepath.Glob("/proc/self/task/*/children")
	require.NoError(a, err)
	for _, path := range threads {
		children, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		for pid := range strings.FieldsSeq(string(children)) {
			name, err := os.ReadFile("/proc/" + pid + "/comm")
			require.NoError(a, err)
			all[strings.TrimSpace(string(name))] = pid
		}
	}
	return all
}
