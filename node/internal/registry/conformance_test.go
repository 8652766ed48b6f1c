package registry_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// The suite of the distribution specification reads, cold, what the registry behind the front holds.
func TestConformsToTheDistributionSpecification(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the suite of the distribution specification")
	}
	t.Parallel()
	w := newWorld(t)
	const repo = "conformance/repo1"
	img := w.origin.pushImage(t, repo, "v1", "x")
	index := w.origin.PushManifest(t, repo, "latest", v1.MediaTypeImageIndex, fmt.Sprintf(
		`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		v1.MediaTypeImageIndex, v1.MediaTypeImageManifest, img.manifest, len(img.raw)))
	empty := w.origin.Add([]byte("{}"))
	referrer := w.origin.PushManifest(t, repo, "", v1.MediaTypeImageManifest, fmt.Sprintf(
		`{"schemaVersion":2,"mediaType":%q,"artifactType":"application/vnd.example","config":{"mediaType":%q,"digest":%q,"size":2},"layers":[],"subject":{"mediaType":%q,"digest":%q,"size":%d}}`,
		v1.MediaTypeImageManifest, v1.MediaTypeEmptyJSON, empty, v1.MediaTypeImageManifest, img.manifest, len(img.raw)))
	server := httptest.NewServer(w.front)
	defer server.Close()

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "../../../hack/conformance.sh", server.URL, repo)
	cmd.Env = append(os.Environ(),
		"OCI_RO_DATA_TAGS=v1 latest",
		fmt.Sprintf("OCI_RO_DATA_MANIFESTS=%s %s %s", img.manifest, index, referrer),
		fmt.Sprintf("OCI_RO_DATA_BLOBS=%s %s %s", img.config, img.layer, empty),
		"OCI_RO_DATA_REFERRERS="+img.manifest.String())
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, name := range []string{"Blob get", "Blob head", "Manifest get by digest", "Manifest get by tag",
		"Manifest head by digest",
		"Manifest head by tag", "Tag listing", "Referrers"} {
		require.Regexp(t, regexp.QuoteMeta(name)+`\.*: +Pass\n`, string(out), "the suite has tried it")
	}
}
