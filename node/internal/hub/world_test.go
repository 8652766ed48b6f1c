package hub

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/fetch"
	"github.com/shoal-cache/shoal/node/internal/gate"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/schedule"
	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/node/internal/swarm"
	"github.com/shoal-cache/shoal/node/internal/upstream"
	"github.com/shoal-cache/shoal/test/hubtest"
)

const hubName = "hub.test"

// agent is an agent with a hub front, in this process.
type agent struct {
	*Front
	URL     string
	store   *store.Store
	swarm   *swarm.Swarm
	errands *swarm.Errands
	fetcher *fetch.Fetcher
	server  *httptest.Server
	closed  sync.Once
	rule    atomic.Pointer[policy.Rule]
	up      *upstream.Client
	gate    *gate.Gate
}

// keptBlobs is what an agent has, for its gate.
type keptBlobs struct{ a *agent }

func (k keptBlobs) Held(d digest.Digest) (content.Reader, error) {
	blob, err := k.a.store.Get(d)
	if err != nil {
		return nil, err
	}
	return blob, nil
}

func (k keptBlobs) Has(d digest.Digest) (int64, bool) {
	info, err := k.a.store.Stat(d)
	return info.Size, err == nil
}

func (k keptBlobs) FromPeers(context.Context, digest.Digest) (content.Reader, error) {
	return nil, content.ErrNotFound
}

// proofs are the Sources of an agent's fetches.
type proofs struct{ a *agent }

func (p proofs) of(req content.Request) fetch.Sources {
	if req.Repository.Registry == hubName && !IsURL(req.Repository) {
		return p.a.Front
	}
	return p.a.gate
}

func (p proofs) Proved(req content.Request) bool {
	return p.a.rule.Load().Authorization.Mode == policy.Exempt || p.of(req).Proved(req)
}

func (p proofs) Doubted(req content.Request) bool { return p.of(req).Doubted(req) }

func (p proofs) Prove(req content.Request) { p.of(req).Prove(req) }

// newAgent starts an agent on the store in a directory, "" for a new one.
func newAgent(t testing.TB, h *hubtest.Hub, dir string, bootstrap []peer.AddrInfo, others ...string) *agent {
	t.Helper()
	return newAgentThatWaits(t, h, dir, bootstrap,
		waits{hub: upstream.Timeouts{Retry: 3 * time.Second, Stall: 5 * time.Second}}, others...)
}

// waits is how long an agent waits, for tests of what many agents do on a machine that is too slow for them.
type waits struct {
	hub   upstream.Timeouts
	fetch time.Duration // its Options.Patience and those of its schedule
	lease time.Duration // schedule.Config.LeaseTimeout; 0: longer than a test takes
}

func newAgentThatWaits(t testing.TB, h *hubtest.Hub, dir string, bootstrap []peer.AddrInfo, waits waits,
	others ...string) *agent {
	t.Helper()
	if dir == "" {
		dir = t.TempDir()
	}
	a := &agent{}
	slack := 3
	if waits.fetch > 0 {
		slack = 5 // and not more: after 40 s a node reads by itself what nobody brings
	}
	rule := policy.DefaultRule()
	a.rule.Store(&rule)
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	reg := prometheus.NewRegistry()
	var sw atomic.Pointer[swarm.Swarm]
	var err error
	a.store, err = store.Open(t.Context(), store.Options{Path: dir, Logger: log, OnEvent: func(e store.Event) {
		if s := sw.Load(); s != nil && e.Type == store.Committed {
			s.Provide(e.Info.Digest)
		}
	}})
	require.NoError(t, err)
	id, _, err := crypto.GenerateEd25519Key(rand.Reader)
	require.NoError(t, err)
	a.swarm, err = swarm.New(swarm.Options{
		Identity: id, Listen: []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/0")}, Bootstrap: bootstrap, Open: true,
		Store: a.store, Logger: log, Registerer: reg,
		// A machine that runs tests may be slow; none of these times is what a test is about.
		Slack: slack, Schedule: schedule.Config{LeaseTimeout: cmp.Or(waits.lease, time.Minute),
			ChunkTimeout: 2 * time.Minute},
	})
	require.NoError(t, err)
	sw.Store(a.swarm)
	upstreams := []upstream.Upstream{{Registry: hubName, Endpoints: []string{h.URL()}}}
	for _, base := range others { // hosts of URLs
		upstreams = append(upstreams, upstream.Upstream{Registry: strings.TrimPrefix(base, "http://"),
			Endpoints: []string{base}})
	}
	a.up, err = upstream.New(upstream.Options{
		Upstreams: upstreams, Logger: log,
		AllowAddresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, // where the fake hub's CDN is
		Timeouts:       waits.hub,
		Locate: func(ctx context.Context, repo content.Repository, file, authorization string, anew bool) (*url.URL,
			error) {
			return a.Locate(ctx, repo, file, authorization, anew)
		},
	})
	require.NoError(t, err)
	a.gate, err = gate.New(gate.Options{Cache: keptBlobs{a}, Memory: a.store.Notes("gate"), Logger: log})
	require.NoError(t, err)
	a.fetcher = fetch.New(fetch.Options{Store: a.store, Swarm: a.swarm, Upstream: a.gate.Observe(a.up), Sources: proofs{a},
		Gave:   a.gate.Gave,
		Logger: log, Registerer: reg,
		PeerSilence: 20 * time.Second, PeerPatience: waits.fetch, CoordinatorPatience: waits.fetch, Patience: waits.fetch})
	endpoint, transport, err := a.up.Reach(hubName)
	require.NoError(t, err)
	a.Front, err = New(Options{
		Endpoint: endpoint, Transport: transport, Hub: hubName, Gate: a.gate, Fetcher: a.fetcher, Upstream: a.up,
		Store: a.store, Memory: a.store.Notes("hub"), Slack: Slack(slack),
		Rules: func(content.Repository) policy.Rule { return *a.rule.Load() }, Logger: log, Registerer: reg,
	})
	require.NoError(t, err)
	a.errands = swarm.NewErrands(a.swarm, a.Known, a.Remembers, a.Told)
	a.Join(a.errands)
	a.server = httptest.NewServer(a.Front)
	a.URL = a.server.URL
	t.Cleanup(func() { a.stop(t) })
	return a
}

