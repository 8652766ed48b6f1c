package registry_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// What a kubelet's image volume and the clients of ModelPack and KitOps pull: a manifest whose config and layers are of
// types of their own, and layers that are files as they are.
func TestModelPack_AnArtifactIsPulledByItsTagOnce(t *testing.T) {
	t.Parallel()
	for name, types := range map[string]struct{ artifact, config, layer string }{
		"ModelPack": {"application/vnd.cncf.model.manifest.v1+json", "application/vnd.cncf.model.config.v1+json",
			"application/vnd.cncf.model.weight.v1.raw"},
		"KitOps": {"", "application/vnd.kitops.modelkit.config.v1+json", "application/vnd.kitops.modelkit.model.v1.tar"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			weights := make([]byte, 400_000)
			_, _ = rand.NewChaCha8([32]byte{}).Read(weights) // it never fails
			layer := w.origin.Add(weights)
			config := w.origin.Add([]byte(`{"descriptor":{"name":"tiny"}}`))
			raw := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"artifactType":%q,"config":{"mediaType":%q,"digest":%q,"size":30},"layers":[{"mediaType":%q,"digest":%q,"size":%d,"annotations":{"org.cncf.model.filepath":"model.safetensors"}}]}`,
				v1.MediaTypeImageManifest, types.artifact, types.config, config, types.layer, layer, len(weights))
			d := w.origin.PushManifest(t, "team/model", "1", v1.MediaTypeImageManifest, raw)
			for range 2 {
				rep := w.get("/v2/team/model/manifests/1")
				require.Equal(t, http.StatusOK, rep.Code)
				require.Equal(t, raw, rep.Body.String())
				require.Equal(t, d.String(), rep.Header().Get("Docker-Content-Digest"))
				for _, blob := range []string{config.String(), layer.String()} {
					require.Equal(t, http.StatusOK, w.get("/v2/team/model/blobs/"+blob).Code)
				}
			}
			require.True(t, bytes.Equal(weights, w.get("/v2/team/model/blobs/"+layer.String()).Body.Bytes()))
			gets := 0
			for _, r := range w.origin.Requests() {
				if r == "GET /v2/team/model/blobs/"+layer.String() {
					gets++
				}
			}
			require.Equal(t, 1, gets)
		})
	}
}
