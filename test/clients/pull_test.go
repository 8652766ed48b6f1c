package clients

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

// client is a client of registries.
type client struct {
	name string
	// pull pulls an image through an agent, starting from nothing, and returns a folder with the blobs it ended up
	// with. Its account is empty where the registry is for everybody.
	pull func(t *testing.T, a *agent, img image, account string) (dir string, err error)
	// plain is true where the client keeps layers without their compression.
	plain bool
	// ranged is true where the client takes layers in parallel Ranges.
	ranged bool
}

func (c client) wants(img image) []digest.Digest {
	if c.plain {
		return img.plain
	}
	return img.blobs
}

// clients are those that end up with a whole image.
var clients = []client{
	{name: "containerd of Debian", pull: debianContainerd},
	{name: "containerd 2", pull: containerd2},
	{name: "containerd 2 with parallel layer downloads", pull: containerd2Parallel, ranged: true},
	{name: "podman", pull: podman, plain: true},
	{name: "skopeo", pull: skopeo},
	{name: "crane", pull: crane},
	{name: "oras", pull: oras},
}

// An image that one client has pulled through an agent comes to the next from there.
func TestClientsPullThroughAgents(t *testing.T) { //nolint:paralleltest // it counts what the one registry sends
	program(t, "shoal-node")
	registry := startRegistry(t, "images.test", nil)
	agents := startAgents(t, registry, "", "", registry.host)
	for _, c := range clients {
		t.Run(c.name, func(t *testing.T) {
			img := registry.push(t, unique())
			before := registry.sent.Load()
			ranges := agents[0].metric(t, "shoal_registry_requests_total", "kind", "blob", "code", "206")
			dir, err := c.pull(t, agents[0], img, "")
			require.NoError(t, err)
			requireBlobs(t, dir, c.wants(img))
			cold := registry.sent.Load() - before
			require.GreaterOrEqual(t, cold, img.size, "the bytes came from somewhere else")
			require.LessOrEqual(t, float64(cold), 1.05*float64(img.size), "the registry sent more than one copy")
			if c.ranged {
				ranges = agents[0].metric(t, "shoal_registry_requests_total", "kind", "blob", "code", "206") - ranges
				require.Greater(t, ranges, int64(len(layerSizes)), "the client did not ask for Ranges")
			}

			// The last agent is asked without the registry's name where the client does not send it.
			for _, other := range agents[1:] {
				before, received := registry.sent.Load(), other.metric(t, "shoal_peer_received_bytes_total")
				dir, err := c.pull(t, other, img, "")
				require.NoError(t, err)
				requireBlobs(t, dir, c.wants(img))
				require.Zero(t, registry.sent.Load()-before, "the registry sent blobs that an agent has")
				received = other.metric(t, "shoal_peer_received_bytes_total") - received
				require.GreaterOrEqual(t, received, img.size, "the bytes came from somewhere else than from peers")
				t.Logf("an image of %d bytes: %d from the registry at first, %d from peers then and none from the registry", img.size, cold, received)
			}
		})
	}
}

// containerd asks a mirror that answers 429 or 408 five times more without a pause, and one that answers 503 not again.
func TestThrottling_ContainerdIsSentOnAtOnce(t *testing.T) { //nolint:paralleltest // it counts what the registry is asked
	program(t, "shoal-node")
	registry := startRegistry(t, "images.test", nil)
	a := startAgents(t, registry, "")[0]
	for _, c := range clients[:2] {
		for _, wish := range []int32{http.StatusTooManyRequests, http.StatusRequestTimeout} {
			t.Run(c.name+" and "+http.StatusText(int(wish)), func(t *testing.T) {
				img := registry.push(t, unique())
				registry.wish.Store(wish)
				defer registry.wish.Store(0)
				asked, given := registry.asked.Load(), a.metric(t, "shoal_registry_requests_total")
				sent := a.metric(t, "shoal_registry_requests_total", "code", "503")
				_, err := c.pull(t, a, img, "") // there is no other host to go on to
				require.Error(t, err)
				asked, given = registry.asked.Load()-asked, a.metric(t, "shoal_registry_requests_total")-given
				sent = a.metric(t, "shoal_registry_requests_total", "code", "503") - sent
				t.Logf("%d requests at the agent, and %d at the registry", given, asked)
				require.Equal(t, given, sent)
				require.LessOrEqual(t, given, int64(2), "it tries the agent again and again")
				require.LessOrEqual(t, asked, int64(2), "and so the registry")
			})
		}
	}
}

