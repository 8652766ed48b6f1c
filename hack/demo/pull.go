package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sync/errgroup"
)

// parallelLayers is how many layers containerd and others download at a time.
const parallelLayers = 3

// pulled is what a client process prints.
type pulled struct {
	Digest string `json:"digest"`
	// Bytes are those of config and layers, each checked against its digest.
	Bytes int64 `json:"bytes"`
}

// pull is the client's process: it pulls the image that reference names from the front at addr, checks every digest,
// keeps nothing, and prints what it got.
func pull(ctx context.Context, addr, reference string) error {
	ref, err := name.ParseReference(addr+"/"+reference, name.Insecure)
	if err != nil {
		return err
	}
	img, err := remote.Image(ref, remote.WithContext(ctx))
	if err != nil {
		return err
	}
	d, err := img.Digest()
	if err != nil {
		return err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	sizes := make([]int64, len(layers))
	group, _ := errgroup.WithContext(ctx)
	group.SetLimit(parallelLayers)
	for i, layer := range layers {
		group.Go(func() (err error) {
			sizes[i], err = read(layer)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	result := pulled{Digest: d.String(), Bytes: int64(len(config))}
	for _, n := range sizes {
		result.Bytes += n
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// read reads a layer to its end, where the library checks size and digest.
func read(layer v1.Layer) (int64, error) {
	r, err := layer.Compressed()
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(io.Discard, r)
	return n, errors.Join(err, r.Close())
}

// client is one pull through one agent.
type client struct {
	agent *agent
	kind  string
	run   func(ctx context.Context) (pulled, error)
}

// result is how a pull went.
type result struct {
	client
	pulled
	took time.Duration
	err  error
}

// newClients are one client process for each agent, and containerd beside the last.
func newClients(ctx context.Context, children *processes, o options, dir string, agents []*agent,
	img image) ([]client, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var clients []client
	for _, a := range agents {
		clients = append(clients, client{a, "OCI client", func(ctx context.Context) (pulled, error) {
			return inProcess(ctx, self, "pull", a.registry, fmt.Sprintf("%s/%s:%s", host, repository, tag))
		}})
	}
	containerd, err := startContainerd(ctx, children, o, dir, agents[len(agents)-1], img)
	if err != nil {
		return nil, err
	}
	if containerd != nil {
		clients = append(clients, client{agents[len(agents)-1], "containerd", containerd.pull})
	}
	return clients, nil
}

// inProcess has a process of this program pull, and returns what that printed.
func inProcess(ctx context.Context, self string, args ...string) (pulled, error) {
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return pulled{}, fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	var p pulled
	return p, json.Unmarshal(stdout.Bytes(), &p)
}

// runClients runs all clients, stagger apart, and waits for all.
func runClients(ctx context.Context, clients []client, stagger time.Duration) []result {
	results := make([]result, len(clients))
	var running sync.WaitGroup
	for i, c := range clients {
		running.Go(func() {
			results[i].client = c
			select {
			case <-ctx.Done():
				results[i].err = ctx.Err()
				return
			case <-time.After(time.Duration(i) * stagger):
			}
			start := time.Now()
			results[i].pulled, results[i].err = c.run(ctx)
			results[i].took = time.Since(start)
		})
	}
	running.Wait()
	return results
}
