package page

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/api/view"
)

func get(t *testing.T, base, at string) (status int, body string, header http.Header) {
	t.Helper()
	status, body, answer := getBy(t, http.DefaultClient, base+at)
	return status, body, answer.Header
}

func getBy(t *testing.T, reader *http.Client, at string) (status int, body string, answer *http.Response) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, at, nil)
	require.NoError(t, err)
	resp, err := reader.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(text), resp
}

func TestPage_ShowsAllWithoutAScript(t *testing.T) {
	t.Parallel()
	g := scene(6, 3, "node")
	burst(g, "docker.io/library/redis", 2)
	p, server := serve(t, g, ill, pinned)
	past(&p.history)
	_, body, _ := get(t, server.URL, "/")
	for what, want := range map[string]string{
		"the verdict":       "problems: pulls suffer",
		"a zone":            "<h3>eu-central-1a</h3>",
		"a finding":         "ConfigPathUnset",
		"its mend":          "restart containerd",
		"a node":            "node-005",
		"a blob":            "docker.io/library/redis",
		"a flow":            "<td>registries</td><td>eu-central-1a</td>",
		"a flow of peers":   "<td>eu-central-1c</td><td>eu-central-1a</td>",
		"a pin":             "team/pin-1",
		"its replicas":      "1/3",
		"bytes saved":       "84.0GiB",
		"hits":              "<dd>90%</dd>",
		"what is over time": `class="chart"`,
		"an agent's name":   "it gave no answer in time",
	} {
		require.Contains(t, body, want, what)
	}
}

func TestPage_OfAnEmptyClusterSaysWhatToDo(t *testing.T) {
	t.Parallel()
	_, server := serve(t, scene(0, 1, ""), func(g *gathered) { g.cluster.Daemons, g.cluster.Swarm = nil, nil })
	status, body, _ := get(t, server.URL, "/")
	require.Equal(t, http.StatusOK, status)
	_, state, _ := get(t, server.URL, "/state.json")
	require.Contains(t, state, `"blobs": []`, "a list also where there is nothing")
	require.NotContains(t, state, "null,")
	for _, want := range []string{"NotInstalled", "No agent has registered yet", "There are no pins"} {
		require.Contains(t, body, want)
	}
}

func TestPage_WorksBelowAnyPathAndLoadsNothingFromElsewhere(t *testing.T) {
	t.Parallel()
	_, server := serve(t, scene(3, 1, "node"))
	loads := regexp.MustCompile(`(?:src|href|content)="([^"]*)"`)
	for _, base := range []string{"/", "/shoal/", "/api/v1/namespaces/shoal-system/services/shoal-status:page/proxy/"} {
		status, body, header := get(t, server.URL, base)
		require.Equal(t, http.StatusOK, status, base)
		require.Contains(t, header.Get("Content-Security-Policy"), "default-src 'none'")
		require.NotContains(t, header.Get("Content-Security-Policy"), "unsafe")
		require.Equal(t, "DENY", header.Get("X-Frame-Options"))
		require.Equal(t, "no-store", header.Get("Cache-Control"))
		require.NotContains(t, body, "style=", "the policy lets no style stand in the page")
		for _, m := range loads.FindAllStringSubmatch(body, -1) {
			u, err := url.Parse(m[1])
			require.NoError(t, err)
			require.False(t, strings.HasPrefix(u.Path, "/") && u.Host == "", m[0])
			if strings.HasSuffix(u.Path, ".css") || strings.HasSuffix(u.Path, ".js") || strings.HasSuffix(u.Path, ".svg") ||
				strings.HasSuffix(u.Path, ".json") || u.Path == "main" {
				status, _, _ := get(t, server.URL, base+u.Path)
				require.Equal(t, http.StatusOK, status, base+u.Path)
			}
		}
	}
	status, _, _ := get(t, server.URL, "/etc/passwd.txt")
	require.Equal(t, http.StatusNotFound, status)
}

func TestPage_IsFoundWithoutTheSlashAtTheEndOfItsPath(t *testing.T) {
	t.Parallel()
	_, server := serve(t, scene(1, 1, "node"))
	for asked, at := range map[string]string{"/shoal": "./shoal/", "/a/b": "./b/", "/javascript:alert(1)": "./javascript:alert%281%29/"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+asked, nil)
		require.NoError(t, err)
		resp, err := http.DefaultTransport.RoundTrip(req)
		require.NoError(t, err)
		_ = resp.Body.Close()
		require.Equal(t, http.StatusFound, resp.StatusCode, asked)
		require.Equal(t, at, resp.Header.Get("Location"), "relative, because a proxy may take away what is before it")
	}
	status, body, _ := get(t, server.URL, "/shoal")
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, "page.css")
}