// A private image is for those whom the registry accepts, wherever it is cached.
func TestPrivateImages(t *testing.T) { //nolint:paralleltest // it counts what the one registry sends
	program(t, "shoal-node")
	for scheme, registry := range map[string]*registry{
		"Basic":  startRegistry(t, "basic.test", basic(t)),
		"Bearer": startRegistry(t, "bearer.test", bearer(t)),
	} {
		// Most clients learn from /v2/ which scheme to use, and then only a default registry can be the one that is
		// meant.
		agents := startAgents(t, registry, registry.host, registry.host)
		last := agents[len(agents)-1]
		for _, c := range clients {
			t.Run(c.name+" with "+scheme, func(t *testing.T) {
				if c.name == "oras" && scheme == "Bearer" {
					t.Skip("oras sends no credentials to a token service on a loopback address that is not the registry's own")
				}
				img := registry.push(t, unique())
				before := registry.sent.Load()
				for _, a := range agents {
					dir, err := c.pull(t, a, img, user+":"+password)
					require.NoError(t, err)
					requireBlobs(t, dir, c.wants(img))
				}
				require.LessOrEqual(t, float64(registry.sent.Load()-before), 1.05*float64(img.size))
				for _, account := range []string{user + ":wrong", ""} {
					refusals := last.metric(t, "shoal_registry_requests_total", "code", "401")
					dir, err := c.pull(t, last, img, account)
					require.Error(t, err, "%q got a private image", account)
					for _, d := range c.wants(img) {
						require.NoFileExists(t, blobPath(dir, d), "%q got some of a private image", account)
					}
					require.Greater(t, last.metric(t, "shoal_registry_requests_total", "code", "401"), refusals,
						"%q was not refused by the agent: %v", account, err)
				}
			})
		}
	}
}

// skopeo, as on a machine without mirror configuration.
func skopeo(t *testing.T, a *agent, img image, account string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	args := []string{"copy", "--src-tls-verify=false"}
	if account != "" {
		args = append(args, "--src-creds="+account)
	}
	return dir, tryRun(t, nil, "skopeo", append(args, "docker://"+img.through(a), "oci:"+dir+":image")...)
}

func crane(t *testing.T, a *agent, img image, account string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	env := []string{"DOCKER_CONFIG=" + filepath.Dir(dockerConfig(t, a.front, account))}
	return dir, tryRun(t, env, program(t, "crane"), "pull", "--insecure", "--format=oci", img.through(a), dir)
}

func oras(t *testing.T, a *agent, img image, account string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	return dir, tryRun(t, nil, program(t, "oras"), "copy", "--no-tty", "--from-plain-http",
		"--from-registry-config="+dockerConfig(t, a.front, account), "--to-oci-layout", img.through(a), dir+":image")
}

// podman, with the mirror configuration that shoal-node writes.
func podman(t *testing.T, a *agent, img image, account string) (string, error) {
	t.Helper()
	needsRoot(t)
	dir := shortDir(t)
	mirrors := a.installMirror(t, "cri-o", img.registry.host, "etc/containers/registries.conf.d/zz-shoal.conf")
	// Of the mirrors configuration the main file is read from here; the rest of podman's is the machine's.
	env := []string{"CONTAINERS_REGISTRIES_CONF=" + mirrors}
	args := []string{"--root=" + filepath.Join(dir, "root"), "--runroot=" + filepath.Join(dir, "run"),
		"--storage-driver=vfs"}
	// The mirror's own address is what podman looks a mirror's account up by.
	pull := []string{"pull", "--quiet", "--authfile=" + dockerConfig(t, a.front, account), img.reference()}
	if err := tryRun(t, env, "podman", append(args, pull...)...); err != nil {
		return "", err
	}
	layout := filepath.Join(dir, "layout")
	return layout, tryRun(t, env, "podman", append(args, "save", "--quiet", "--uncompressed", "--format=oci-dir",
		"--output="+layout, img.reference())...)
}

// dockerConfig writes a Docker client's configuration with an account at a registry, or with none.
func dockerConfig(t *testing.T, host, account string) string {
	t.Helper()
	auths := map[string]any{}
	if account != "" {
		auths[host] = map[string]any{"auth": base64.StdEncoding.EncodeToString([]byte(account))}
	}
	text, err := json.Marshal(map[string]any{"auths": auths})
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "config.json")
	require.NoError(t, os.WriteFile(path, text, 0o600))
	return path
}
