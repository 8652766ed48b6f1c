package pulls_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/node/internal/pulls"
)

const mib = 1 << 20

// recording runs f in virtual time with a record, and gives what was logged.
func recording(t *testing.T, f func(*pulls.Record, *prometheus.Registry)) string {
	t.Helper()
	var log bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		r := pulls.New(slog.New(slog.NewTextHandler(&log, nil)), reg)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); r.Run(ctx) }()
		f(r, reg)
		cancel()
		<-done
	})
	return log.String()
}

// pullOf asks for a manifest and then for layers, each of which takes a second.
func pullOf(r *pulls.Record, name string, layers ...int64) {
	end := r.Asked("docker.io", name)
	start := time.Now()
	time.Sleep(300 * time.Millisecond)
	end(pulls.Answer{
		Kind: "manifest", Reference: "7", Digest: "sha256:aa", Code: "200", Bytes: 1000, Start: start,
		Took:    time.Since(start),
		Resolve: 300 * time.Millisecond, Authorize: 300 * time.Millisecond, FirstByte: 300 * time.Millisecond,
	})
	for i, n := range layers {
		end := r.Asked("docker.io", name)
		start := time.Now()
		time.Sleep(time.Second)
		end(pulls.Answer{Kind: "blob", Reference: layer(i), Digest: layer(i), Code: "200", Bytes: n, Start: start,
			FirstByte: 10, Took: time.Since(start)})
	}
}

func layer(i int) string { return fmt.Sprintf("sha256:b%d", i) }

func TestPull_LeavesOneLineThatSaysWhatCameFromWhere(t *testing.T) {
	t.Parallel()
	log := recording(t, func(r *pulls.Record, reg *prometheus.Registry) {
		start := time.Now().Add(300 * time.Millisecond)
		pullOf(r, "library/redis", 10*mib, 4*mib)
		r.Fetched(pulls.Fetched{Digest: layer(0), Start: start, PullFetch: view.PullFetch{
			Took: time.Second, Size: 10 * mib, FromPeers: 7 * mib, FromUpstream: 3 * mib, Outcome: "complete",
		}})
		require.Len(t, r.Pulls(), 1, "one that is under way is known too")
		time.Sleep(pulls.Quiet + 2*time.Second)
		local, peers, upstream := r.Pulls()[0].Sources()
		require.EqualValues(t, 4*mib+1000, local)
		require.EqualValues(t, 7*mib, peers)
		require.EqualValues(t, 3*mib, upstream)
		require.EqualValues(t, 11*mib+1000, r.Saved())
		require.InDelta(t, 11*mib+1000, testutil.ToFloat64(collector(t, reg)), 0)
		require.Equal(t, []string{"docker.io"}, r.Registries())
	})
	require.Equal(t, 1, bytes.Count([]byte(log), []byte("\n")), log)
	require.Contains(t, log,
		"image=docker.io/library/redis:7 took=2.3s parts=3 fromThisNode=4.0MiB fromPeers=7.0MiB fromRegistry=3.0MiB")
}

func collector(t *testing.T, reg *prometheus.Registry) prometheus.Collector {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "sum", Help: "Of the family."})
	for _, f := range families {
		for _, m := range f.GetMetric() {
			g.Add(m.GetCounter().GetValue())
		}
	}
	return g
}

func TestPull_IsOneWhileALongLayerIsUnderWay(t *testing.T) {
	t.Parallel()
	log := recording(t, func(r *pulls.Record, _ *prometheus.Registry) {
		end := r.Asked("docker.io", "library/big")
		start := time.Now()
		time.Sleep(time.Minute)
		require.True(t, r.Pulls()[0].Running)
		end(pulls.Answer{Kind: "blob", Digest: "sha256:cc", Code: "200", Bytes: mib, Start: start, Took: time.Minute})
		time.Sleep(pulls.Quiet + 2*time.Second)
		require.Len(t, r.Pulls(), 1)
		require.False(t, r.Pulls()[0].Running)
		require.Equal(t, time.Minute, r.Pulls()[0].Took)
	})
	require.Equal(t, 1, bytes.Count([]byte(log), []byte("msg=pulled")), log)
}

func TestPull_OfAnotherTagIsAnother(t *testing.T) {
	t.Parallel()
	recording(t, func(r *pulls.Record, _ *prometheus.Registry) {
		ask := func(kind, reference, digest string) {
			end := r.Asked("docker.io", "library/web")
			end(pulls.Answer{Kind: kind, Reference: reference, Digest: digest, Code: "200", Bytes: 10, Start: time.Now()})
		}
		late := r.Asked("docker.io", "library/web") // a layer of the first, which ends after the second has begun
		ask("manifest", "1", "sha256:aa")
		ask("manifest", "sha256:aa", "sha256:aa")
		ask("blob", layer(1), layer(1))
		ask("manifest", "2", "sha256:bb")
		ask("manifest", "2", "sha256:bb")
		ask("blob", layer(2), layer(2))
		late(pulls.Answer{Kind: "blob", Reference: layer(3), Digest: layer(3), Code: "200", Bytes: 10, Start: time.Now()})
		parts := map[string][]string{}
		for _, p := range r.Pulls() {
			for _, part := range p.Parts {
				parts[p.Image()] = append(parts[p.Image()], part.Digest)
			}
		}
		require.Equal(t, map[string][]string{
			"docker.io/library/web:1": {"sha256:aa", layer(1), layer(3)},
			"docker.io/library/web:2": {"sha256:bb", layer(2)},
		}, parts)
		time.Sleep(pulls.Quiet + 2*time.Second)
		require.Len(t, r.Pulls(), 2, "and both end")
	})
}