func TestPage_IsDrawnOnceForAllReaders(t *testing.T) {
	t.Parallel()
	p, _ := serve(t, scene(3, 1, "node"))
	first, err := p.draw(p.gather.last, "page")
	require.NoError(t, err)
	second, err := p.draw(p.gather.last, "page")
	require.NoError(t, err)
	require.Same(t, &first[0], &second[0])
	g := scene(4, 1, "other")
	anew, err := p.draw(g, "page")
	require.NoError(t, err)
	require.Contains(t, string(anew), "other-003", "what was gathered anew is drawn anew")
}

func TestPage_CanOnlyBeRead(t *testing.T) {
	t.Parallel()
	_, server := serve(t, scene(1, 1, "node"))
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch} {
		req, err := http.NewRequestWithContext(t.Context(), method, server.URL+"/", nil)
		require.NoError(t, err)
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		_ = resp.Body.Close()
		require.Equal(t, http.StatusMethodNotAllowed, resp.StatusCode, method)
	}
}

func TestPage_NamesAreTextWhateverTheyHold(t *testing.T) {
	t.Parallel()
	g := scene(2, 1, "node")
	burst(g, `x"><script>alert(1)</script>`, 1)
	g.cluster.Peers[0].Spec.Zone = `<img src=x onerror=alert(1)>`
	_, server := serve(t, g)
	_, body, _ := get(t, server.URL, "/")
	require.NotContains(t, body, "<script>alert")
	require.NotContains(t, body, "<img")
	require.Contains(t, body, "&lt;script&gt;alert")
}

func TestPage_OfALargeClusterIsBounded(t *testing.T) {
	t.Parallel()
	g := scene(3000, 40, "node")
	burst(g, "docker.io/library/redis", 30)
	p := picture(g, nil)
	require.Len(t, p.Blobs, maxBlobs)
	require.Equal(t, 10, p.MoreBlobs)
	require.Len(t, p.Blobs[0].Arrivals, maxArrivals)
	require.Equal(t, 3000-maxArrivals, p.Blobs[0].More())
	require.Len(t, p.Flows, maxFlows)
	require.Len(t, p.State.Nodes, maxNodes)
	require.Equal(t, 2000, p.MoreNodes)
	require.Equal(t, 75*30, p.Zones[0].Arriving, "what is left off is counted")
}

func TestPicture_FlowsGoFromZoneToZoneAtTheirMeanRate(t *testing.T) {
	t.Parallel()
	g := scene(2, 2, "node")
	id := g.cluster.Peers[0].Spec.PeerID
	g.moving[1].Value = []view.Fetch{{Digest: "sha256:ab", Size: 100 << 20, FromPeers: 40 << 20, FromUpstream: 10 << 20,
		Started: now.Add(-10 * time.Second), Peers: map[string]int64{id: 40 << 20, "a stranger": 1 << 20}}}
	require.Equal(t, []Flow{
		{From: "eu-central-1a", To: "eu-central-1b", Bytes: 40 << 20, Rate: 4 << 20},
		{To: "eu-central-1b", Registry: true, Bytes: 10 << 20, Rate: 1 << 20},
	}, picture(g, nil).Flows)
}

func TestSteps_ANodeThatLeavesTakesNothingBack(t *testing.T) {
	t.Parallel()
	all := steps([]Point{{Hits: 10, Requests: 20, Saved: 100}, {Hits: 5, Requests: 10, Saved: 50},
		{Hits: 8, Requests: 14, Saved: 90, Upstream: 7}})
	require.Equal(t, []Step{{}, {Hits: 3, Requests: 4, Saved: 40, Upstream: 7}}, all)
}

// api counts how often it is looked at.
type api struct {
	client.Reader
	looks atomic.Int32
	err   error
}

func (a *api) Get(context.Context, client.ObjectKey, client.Object, ...client.GetOption) error {
	a.looks.Add(1)
	return a.err
}

func (a *api) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	if pods, ok := list.(*corev1.PodList); ok {
		pods.Items = nil
	}
	if caches, ok := list.(*v1alpha1.NodeCacheList); ok {
		caches.Items = nil
	}
	time.Sleep(time.Second) // of the bubble
	return a.err
}

