package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/test/chaos/internal/puller"
	"github.com/shoal-cache/shoal/test/internal/badregistry"
	"github.com/shoal-cache/shoal/test/internal/proc"
)

// blobs are so many that a hostile peer coordinates some of them: a blob's digest decides which of two peers does.
const blobs = 12

// Only one in 8,192 runs has a peer coordinate none of 13 digests, and then nothing is shown.
func TestHostileCoordinator_CostsBoundedMemoryAndProcessorAndThePullEnds(t *testing.T) {
	t.Parallel()
	turns := make(chan struct{}, 2)
	for sentence, session := range map[string]string{
		"gives one lease, and then empty orders":     "empty-orders",
		"names 1 TiB as the size, again and again":   "huge-size",
		"sends orders that say nothing, without end": "flood",
		"names another size each time":               "size-flood",
		"names peers that are not there":             "chunk-flood",
		"leases without end":                         "huge-leases",
		"promises that another reads":                "promises",
		"says nothing more":                          "silent",
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			turns <- struct{}{}
			defer func() { <-turns }()
			dir := t.TempDir()
			err := beside(t.Context(), dir, session, blobs)
			if err != nil {
				log, _ := os.ReadFile(filepath.Join(dir, "log"))
				t.Logf("%s", log)
			}
			require.NoError(t, err)
		})
	}
}

// The registry is well all the time, so nobody is to be sent away.
func TestHostileHolder_SendsNobodyAwayWhileTheRegistryIsWell(t *testing.T) {
	t.Parallel()
	turns := make(chan struct{}, 4) // they wait for most of their time
	for sentence, attack := range map[string]string{
		"holds other bytes of everything":                       "holds-other-bytes",
		"holds other bytes, and takes its time":                 "holds-other-bytes-late+promises",
		"holds what it does not send":                           "holds-nothing+silent",
		"holds what it does not send, and promises, late":       "holds-nothing-late+promises",
		"holds more than there is, and names another size each": "holds-more-than-is+size-flood",
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			turns <- struct{}{}
			defer func() { <-turns }()
			dir := t.TempDir()
			err := beside(t.Context(), dir, attack, 3)
			if err != nil {
				log, _ := os.ReadFile(filepath.Join(dir, "log"))
				t.Logf("%s", log)
			}
			require.NoError(t, err)
		})
	}
}

// patient is a longer wait for the first byte than agents have of their own: a slow machine is no reason for a refusal.
const patient = "20s"

// beside has an agent pull an image of so many blobs while a peer attacks it by name.
func beside(ctx context.Context, dir, attack string, blobs int) (err error) {
	registry := badregistry.New()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	go func() { _ = registry.Serve(listener) }() // it ends with the listener
	sizes := make([]int64, blobs)
	for i := range sizes {
		sizes[i] = 1<<20 + 100<<10*int64(i)
	}
	image, err := badregistry.NewImage("team/app", false, 1, sizes...)
	if err != nil {
		return err
	}
	registry.Add(image)
	a, err := startAgent(ctx, dir, "http://"+listener.Addr().String(), "--registry-first-byte-timeout", patient)
	if a != nil {
		defer a.process.Stop()
	}
	if err != nil {
		return err
	}
	address, err := a.address()
	if err != nil {
		return err
	}
	hostile, err := proc.Start(exec.CommandContext(context.WithoutCancel(ctx), hostileBinary, "-attack", attack,
		"-victim", address, "-for", "10m"), filepath.Join(dir, "hostile"))
	if err != nil {
		return err
	}
	defer hostile.Kill()
	if err := until(ctx, func() error {
		return errors.Join(hostile.Exited(), a.says(ctx, "/metrics", 200, "\nshoal_swarm_peers 1\n"))
	}); err != nil {
		return fmt.Errorf("the hostile peer has not come: %w", err)
	}
	// It ends where the agent does not speak what it attacks.
	defer func() { err = errors.Join(err, hostile.Exited()) }()
	before, err := a.process.Usage()
	if err != nil {
		return err
	}
	spec := puller.Spec{Image: image, Mirror: a.mirror, Namespace: "images.test", Tries: 1,
		Dial: new(net.Dialer).DialContext}
	bounded, cancel := context.WithTimeout(ctx, 2*refuseWithin)
	defer cancel()
	began := time.Now()
	if got := puller.Pull(bounded, spec); got.Err != nil || len(got.Bad) > 0 {
		return fmt.Errorf("by the agent alone: %w, %v", got.Err, got.Bad)
	}
	after, err := a.process.Usage()
	switch {
	case err != nil:
		return err
	case after.PeakRSS > maxRSS:
		return fmt.Errorf("it took %d MiB of memory", after.PeakRSS>>20)
	// A third of a core for the hostile peer, at the most, and what the pull itself costs.
	case after.CPU-before.CPU > pullCPU+time.Since(began)/3:
		return fmt.Errorf("it took %s of processor time in %s", after.CPU-before.CPU, time.Since(began))
	}
	fmt.Printf("%s: %s, %s of processor time, %d MiB\n", attack, time.Since(began), after.CPU-before.CPU,
		after.PeakRSS>>20)
	return nil
}

// pullCPU is more processor time than an agent needs to pull what these tests have, on a slow machine.
const pullCPU = 8 * time.Second

// address is where the agent's peer is to be reached, by what it says at its start.
func (a *agent) address() (string, error) {
	lines, err := os.ReadFile(a.log)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(lines)) {
		var started struct {
			Msg, Peer string
			Addresses []string
		}
		if json.Unmarshal([]byte(line), &started) == nil && started.Msg == "agent started" {
			return started.Addresses[0] + "/p2p/" + started.Peer, nil
		}
	}
	return "", errors.New("the agent has not said where it is")
}