func TestPull_OfTheSameImageLaterIsAnother(t *testing.T) {
	t.Parallel()
	recording(t, func(r *pulls.Record, _ *prometheus.Registry) {
		for range 3 {
			pullOf(r, "library/redis", mib)
			time.Sleep(2 * pulls.Quiet)
		}
		require.Len(t, r.Pulls(), 3)
	})
}

func TestPull_OldFetchesBringNothingForIt(t *testing.T) {
	t.Parallel()
	recording(t, func(r *pulls.Record, _ *prometheus.Registry) {
		r.Fetched(pulls.Fetched{Digest: layer(0), Start: time.Now(),
			PullFetch: view.PullFetch{Took: time.Second, FromUpstream: mib}})
		time.Sleep(time.Hour)
		pullOf(r, "library/redis", mib)
		local, _, upstream := r.Pulls()[0].Sources()
		require.Zero(t, upstream)
		require.EqualValues(t, mib+1000, local, "it was here")
	})
}

func TestPull_OfRangesPastTheStoreCountsEachOfThem(t *testing.T) {
	t.Parallel()
	recording(t, func(r *pulls.Record, _ *prometheus.Registry) {
		begun := time.Now()
		for i := range int64(3) {
			end := r.Asked("docker.io", "library/redis")
			time.Sleep(time.Second)
			r.Fetched(pulls.Fetched{Digest: layer(0), Start: begun, PullFetch: view.PullFetch{
				Took: time.Since(begun), Size: 9 * mib, FromUpstream: (i + 1) * mib, Outcome: "passed through"}})
			end(pulls.Answer{Kind: "blob", Reference: layer(0), Digest: layer(0), Code: "206", Bytes: mib,
				Start: time.Now().Add(-time.Second), Took: time.Second})
		}
		local, _, upstream := r.Pulls()[0].Sources()
		require.EqualValues(t, 3*mib, upstream)
		require.Zero(t, local, "nothing was here")
	})
}

func TestRecord_IsBounded(t *testing.T) {
	t.Parallel()
	recording(t, func(r *pulls.Record, _ *prometheus.Registry) {
		var ends []func(pulls.Answer)
		for i := range 2000 { // repositories that are made up cost no more than a bound
			ends = append(ends, r.Asked("docker.io", fmt.Sprint("x", i)))
		}
		require.LessOrEqual(t, len(r.Pulls()), 256)
		for _, end := range ends {
			end(pulls.Answer{Kind: "blob", Digest: "sha256:dd", Code: "404", Err: errors.New("not found")})
		}
		end := r.Asked("docker.io", "x0")
		for i := range 5000 {
			r.Asked("docker.io", "x0")(pulls.Answer{Kind: "blob", Digest: fmt.Sprint("sha256:", i), Code: "404"})
		}
		end(pulls.Answer{Kind: "blob", Digest: "sha256:ee", Code: "404"})
		for _, p := range r.Pulls() {
			require.LessOrEqual(t, len(p.Parts), 256)
		}
		time.Sleep(3 * time.Hour)
		require.Empty(t, r.Pulls(), "and is forgotten")
	})
}

func TestWhy_NamesWhatMadeAPullSlow(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		part view.PullPart
		says string
	}{
		"a registry that is slow to resolve": {view.PullPart{Resolve: 2 * time.Second, Authorize: 2 * time.Second},
			"the registry took 2s to say what the tag names"},
		"a registry that is slow to authorize": {view.PullPart{Authorize: 3 * time.Second},
			"the registry took 3s to say whether the caller may read"},
		"a failure": {view.PullPart{Code: "503", Kind: "blob", Problem: "no such host"},
			"was answered with 503: no such host"},
		"a blob that nobody else had": {view.PullPart{Kind: "blob", Fetch: &view.PullFetch{FromUpstream: mib}},
			"came from the registry alone"},
		"a full disk": {view.PullPart{Fetch: &view.PullFetch{Outcome: "passed through"}},
			"the store has no room"},
		"a DHT that is slow": {view.PullPart{Fetch: &view.PullFetch{Discovery: time.Second}},
			"it took 1s to find out who else has or wants"},
		"a coordinator that is slow": {view.PullPart{Fetch: &view.PullFetch{Discovery: 1, Plan: 4 * time.Second}},
			"took 4s to say what to ask of whom"},
		"bytes that took their time": {view.PullPart{Kind: "blob", Bytes: 10 * mib, Took: 5 * time.Second,
			Fetch: &view.PullFetch{FromPeers: 10 * mib,
				Peers: map[string]int64{"a": 1, "b": 2}}}, "5s for 10.0MiB (2.0MiB/s): 10.0MiB from 2 peers"},
		"nothing at all": {view.PullPart{}, "nothing was slow"},
	} {
		var said view.Text
		said.Pull("node1", view.Pull{Repository: "docker.io/library/redis", Reference: "7", Parts: []view.PullPart{c.part}})
		require.Contains(t, said.String(), c.says, what)
	}
}