func TestGatherer_AsksOnceForAllWhoLookAndRestsAfterASlowLook(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := &api{}
		g := &gatherer{api: a, clock: clock.RealClock{}, now: time.Now}
		look := func(ctx context.Context) error { _, err := g.get(ctx); return err }
		gone, leave := context.WithCancel(t.Context())
		for range 50 {
			go func() { _ = look(gone) }()
		}
		synctest.Wait()
		leave() // those who asked first do not wait
		require.NoError(t, look(t.Context()))
		require.EqualValues(t, 1, a.looks.Load(), "all of them got one look")
		time.Sleep(34 * time.Second)
		require.NoError(t, look(t.Context()))
		require.EqualValues(t, 1, a.looks.Load(), "a look of seven seconds holds for thirty-five")
		time.Sleep(2 * time.Second)
		require.NoError(t, look(t.Context()))
		require.EqualValues(t, 2, a.looks.Load())
	})
}

// crowd are agents that count who asks them what, and never answer about themselves but at once.
type crowd struct {
	mu    sync.Mutex
	asked map[string]int
}

func (c *crowd) Open(context.Context, *corev1.Pod, string) (*view.Client, func(), error) {
	return &view.Client{Base: "http://agent", HTTP: &http.Client{Transport: c}}, func() {}, nil
}

func (c *crowd) RoundTrip(r *http.Request) (*http.Response, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked[r.URL.Path]++
	body := map[string]string{view.NodePath: "{}", view.RegistriesPath: `[{"host": "docker.io", "problem": "x509: no"}]`}[r.URL.Path]
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(cmp.Or(body, "[]")))}, nil
}

// many are the pods of as many agents.
type many struct {
	api
	pods int
}

func (m *many) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	if pods, ok := list.(*corev1.PodList); ok {
		for i := range m.pods {
			pods.Items = append(pods.Items, corev1.Pod{Spec: corev1.PodSpec{NodeName: fmt.Sprintf("n%05d", i)},
				Status: corev1.PodStatus{Phase: corev1.PodRunning}})
		}
	}
	return nil
}

func TestGatherer_AsksSomeOfManyAgentsAndHasThemAskRegistriesSeldom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		agents := &crowd{asked: map[string]int{}}
		g := &gatherer{api: &many{pods: 5000}, agents: agents, clock: clock.RealClock{}, now: time.Now}
		for range 10 {
			found, err := g.get(t.Context())
			require.NoError(t, err)
			require.Len(t, found.health, mostAsked)
			require.Equal(t, 5000-mostAsked, found.left)
			require.Equal(t, "docker.io", found.health[7].Value.Registries[0].Host, "what was said of registries is kept")
			require.Equal(t, "n04983", found.health[mostAsked-1].Node, "those that are asked are spread over all")
			time.Sleep(leastPause)
		}
		require.Equal(t, 10*mostAsked, agents.asked[view.FetchesPath])
		require.Equal(t, mostAsked, agents.asked[view.RegistriesPath])
		time.Sleep(registriesEvery)
		_, err := g.get(t.Context())
		require.NoError(t, err)
		require.Equal(t, 2*mostAsked, agents.asked[view.RegistriesPath])
	})
}

func TestPage_AnAPIServerThatFailsIsSaidWithoutItsWords(t *testing.T) {
	t.Parallel()
	p, server := serve(t, scene(1, 1, "node"))
	p.gather.last, p.gather.api = nil, &api{err: errors.New("secret words of an API server")}
	status, body, _ := get(t, server.URL, "/")
	require.Equal(t, http.StatusServiceUnavailable, status)
	require.Contains(t, body, "Pulls do not depend on that")
	require.NotContains(t, body, "secret")
}

func TestPage_AForwardedPortAnswersToNobodyElsesName(t *testing.T) {
	t.Parallel()
	_, server := serve(t, scene(2, 1, "node"))
	port := server.URL[strings.LastIndexByte(server.URL, ':'):]
	for host, want := range map[string]int{
		"localhost" + port: http.StatusOK, "127.0.0.1" + port: http.StatusOK, "[::1]" + port: http.StatusOK,
		"evil.example" + port: http.StatusMisdirectedRequest, "127.0.0.1.evil.example": http.StatusMisdirectedRequest,
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/state.json", nil)
		require.NoError(t, err)
		req.Host = host
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, want, resp.StatusCode, host)
	}
	recorder := httptest.NewRecorder()
	p, _ := serve(t, scene(2, 1, "node"))
	r := httptest.NewRequest(http.MethodGet, "http://shoal.example/", nil)
	address := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 7), Port: 8082}
	p.ServeHTTP(recorder, r.WithContext(context.WithValue(t.Context(), http.LocalAddrContextKey, address)))
	require.Equal(t, http.StatusOK, recorder.Code, "an Ingress has a name of its own")
}
