package clients

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/test/registrytest"
)

// weights are bytes that nothing packs.
func weights(seed byte, n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(data) // it never fails
	return data
}

// artifact puts a manifest of one config and one layer at models.test/team/model:1, or where place says.
func artifact(t *testing.T, r *registrytest.Registry, repository, mediaType, artifactType, configType, layerType string,
	layer []byte) digest.Digest {
	t.Helper()
	config := []byte(`{"descriptor":{"name":"tiny"}}`)
	extra := ""
	if artifactType != "" {
		extra = fmt.Sprintf(`,"artifactType":%q`, artifactType)
	}
	r.PushManifest(t, repository, "1", mediaType, fmt.Sprintf(
		`{"schemaVersion":2,"mediaType":%q%s,"config":{"mediaType":%q,"digest":%q,"size":%d},`+
			`"layers":[{"mediaType":%q,"digest":%q,"size":%d,"annotations":{`+
			`"org.cncf.model.filepath":"model.safetensors","org.opencontainers.image.title":"model.safetensors"}}]}`,
		mediaType, extra, configType, r.Add(config), len(config), layerType, r.Add(layer), len(layer)))
	return digest.FromBytes(layer)
}

// modelAgents are two agents that know each other, and a registry that has no other name for what names none.
func modelAgents(t *testing.T, r *registrytest.Registry, registry string) []*agent {
	t.Helper()
	o := agentOptions{defaultRegistry: registry,
		upstreams: []any{map[string]any{"registry": registry, "endpoints": []string{r.URL}}}}
	return startAgentsWith(t, o, o)
}

func TestModel_OllamasTransferPackagePulls(t *testing.T) { //nolint:paralleltest // it starts agents of its own, and the processors are few
	ollamaget := program(t, "ollamaget")
	r, data := registrytest.New(t), weights(1, 20<<20+3)
	artifact(t, r, "library/tiny", "application/vnd.docker.distribution.manifest.v2+json", "",
		"application/vnd.docker.container.image.v1+json", "application/vnd.ollama.image.tensor", data)
	for _, a := range modelAgents(t, r, "registry.ollama.test") {
		dir := t.TempDir()
		out, err := run(t.Context(), nil, ollamaget, "http://"+a.front, "library/tiny", "1", dir)
		require.NoError(t, err)
		path, _, _ := strings.Cut(strings.TrimSpace(out), "\n")
		got, err := os.ReadFile(path)
		require.NoError(t, err)
		require.True(t, bytes.Equal(data, got))
	}
	require.Less(t, float64(r.Bytes.Load()), 1.05*float64(len(data)), "the second agent has it from the first")
}

func TestModel_CraneAndOrasPullModelsInRegistries(t *testing.T) { //nolint:paralleltest // it starts agents of its own, and the processors are few
	for _, kind := range []struct{ name, artifact, config, layer string }{
		{"ModelPack", "application/vnd.cncf.model.manifest.v1+json", "application/vnd.cncf.model.config.v1+json",
			"application/vnd.cncf.model.weight.v1.raw"},
		{"KitOps", "", "application/vnd.kitops.modelkit.config.v1+json",
			"application/vnd.kitops.modelkit.model.v1.tar"},
	} {
		t.Run(kind.name, func(t *testing.T) {
			r, data := registrytest.New(t), weights(2, 9<<20+1)
			layer := artifact(t, r, "team/model", v1.MediaTypeImageManifest, kind.artifact, kind.config, kind.layer,
				data)
			agents := modelAgents(t, r, "models.test")
			for i, c := range [][]string{
				{program(t, "crane"), "pull", "--insecure", "--format=oci"},
				{program(t, "oras"), "copy", "--no-tty", "--from-plain-http", "--to-oci-layout"},
			} {
				dir := filepath.Join(t.TempDir(), "layout")
				target := dir
				if i == 1 {
					target += ":1"
				}
				command := append(slices.Clone(c), agents[i].front+"/team/model:1", target)
				require.NoError(t, tryRun(t, nil, command[0], command[1:]...))
				got, err := os.ReadFile(filepath.Join(dir, "blobs", "sha256", layer.Encoded()))
				require.NoError(t, err)
				require.True(t, bytes.Equal(data, got))
			}
			require.Less(t, float64(r.Bytes.Load()), 1.05*float64(len(data)), "oras has it from crane's agent")
		})
	}
}