func (a *agent) stop(t testing.TB) {
	a.closed.Do(func() {
		a.server.CloseClientConnections()
		a.server.Close()
		a.Close()
		require.NoError(t, a.gate.Close())
		a.fetcher.Close()
		require.NoError(t, a.swarm.Close())
		a.up.Close()
		require.NoError(t, a.store.Close())
	})
}

// patience is only there to end a test that fails.
const patience = 5 * time.Minute

// rest returns when no fetch runs any more: one that has failed may not have ended yet.
func (a *agent) rest(t testing.TB) {
	t.Helper()
	require.Eventually(t, func() bool { return len(a.fetcher.Running()) == 0 }, patience, 10*time.Millisecond)
}

func (a *agent) info() peer.AddrInfo { return peer.AddrInfo{ID: a.swarm.ID(), Addrs: a.swarm.Addrs()} }

// got is an answer that was read to its end.
type got struct {
	status int
	header http.Header
	body   []byte
	err    error // of reading the body
}

func (g got) sha256() string {
	sum := sha256.Sum256(g.body)
	return hex.EncodeToString(sum[:])
}

// ask sends a request with the headers that are given as name and value, one after the other.
func (a *agent) ask(t testing.TB, method, path string, headers ...string) got {
	t.Helper()
	return ask(t, a.URL, method, path, nil, headers...)
}

func ask(t testing.TB, base, method, path string, body io.Reader, headers ...string) got {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, base+path, body)
	require.NoError(t, err)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	g := got{status: resp.StatusCode, header: resp.Header}
	var all bytes.Buffer
	if method != http.MethodHead { // what is copied and let go of is dear with the race detector
		all.Grow(int(min(max(resp.ContentLength, 0), 16<<20)) + bytes.MinRead)
	}
	_, g.err = all.ReadFrom(resp.Body)
	g.body = all.Bytes()
	return g
}

func bearer(token string) []string { return []string{"Authorization", "Bearer " + token} }

// newHub starts a fake hub.
func newHub(t testing.TB) *hubtest.Hub {
	t.Helper()
	h := hubtest.New()
	t.Cleanup(h.Close)
	return h
}

// model is a repository with files of both kinds, and what is in them by path.
func model(h *hubtest.Hub, id string) (*hubtest.Repo, string, map[string]hubtest.File) {
	files := map[string]hubtest.File{
		"config.json":                      {Data: hubtest.Text(`{"model_type":"shoal"}`)},
		".gitattributes":                   {Data: hubtest.Text("*.safetensors filter=lfs\n")},
		"empty.txt":                        {Data: hubtest.Text("")},
		"tokenizer.json":                   {Data: hubtest.Random(7, 700<<10)},
		"sub dir/100% #1 ü.txt":            {Data: hubtest.Text("odd names")},
		"model-00001-of-00002.safetensors": {Data: hubtest.Random(1, 5<<20+17), LFS: true},
		"sub dir/part 2 %41 #.safetensors": {Data: hubtest.Random(2, 3<<20), LFS: true},
		"onnx/model.onnx":                  {Data: hubtest.Random(3, 100), LFS: true},
	}
	r := h.Repo("models", id)
	return r, r.Commit("main", files), files
}

func read(t testing.TB, d hubtest.Data) []byte {
	t.Helper()
	data := make([]byte, d.Size())
	_, err := io.ReadFull(io.NewSectionReader(d, 0, d.Size()), data)
	require.NoError(t, err)
	return data
}

func resolve(id, revision, path string) string {
	return fmt.Sprintf("/%s/resolve/%s/%s", id, url.PathEscape(revision), escape(path))
}

// raw sends a request as it is written, and gives the answer's first line.
func raw(t testing.TB, base, request string) string {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(base, "http://"))
	require.NoError(t, err)
	defer func() { _ = c.Close() }()
	_, err = io.WriteString(c, request)
	require.NoError(t, err)
	line, err := bufio.NewReader(c).ReadString('\n')
	require.NoError(t, err)
	return line
}

func byteRange(first, last int) string { return fmt.Sprintf("bytes=%d-%d", first, last) }
