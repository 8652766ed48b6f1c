package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/shoal-cache/shoal/test/chaos/internal/puller"
	"github.com/shoal-cache/shoal/test/internal/badregistry"
	"github.com/shoal-cache/shoal/test/internal/proc"
	"github.com/shoal-cache/shoal/test/internal/wait"
)

const (
	// maxRSS is what an agent may take beside a hostile registry, half of what the chart gives it.
	maxRSS = 256 << 20
	// maxCPU is the processor time that one hostile registry may cost in all, far above what any does.
	maxCPU = 30 * time.Second
	// refuseWithin is in what time a client must have been sent on, however slow the machine.
	refuseWithin = time.Minute
)

// agent is one agent by itself, whose only registry is the given one.
type agent struct {
	mirror  string
	process *proc.Process
}

func startAgent(t *testing.T, registry string) *agent {
	t.Helper()
	dir := t.TempDir()
	free := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		return l.Addr().String()
	}
	a := &agent{mirror: "http://" + free()}
	admin := free()
	config, err := yaml.Marshal(map[string]any{
		"registry":  map[string]any{"listen": a.mirror[len("http://"):]},
		"admin":     map[string]any{"listen": admin},
		"swarm":     map[string]any{"listen": []string{"/ip4/127.0.0.1/tcp/0"}},
		"store":     map[string]any{"path": filepath.Join(dir, "store"), "capacity": "1GiB"},
		"upstreams": []any{map[string]any{"registry": "images.test", "endpoints": []string{registry}}},
	})
	require.NoError(t, err)
	file := filepath.Join(dir, "config.yaml")
	require.NoError(t, os.WriteFile(file, config, 0o600))
	a.process, err = proc.Start(exec.CommandContext(context.Background(), agentBinary, "--config", file), filepath.Join(dir, "log"))
	require.NoError(t, err)
	t.Cleanup(a.process.Stop)
	wait.Until(t, time.Minute, 50*time.Millisecond, func() error {
		response, err := http.Get("http://" + admin + "/readyz")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("not ready: %s", response.Status)
		}
		return nil
	})
	return a
}

var agentBinary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "chaos-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		agentBinary = filepath.Join(dir, "shoal-node")
		build := exec.Command("go", "build", "-o", agentBinary, "github.com/shoal-cache/shoal/node")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the agent: %v: %s\n", err, out)
			return 1
		}
		return m.Run()
	}())
}

func TestHostileRegistry_CostsBoundedMemoryAndTimeAndGivesNoWrongByteForARightOne(t *testing.T) {
	t.Parallel()
	for sentence, mode := range map[string]badregistry.Mode{
		"resets every connection":                           badregistry.Down,
		"is there every other second":                       badregistry.Flap,
		"resets blobs half-way":                             badregistry.Reset,
		"answers every other request with 429":              badregistry.Throttle,
		"answers all with 429 and a day to wait":            badregistry.Busy,
		"answers all with 408":                              badregistry.Timeout,
		"answers every other request with an error page":    badregistry.Errors,
		"sends wrong bytes":                                 badregistry.WrongData,
		"sends blobs of a wrong size":                       badregistry.WrongSize,
		"answers a Range with the whole":                    badregistry.NoRange,
		"answers a Range with another":                      badregistry.OddRange,
		"encodes what nobody wants encoded":                 badregistry.Encoded,
		"redirects to a loopback address":                   badregistry.Redirect,
		"redirects to itself":                               badregistry.Loop,
		"has every digest and gives none":                   badregistry.Claims,
		"sends HTML as manifests and blobs":                 badregistry.HTML,
		"never ends a body":                                 badregistry.Endless,
		"sends 1 MiB that unpacks to 1 GiB":                 badregistry.Bomb,
		"sends 8 MiB of headers":                            badregistry.BigHeader,
		"stops in the middle of bodies":                     badregistry.Stall,
		"never answers":                                     badregistry.Dead,
		"has a token service that gives no tokens but much": badregistry.OddToken,
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			registry := badregistry.New()
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			t.Cleanup(func() { listener.Close() })
			go func() { _ = registry.Serve(listener) }() // it ends with the listener
			registry.RedirectTo = "http://127.0.0.1:1"
			m, err := badregistry.NewImage("hostile/image", false, 1, 3<<20, 700<<10)
			require.NoError(t, err)
			registry.Add(m)
			a := startAgent(t, "http://"+listener.Addr().String())
			registry.SetMode(mode)

			ctx, cancel := context.WithTimeout(t.Context(), refuseWithin)
			defer cancel()
			spec := puller.Spec{Image: m, Mirror: a.mirror, Namespace: "images.test", Tries: 1, Dial: new(net.Dialer).DialContext}
			got := puller.Pull(ctx, spec)
			for _, bad := range got.Bad {
				require.False(t, bad.Clean, "%s at %d was wrong and ended as if all were well", bad.Digest, bad.Offset)
			}
			for _, blob := range append(m.Blobs[:len(m.Blobs):len(m.Blobs)], m.Blobs[0]) {
				a.ask(ctx, t, "/v2/"+m.Repository+"/blobs/"+blob.Digest.String(), m.Content(blob.Digest))
			}
			require.NoError(t, ctx.Err(), "a client must be sent on in time: %v", got.Err)
			usage, err := a.process.Usage()
			require.NoError(t, err)
			require.NoError(t, a.process.Exited())
			require.Less(t, usage.PeakRSS, int64(maxRSS))
			require.Less(t, usage.CPU, maxCPU)

			registry.SetMode(badregistry.Good)
			wait.Until(t, 2*time.Minute, time.Second, func() error { return puller.Pull(t.Context(), spec).Err })
		})
	}
}

// ask reads a blob as a client that does not know its manifest, and checks that what ends well is the truth.
func (a *agent) ask(ctx context.Context, t *testing.T, path string, truth []byte) {
	t.Helper()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, a.mirror+path+"?ns=images.test", nil)
	require.NoError(t, err)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return // it was ended, so nobody takes it for an answer
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, int64(len(truth))+1))
	if err == nil {
		require.True(t, bytes.Equal(truth, body), "%s was wrong and ended as if all were well", path)
	}
}
