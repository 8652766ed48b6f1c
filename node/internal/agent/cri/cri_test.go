package cri_test

import (
	"context"
	"net"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/shoal-cache/shoal/api/pullsecret"
	"github.com/shoal-cache/shoal/node/internal/agent/cri"
	"github.com/shoal-cache/shoal/node/internal/agent/pin"
	"github.com/shoal-cache/shoal/node/internal/content"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// runtime is an ImageService that pulls from a registry of names and digests.
type runtime struct {
	runtimev1.UnimplementedImageServiceServer
	registry map[string]string // reference -> repository@digest
	password string
	images   map[string]string
	pulls    int
}

func (r *runtime) ImageStatus(_ context.Context,
	req *runtimev1.ImageStatusRequest) (*runtimev1.ImageStatusResponse, error) {
	d, ok := r.images[req.Image.Image]
	if !ok {
		return &runtimev1.ImageStatusResponse{}, nil
	}
	return &runtimev1.ImageStatusResponse{Image: &runtimev1.Image{Id: "sha256:config", RepoDigests: []string{d}}}, nil
}

func (r *runtime) PullImage(_ context.Context, req *runtimev1.PullImageRequest) (*runtimev1.PullImageResponse, error) {
	r.pulls++
	// containerd shows the mirror no credentials that name another server (ParseAuth in internal/cri/server/images).
	auth := req.GetAuth()
	if auth.GetServerAddress() != "" || auth.GetPassword() != r.password {
		return nil, status.Error(codes.PermissionDenied, "pull access denied")
	}
	r.images[req.Image.Image] = r.registry[req.Image.Image]
	return &runtimev1.PullImageResponse{ImageRef: "sha256:config"}, nil
}

func (r *runtime) ListImages(context.Context, *runtimev1.ListImagesRequest) (*runtimev1.ListImagesResponse, error) {
	list := &runtimev1.ListImagesResponse{}
	for _, d := range r.images {
		list.Images = append(list.Images, &runtimev1.Image{RepoDigests: []string{d}})
	}
	list.Images = append(list.Images, &runtimev1.Image{RepoTags: []string{"docker.io/library/imported:1"}})
	return list, nil
}

// versioned is a RuntimeService that tells its version.
type versioned struct {
	runtimev1.UnimplementedRuntimeServiceServer
}

func (versioned) Version(context.Context, *runtimev1.VersionRequest) (*runtimev1.VersionResponse, error) {
	return &runtimev1.VersionResponse{RuntimeName: "containerd", RuntimeVersion: "v2.4.2"}, nil
}

func TestPulled_ListsWhatHasADigestOfARepository(t *testing.T) {
	t.Parallel()
	images := serve(t, &runtime{images: map[string]string{"a.example/x:1": "a.example/x@sha256:1",
		"b.example/y:1": "b.example/y@sha256:2"}})
	pulled, err := images.Pulled(t.Context())
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"a.example/x@sha256:1", "b.example/y@sha256:2"}, pulled)
}

func TestVersion(t *testing.T) {
	t.Parallel()
	name, version, err := serve(t, &runtime{}).Version(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"containerd", "v2.4.2"}, []string{name, version})
}

func TestLoad(t *testing.T) {
	t.Parallel()
	d, moved := digest.FromString("image"), digest.FromString("moved")
	repo := content.Repository{Registry: "registry.example:5000", Name: "team/app"}
	byTag, byDigest := repo.String()+":1", repo.String()+"@"+d.String()
	for name, c := range map[string]struct {
		image   pin.Image
		runtime runtime
		pulls   int
		holds   string
		err     string
	}{
		"pulls by tag": {
			image:   pin.Image{Repository: repo, Tag: "1", Digest: d},
			runtime: runtime{registry: map[string]string{byTag: byDigest}}, pulls: 1, holds: byTag,
		},
		"pulls by digest where there is no tag": {
			image:   pin.Image{Repository: repo, Digest: d},
			runtime: runtime{registry: map[string]string{byDigest: byDigest}}, pulls: 1, holds: byDigest,
		},
		"shows the pin's credentials": {
			image: pin.Image{Repository: repo, Tag: "1", Digest: d,
				Credential: pullsecret.Credential{Username: "u", Password: "p"}},
			runtime: runtime{registry: map[string]string{byTag: byDigest}, password: "p"}, pulls: 1, holds: byTag,
		},
		"pulls again where the tag names another image": {
			image: pin.Image{Repository: repo, Tag: "1", Digest: d},
			runtime: runtime{
				registry: map[string]string{byTag: byDigest},
				images:   map[string]string{byTag: repo.String() + "@" + moved.String()},
			}, pulls: 1, holds: byTag,
		},
		"fails where the tag has moved": {
			image:   pin.Image{Repository: repo, Tag: "1", Digest: d},
			runtime: runtime{registry: map[string]string{byTag: repo.String() + "@" + moved.String()}}, pulls: 1,
			err: "another digest than " + d.String(),
		},
		"fails where the registry refuses": {
			image:   pin.Image{Repository: repo, Tag: "1", Digest: d},
			runtime: runtime{password: "p"}, pulls: 1, err: "pull access denied",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.runtime.images == nil {
				c.runtime.images = map[string]string{}
			}
			images := serve(t, &c.runtime)
			err := images.Load(t.Context(), c.image)
			require.Equal(t, c.pulls, c.runtime.pulls)
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, byDigest, c.runtime.images[c.holds])
		})
	}
}

func TestHolds(t *testing.T) {
	t.Parallel()
	d := digest.FromString("image")
	repo := content.Repository{Registry: "registry.example:5000", Name: "team/app"}
	byTag, byDigest := repo.String()+":1", repo.String()+"@"+d.String()
	for name, c := range map[string]struct {
		image pin.Image
		holds bool
	}{
		"by tag":               {pin.Image{Repository: repo, Tag: "1", Digest: d}, true},
		"by digest":            {pin.Image{Repository: repo, Digest: d}, true},
		"not by another tag":   {pin.Image{Repository: repo, Tag: "2", Digest: d}, false},
		"not of another image": {pin.Image{Repository: repo, Tag: "1", Digest: digest.FromString("moved")}, false},
	} {
		images := serve(t, &runtime{images: map[string]string{byTag: byDigest, byDigest: byDigest}})
		holds, err := images.Holds(t.Context(), c.image)
		require.NoError(t, err, name)
		require.Equal(t, c.holds, holds, name)
	}
}

func TestLoadFailsWhereThereIsNoRuntime(t *testing.T) {
	t.Parallel()
	images, err := cri.New("unix://" + filepath.Join(t.TempDir(), "none.sock"))
	require.NoError(t, err)
	defer func() { require.NoError(t, images.Close()) }()
	require.ErrorContains(t, images.Load(t.Context(), pin.Image{Digest: digest.FromString("x")}), "none.sock")
}

func serve(t *testing.T, r *runtime) *cri.Images {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cri.sock")
	listener, err := net.Listen("unix", path)
	require.NoError(t, err)
	server := grpc.NewServer()
	runtimev1.RegisterImageServiceServer(server, r)
	runtimev1.RegisterRuntimeServiceServer(server, versioned{})
	served := make(chan struct{})
	go func() { _ = server.Serve(listener); close(served) }()
	images, err := cri.New("unix://" + path)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, images.Close())
		server.Stop()
		<-served
	})
	return images
}
