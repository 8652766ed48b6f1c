package registry_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	ggcrv1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/gate"
	"github.com/shoal-cache/shoal/node/internal/registry"
	"github.com/shoal-cache/shoal/node/internal/upstream"
)

// htpasswd lets in alice with the password "secret".
const htpasswd = "alice:$2a$04$.8XyiBn6tcYwnYbDOYlp7u.691tnQMjN/1fHjHX2od1R7ehdY2zhq\n"

// startDistribution runs the distribution project's registry, as Debian packages it, and gives its address.
func startDistribution(t *testing.T) string {
	t.Helper()
	binary, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("docker-registry (Debian's package of that name) is not installed")
	}
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "htpasswd"), []byte(htpasswd), 0o600))
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := free.Addr().String()
	require.NoError(t, free.Close())
	require.NoError(t, os.WriteFile(filepath.Join(dir, "config.yml"), fmt.Appendf(nil, `
version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: %[1]s/data}}
http: {addr: %[2]q}
auth: {htpasswd: {realm: images, path: %[1]s/htpasswd}}
`, dir, address), 0o600))
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, binary, "serve", filepath.Join(dir, "config.yml"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // killed
	})
	require.Eventually(t, func() bool {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return false
		}
		return conn.Close() == nil
	}, 20*time.Second, 20*time.Millisecond, "docker-registry does not listen: %s", &out)
	return address
}

func TestARealClientPullsFromTheDistributionRegistryWithItsPassword(t *testing.T) {
	t.Parallel()
	address := startDistribution(t)
	password := &authn.Basic{Username: "alice", Password: "secret"}
	image, err := random.Image(1<<20, 3)
	require.NoError(t, err)
	origin, err := name.ParseReference(address + "/team/app:v1")
	require.NoError(t, err)
	plain := &http.Transport{}
	defer plain.CloseIdleConnections()
	require.NoError(t, remote.Write(origin, image, remote.WithAuth(password), remote.WithTransport(plain)))

	client, err := upstream.New(upstream.Options{
		Upstreams: []upstream.Upstream{{Registry: images, Endpoints: []string{"http://" + address}}},
	})
	require.NoError(t, err)
	defer client.Close()
	held := &fetcher{upstream: client, held: make(map[digest.Digest][]byte)}
	g, err := gate.New(gate.Options{Cache: held})
	require.NoError(t, err)
	held.source, held.prove = g.Observe(client), g.Prove
	front, err := registry.New(registry.Options{Fetcher: held, Upstream: client, Gate: g, DefaultRegistry: images})
	require.NoError(t, err)
	server := httptest.NewServer(front)
	defer server.Close()
	mirror, err := name.ParseReference(strings.TrimPrefix(server.URL, "http://") + "/team/app:v1")
	require.NoError(t, err)

	for range 2 { // cold, then warm
		_, err = remote.Image(mirror, remote.WithTransport(plain))
		require.ErrorContains(t, err, "UNAUTHORIZED")
		_, err = remote.Image(mirror, remote.WithAuth(&authn.Basic{Username: "alice", Password: "wrong"}),
			remote.WithTransport(plain))
		require.ErrorContains(t, err, "UNAUTHORIZED")
		got, err := remote.Image(mirror, remote.WithAuth(password), remote.WithTransport(plain))
		require.NoError(t, err)
		requireSameImage(t, image, got)
	}
	tags, err := remote.List(mirror.Context(), remote.WithAuth(password), remote.WithTransport(plain))
	require.NoError(t, err)
	require.Equal(t, []string{"v1"}, tags)
}

func requireSameImage(t *testing.T, want, got ggcrv1.Image) {
	t.Helper()
	a, err := want.RawManifest()
	require.NoError(t, err)
	b, err := got.RawManifest()
	require.NoError(t, err)
	require.Equal(t, string(a), string(b))
	layers, err := got.Layers()
	require.NoError(t, err)
	for _, l := range layers {
		d, err := l.Digest()
		require.NoError(t, err)
		rc, err := l.Compressed()
		require.NoError(t, err)
		data, err := io.ReadAll(rc)
		require.NoError(t, err)
		require.NoError(t, rc.Close())
		require.Equal(t, d.String(), digest.FromBytes(data).String())
	}
}
