package manager_test

import (
	"context"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/operator/internal/manager"
	"github.com/shoal-cache/shoal/test/hubtest"
)

func TestFilesOfAHubAreKeptAtACommitThatFollowsTheirBranch(t *testing.T) {
	h := hubtest.New()
	t.Cleanup(h.Close)
	repo := h.Repo("models", "org/m")
	first := repo.Commit("main", map[string]hubtest.File{"model.gguf": {Data: hubtest.Random(1, 1<<20), LFS: true}})
	endpoint, err := url.Parse(h.URL())
	require.NoError(t, err)
	w := newWorldOf(t, 3, 3, func(ctx context.Context, config *rest.Config) error {
		o := options()
		o.Hub = endpoint
		config.QPS, config.Burst = 500, 1000
		mgr, err := manager.New(ctx, config, o)
		if err != nil {
			return err
		}
		return mgr.Start(ctx)
	})
	p := w.pin("model", "", func(s *v1alpha1.ArtifactPinSpec) {
		s.Artifacts = []v1alpha1.Artifact{{Hub: &v1alpha1.HubArtifact{Repository: "org/m", Files: []string{"*.gguf"}}}}
	})
	eventually(w, p, "three copies", isReady)
	require.Equal(t, first, p.Status.Artifacts[0].Hub.Commit)
	require.Equal(t, int64(1<<20), p.Status.Artifacts[0].Size)
	require.Equal(t, "hub:org/m@main *.gguf", p.Status.Summary)
	require.Equal(t, v1alpha1.ReasonCurrent, reasonOf(p, v1alpha1.ConditionUpToDate))
	require.Len(t, w.fleet.Holders(string(p.UID)), 3)

	second := repo.Commit("main", map[string]hubtest.File{"model.gguf": {Data: hubtest.Random(2, 2<<20), LFS: true}})
	w.edit(p, func(s *v1alpha1.ArtifactPinSpec) { s.Priority = 1 }) // has it resolved now
	eventually(w, p, "the commit that the branch is now", func(p *v1alpha1.ArtifactPin) bool {
		return isReady(p) && p.Status.Artifacts[0].Hub.Commit == second && p.Status.Artifacts[0].Size == 2<<20
	})

	w.edit(p, func(s *v1alpha1.ArtifactPinSpec) { s.Artifacts[0].Hub.Files = []string{"*.safetensors"} })
	eventually(w, p, "that nothing matches", func(p *v1alpha1.ArtifactPin) bool {
		return reasonOf(p, v1alpha1.ConditionResolved) == v1alpha1.ReasonNotFoundUpstream
	})
}
