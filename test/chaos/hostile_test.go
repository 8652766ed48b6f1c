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
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/shoal-cache/shoal/hack/ports"
	"github.com/shoal-cache/shoal/test/chaos/internal/puller"
	"github.com/shoal-cache/shoal/test/internal/badregistry"
	"github.com/shoal-cache/shoal/test/internal/proc"
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
	mirror, admin string
	hub           string // whose protocols are spoken where it is on
	config, log   string // files
	flags         []string
	process       *proc.Process
}

func startAgent(ctx context.Context, dir, registry string, flags ...string) (*agent, error) {
	a := &agent{config: filepath.Join(dir, "config.yaml"), log: filepath.Join(dir, "log"), flags: flags}
	free, err := ports.Loopback(ctx, 3)
	if err != nil {
		return nil, err
	}
	for i, address := range []*string{&a.mirror, &a.admin, &a.hub} {
		*address = fmt.Sprintf("http://127.0.0.1:%d", free[i])
	}
	config, err := yaml.Marshal(map[string]any{
		"registry":  map[string]any{"listen": strings.TrimPrefix(a.mirror, "http://")},
		"admin":     map[string]any{"listen": strings.TrimPrefix(a.admin, "http://")},
		"swarm":     map[string]any{"listen": []string{"/ip4/127.0.0.1/tcp/0"}},
		"store":     map[string]any{"path": filepath.Join(dir, "store"), "capacity": "1GiB"},
		"upstreams": []any{map[string]any{"registry": "images.test", "endpoints": []string{registry}}},
		"hub": map[string]any{
			"enabled": true, "listen": strings.TrimPrefix(a.hub, "http://"), "endpoint": registry,
		},
	})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(a.config, config, 0o600); err != nil {
		return nil, err
	}
	return a, a.start(ctx)
}

// start starts the agent's process, and waits until it is ready.
func (a *agent) start(ctx context.Context) (err error) {
	a.process, err = proc.Start(exec.CommandContext(context.WithoutCancel(ctx), agentBinary,
		append([]string{"--config", a.config}, a.flags...)...), a.log)
	if err != nil {
		return err
	}
	return until(ctx, a.ready)
}

func (a *agent) ready() error {
	if err := a.process.Exited(); err != nil {
		return err
	}
	response, err := http.Get(a.admin + "/readyz")
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("not ready: %s", response.Status)
	}
	return nil
}

// until tries for two minutes, however slow the machine.
func until(ctx context.Context, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

var agentBinary, hostileBinary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "chaos-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		agentBinary, hostileBinary = filepath.Join(dir, "node"), filepath.Join(dir, "cmd")
		build := exec.Command("go", "build", "-trimpath", "-o", dir, "github.com/shoal-cache/shoal/node",
			"github.com/shoal-cache/shoal/node/internal/swarm/hostile/cmd")
		build.Env = append(os.Environ(), "CGO_ENABLED=0") // as agents are released, and have been compiled already
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the agent and the hostile peer: %v: %s\n", err, out)
			return 1
		}
		return m.Run()
	}())
}

func TestHostileRegistry_CostsBoundedMemoryAndTimeAndGivesNoWrongByteForARightOne(t *testing.T) {
	t.Parallel()
	// They wait for most of their time, so more of them run than there are processors.
	turns, outcomes := make(chan struct{}, 8), map[string]chan error{}
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
		"sends every third blob at 2 KiB/s":                 badregistry.Trickle,
		"never answers":                                     badregistry.Dead,
		"has a token service that gives no tokens but much": badregistry.OddToken,
	} {
		dir, done := t.TempDir(), make(chan error, 1)
		go func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			done <- attack(t.Context(), dir, mode)
		}()
		outcomes[sentence] = done
	}
	for sentence, done := range outcomes {
		t.Run(sentence, func(t *testing.T) { require.NoError(t, <-done) })
	}
}

// attack has an agent pull from a registry in the given mode, and again once the registry is good.
func attack(ctx context.Context, dir string, mode badregistry.Mode) (err error) {
	registry := badregistry.New()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	go func() { _ = registry.Serve(listener) }() // it ends with the listener
	registry.RedirectTo = "http://127.0.0.1:1"
	m, err := badregistry.NewImage("hostile/image", false, 1, 3<<20, 700<<10)
	if err != nil {
		return err
	}
	registry.Add(m)
	a, err := startAgent(ctx, dir, "http://"+listener.Addr().String())
	if a != nil {
		defer a.process.Stop()
	}
	if err != nil {
		return err
	}
	registry.SetMode(mode)
	bounded, cancel := context.WithTimeout(ctx, refuseWithin)
	defer cancel()
	spec := puller.Spec{Image: m, Mirror: a.mirror, Namespace: "images.test", Tries: 1,
		Dial: new(net.Dialer).DialContext}
	got := puller.Pull(bounded, spec)
	for _, bad := range got.Bad {
		if bad.Clean {
			return fmt.Errorf("%s at %d was wrong and ended as if all were well", bad.Digest, bad.Offset)
		}
	}
	if mode == badregistry.Trickle && got.Err != nil {
		return fmt.Errorf("it is well but for some connections: %w", got.Err)
	}
	for _, blob := range m.Blobs {
		if err := a.ask(bounded, "/v2/"+m.Repository+"/blobs/"+blob.Digest.String(),
			m.Content(blob.Digest)); err != nil {
			return err
		}
	}
	if bounded.Err() != nil {
		return fmt.Errorf("a client was not sent on within %s: %w", refuseWithin, got.Err)
	}
	usage, err := a.process.Usage()
	switch {
	case err != nil:
		return err
	case a.process.Exited() != nil:
		return a.process.Exited()
	case usage.PeakRSS > maxRSS:
		return fmt.Errorf("it took %d MiB of memory", usage.PeakRSS>>20)
	case usage.CPU > maxCPU:
		return fmt.Errorf("it took %s of processor time", usage.CPU)
	}
	registry.SetMode(badregistry.Good)
	if err := until(ctx, func() error { return puller.Pull(ctx, spec).Err }); err != nil {
		return fmt.Errorf("when the registry was good again: %w", err)
	}
	return nil
}

// ask reads a blob as a client that does not know its manifest, and checks that what ends well is the truth.
func (a *agent) ask(ctx context.Context, path string, truth []byte) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, a.mirror+path+"?ns=images.test", nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil //nolint:nilerr // it was ended, so nobody takes it for an answer
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, int64(len(truth))+1))
	if response.StatusCode == http.StatusOK && err == nil && !bytes.Equal(truth, body) {
		return fmt.Errorf("%s was wrong and ended as if all were well", path)
	}
	return nil
}
