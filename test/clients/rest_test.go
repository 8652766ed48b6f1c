package clients

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

const (
	// maxResident is what an agent may need while it serves, in bytes.
	maxResident = 256 * mib
	// restTimeout is how long an agent has to close what it no longer needs, such as idle connections to a registry.
	restTimeout = 3 * time.Minute
	// slack is how much more may be open than before: less than one for each stream.
	slack = 8
)

// An agent that serves sixteen streams of a large blob at a time, some to other agents and some to clients of its own,
// keeps to its memory, and has closed everything soon after.
func TestAnAgentThatServesSixteenStreams(t *testing.T) { //nolint:paralleltest // it needs the processors
	program(t, "shoal-node")
	const peers, direct = 4, 12
	registry := startRegistry(t, "images.test", nil)
	agents := startAgents(t, registry, make([]string, 1+peers)...)
	holder := agents[0]
	img, blob, _ := registry.pushBlob(t, unique(), 512*mib)
	atRest := holder.resources(t)

	require.NoError(t, read(t.Context(), img.blobURL(holder, blob), blob, func() {}))

	// No stream goes on before all have begun.
	streams, ctx := errgroup.WithContext(t.Context())
	var begun atomic.Int32
	all := make(chan struct{})
	together := func() {
		if begun.Add(1) == peers+direct {
			close(all)
		}
		select {
		case <-all:
		case <-ctx.Done():
		}
	}
	started := time.Now()
	for i := range peers + direct {
		url := img.blobURL(holder, blob)
		if i < peers {
			url = img.blobURL(agents[1+i], blob)
		}
		streams.Go(func() error { return read(ctx, url, blob, together) })
	}
	require.NoError(t, streams.Wait())
	require.Positive(t, holder.metric(t, "shoal_peer_sent_bytes_total"))
	t.Logf("%d streams of 512 MiB in %s, of which %d MiB were sent to other agents", peers+direct,
		time.Since(started).Round(time.Second), holder.metric(t, "shoal_peer_sent_bytes_total")/mib)

	for _, a := range agents {
		peak := peakResident(t, a.pid)
		t.Logf("%s needed %d MiB at most", a.front, peak/mib)
		require.LessOrEqual(t, peak, int64(maxResident))
	}
	started = time.Now()
	eventually(t, restTimeout, func() error {
		now := holder.resources(t)
		if now.goroutines > atRest.goroutines+slack || now.files > atRest.files+slack {
			return fmt.Errorf("at rest: %+v; now: %+v", atRest, now)
		}
		t.Logf("at rest before: %+v; %s after: %+v", atRest, time.Since(started).Round(time.Second), now)
		return nil
	})
}

// resources are what a leak would show in.
type resources struct{ goroutines, files int64 }

func (a *agent) resources(t *testing.T) resources {
	t.Helper()
	return resources{a.metric(t, "go_goroutines"), a.metric(t, "process_open_fds")}
}

// read reads a blob and checks its digest. It calls begun after the first byte.
func read(ctx context.Context, url string, want digest.Digest, begun func()) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", url, answer.Status)
	}
	digester := want.Algorithm().Digester()
	if _, err := io.CopyN(digester.Hash(), answer.Body, 1); err != nil {
		return fmt.Errorf("GET %s: %w", url, err)
	}
	begun()
	if _, err := io.Copy(digester.Hash(), answer.Body); err != nil {
		return fmt.Errorf("GET %s: %w", url, err)
	}
	if got := digester.Digest(); got != want {
		return fmt.Errorf("GET %s: got %s", url, got)
	}
	return nil
}

// peakResident is the largest resident set that a process ever had, in bytes: VmHWM of proc_pid_status(5).
func peakResident(t *testing.T, pid int) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			require.NoError(t, err)
			return kib << 10
		}
	}
	require.Fail(t, "no VmHWM in the process's status")
	return 0
}
