package manager_test

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-cache/shoal/api/apitest"
	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/operator/internal/optest"
)

const (
	// faultSeedEnv repeats a run of TestNothingIsLostWhateverEnds.
	faultSeedEnv = "SHOAL_FAULT_SEED"
	// faultOutageEnv is how long the API server is away in it, 10s where it is not set.
	faultOutageEnv = "SHOAL_FAULT_OUTAGE"
)

// TestNothingIsLostWhateverEnds ends the operator by SIGKILL at random moments while users edit pins, and takes the API
// server away. Through all of it some node holds each pin, and when it is over the state is what the specs ask for.
func TestNothingIsLostWhateverEnds(t *testing.T) {
	c := apitest.Require(t, cluster)
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv(faultSeedEnv); s != "" {
		_, err := fmt.Sscan(s, &seed)
		require.NoError(t, err)
	}
	t.Logf("repeat with %s=%d", faultSeedEnv, seed)
	outage, err := time.ParseDuration(cmp.Or(os.Getenv(faultOutageEnv), "10s"))
	require.NoError(t, err)
	dice := rand.New(rand.NewPCG(seed, 0))

	ctx, cancel := context.WithCancel(t.Context())
	w := &world{T: t, Cluster: c}
	swarm := &v1alpha1.Swarm{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SwarmName}}
	require.NoError(t, c.Client.Create(ctx, swarm))
	w.fleet, err = optest.NewFleet(ctx, c, "fault", 8, 3)
	require.NoError(t, err)
	agents := make(chan struct{})
	go func() { w.fleet.Run(ctx); close(agents) }()
	operator := newProcess(t, c)
	t.Cleanup(func() {
		operator.kill()
		cancel()
		<-agents
		w.clear(swarm)
	})

	operator.start()
	pins := make([]*v1alpha1.ArtifactPin, 10)
	replicas := make([]int32, len(pins))
	for i := range pins {
		replicas[i] = int32(1 + dice.IntN(4))
		pins[i] = &v1alpha1.ArtifactPin{ObjectMeta: metav1.ObjectMeta{Namespace: "default",
			Name: fmt.Sprint("fault-", i)}}
		// A plain digest needs no registry: what is tested here is placement.
		pins[i].Spec.Artifacts = []v1alpha1.Artifact{{Digest: fmt.Sprintf("sha256:%064x", i+1)}}
		pins[i].Spec.Replicas = intstr.FromInt32(replicas[i])
		require.NoError(t, c.Client.Create(ctx, pins[i]))
	}
	converged := func() (bool, any) {
		for i, p := range pins {
			if err := c.Client.Get(ctx, client.ObjectKeyFromObject(p), p); err != nil || !isReady(p) ||
				p.Status.Ready != replicas[i] || len(w.fleet.Holders(string(p.UID))) != int(replicas[i]) {
				return false, []any{p.Name, replicas[i], p.Status, w.fleet.Holders(string(p.UID)), err}
			}
		}
		return true, nil
	}
	w.eventuallyTrue("every pin has its copies", converged)

	noneLost := func() {
		for _, p := range pins {
			require.NotEmpty(t, w.fleet.Holders(string(p.UID)), "pin %s is held by no node", p.Name)
		}
	}
	for range 25 {
		i := dice.IntN(len(pins))
		replicas[i] = int32(1 + dice.IntN(4))
		w.edit(pins[i], func(s *v1alpha1.ArtifactPinSpec) {
			s.Replicas = intstr.FromInt32(replicas[i])
			s.Priority = dice.Int32N(100) // every entry changes
		})
		// where in its work the operator is met is the point
		time.Sleep(time.Duration(dice.Int64N(int64(400 * time.Millisecond))))
		operator.kill()
		noneLost()
		operator.start()
	}
	noneLost()
	w.eventuallyTrue("every pin has its copies, though the operator was killed 25 times", converged)

	t.Logf("the API server goes away for %s, and agents keep what they hold", outage)
	resume, err := c.PauseAPIServer()
	require.NoError(t, err)
	t.Cleanup(func() { _ = resume() }) // else the test would leave it stopped when it fails
	half := func() {
		for end := time.Now().Add(outage / 2); time.Now().Before(end); {
			time.Sleep(100 * time.Millisecond) // the outage has to last for something to go wrong in it
			operator.supervise()
			noneLost()
		}
	}
	half()
	operator.kill()
	operator.start() // and this one finds no API server
	half()
	require.NoError(t, resume())
	w.patience = 4 * time.Minute // clients back off the longer, the longer it was away
	w.edit(pins[0], func(s *v1alpha1.ArtifactPinSpec) { s.Replicas = intstr.FromInt32(5) })
	replicas[0] = 5
	w.eventuallyTrue("every pin has its copies, though the API server was away", func() (bool, any) {
		operator.supervise()
		return converged()
	})
	noneLost()
}

// process is the operator as a process of its own, that can be killed.
type process struct {
	t          *testing.T
	kubeconfig string
	running    *exec.Cmd
	ended      chan struct{} // closed when running has ended
}

func newProcess(t *testing.T, c *apitest.Cluster) *process {
	path := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(path, c.Kubeconfig(), 0o600))
	return &process{t: t, kubeconfig: path}
}

func (p *process) start() {
	running, ended := exec.Command(os.Args[0], "-test.run=^$"), make(chan struct{})
	running.Env = append(os.Environ(), operatorEnv+"="+p.kubeconfig)
	require.NoError(p.t, running.Start())
	go func() {
		_ = running.Wait() // how it ended does not matter
		close(ended)
	}()
	p.running, p.ended = running, ended
}

func (p *process) kill() {
	if p.running == nil {
		return
	}
	_ = p.running.Process.Kill() // it may have ended by itself, as without API server it does
	<-p.ended
	p.running = nil
}

// supervise starts the operator again where it has ended by itself, as its kubelet does.
func (p *process) supervise() {
	select {
	case <-p.ended:
		p.start()
	default:
	}
}
