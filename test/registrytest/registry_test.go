package registrytest_test

import (
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/shoal-cache/shoal/test/internal/badregistry"
	"github.com/shoal-cache/shoal/test/internal/origin"
	"github.com/shoal-cache/shoal/test/registrytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSuite_EveryRegistryForTestsPasses(t *testing.T) {
	t.Parallel()
	t.Run("in memory", func(t *testing.T) {
		t.Parallel()
		r := registrytest.New(t)
		image, err := random.Image(1000, 2)
		require.NoError(t, err)
		r.Push(t, "team/app:v1", image)
		registrytest.Suite(t, r, "team/app", "v1", registrytest.Closure(t, image)[0])
	})
	t.Run("of files", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		image, err := origin.Write(dir, "team/app", "v1", []origin.Layer{{Seed: 1, Size: 100_000}, {Seed: 2, Size: 10}})
		require.NoError(t, err)
		registrytest.Suite(t, origin.NewServer(dir), "team/app", "v1", image.Digest)
	})
	t.Run("that misbehaves, while it does not", func(t *testing.T) {
		t.Parallel()
		image, err := badregistry.NewImage("team/app", false, 1, 1000, 10)
		require.NoError(t, err)
		r := badregistry.New()
		r.Add(image)
		registrytest.Suite(t, r, "team/app", badregistry.Tag, image.Digest)
	})
}
