package clients

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/hack/httpget"
)

// A blob that an agent holds is an ordinary UnixFS file, which any IPFS client can fetch by its CID.
func TestKuboFetchesABlobByItsCID(t *testing.T) {
	t.Parallel()
	program(t, "ipfs")
	registry := startRegistry(t, "images.test", nil)
	agent := startAgents(t, registry, "")[0]
	img, digest, data := registry.pushBlob(t, unique(), 7*mib+12345)
	got, err := httpget.Body(t.Context(), img.blobURL(agent, digest))
	require.NoError(t, err)
	require.Equal(t, data, got)

	// A blob is listed once it is committed, which is soon after its last byte went out.
	var cid string
	eventually(t, startTimeout, func() error {
		var blobs []struct {
			Digest string `json:"digest"`
			CID    string `json:"cid"`
		}
		if err := agent.view(t.Context(), "blobs", &blobs); err != nil {
			return err
		}
		for _, b := range blobs {
			if b.Digest == digest.String() {
				cid = b.CID
				return nil
			}
		}
		return errors.New("the blob is not in the agent's list")
	})

	ipfs := startKubo(t)
	ipfs(t, "swarm", "connect", agent.swarm)
	require.Equal(t, string(data), ipfs(t, "cat", "--timeout=1m", cid), "kubo's bytes are others")
	ipfs(t, "pin", "add", "--timeout=1m", cid)
	t.Logf("kubo fetched %s: %d bytes, equal to %s", cid, len(data), digest)
}

// startKubo starts a daemon of kubo that knows no peers and asks no router, and returns its client.
func startKubo(t *testing.T) func(t *testing.T, args ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ipfs")
	env := []string{"IPFS_PATH=" + dir, "IPFS_TELEMETRY=off"}
	ipfs := func(t *testing.T, args ...string) string {
		t.Helper()
		out, err := run(t.Context(), env, program(t, "ipfs"), args...)
		require.NoError(t, err)
		return out
	}
	ipfs(t, "init", "--empty-repo")
	host, port, err := net.SplitHostPort(freeAddress(t))
	require.NoError(t, err)
	configure(t, filepath.Join(dir, "config"), map[string]any{
		"Bootstrap":                      []string{},
		"AutoConf.Enabled":               false,
		"AutoTLS.Enabled":                false,
		"Discovery.MDNS.Enabled":         false,
		"Swarm.DisableNatPortMap":        true,
		"Swarm.RelayClient.Enabled":      false,
		"Swarm.Transports.Network.Relay": false,
		"Swarm.EnableHolePunching":       false,
		"AutoNAT.ServiceMode":            "disabled",
		"Routing.Type":                   "none",
		"Routing.DelegatedRouters":       []string{},
		"DNS.Resolvers":                  map[string]string{},
		"Ipns.DelegatedPublishers":       []string{},
		"Addresses.Swarm":                []string{"/ip4/127.0.0.1/tcp/0"},
		"Addresses.API":                  "/ip4/127.0.0.1/tcp/" + port,
		"Addresses.Gateway":              []string{},
	})
	// Its client would open the repository itself where it finds no daemon, and so shut the daemon out.
	start(t, env, func(ctx context.Context) error {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(host, port))
		if err != nil {
			return err
		}
		return c.Close()
	}, program(t, "ipfs"), "daemon")
	return ipfs
}

// configure sets keys, whose parts are separated by dots, of a JSON file.
func configure(t *testing.T, path string, keys map[string]any) {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	var root map[string]any
	require.NoError(t, json.Unmarshal(text, &root))
	for key, value := range keys {
		parts := strings.Split(key, ".")
		table, last := root, len(parts)-1
		for _, part := range parts[:last] {
			next, ok := table[part].(map[string]any)
			if !ok {
				next = map[string]any{}
				table[part] = next
			}
			table = next
		}
		table[parts[last]] = value
	}
	text, err = json.Marshal(root)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, text, 0o600))
}
