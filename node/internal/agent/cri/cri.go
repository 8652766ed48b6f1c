// Package cri loads images into the node's container runtime by the Kubernetes Container Runtime Interface, so that a pod
// starts without any pull. The runtime pulls by itself, through the mirror of its node, which has the image already.
package cri

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/shoal-cache/shoal/api/pullsecret"
	"github.com/shoal-cache/shoal/node/internal/agent/pin"
)

// maxMessage bounds an answer of the runtime in bytes, as the kubelet does.
const maxMessage = 16 << 20

// Images is the runtime's ImageService. It implements pin.Runtime.
type Images struct {
	conn   *grpc.ClientConn
	client runtimev1.ImageServiceClient
}

var _ pin.Runtime = (*Images)(nil)

// New makes a client of the runtime at a socket such as "unix:///run/containerd/containerd.sock". It connects when it is used
// first. Close ends it.
func New(endpoint string) (*Images, error) {
	// A Unix socket is guarded by its file mode; there is nobody between.
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return nil, fmt.Errorf("container runtime %s: %w", endpoint, err)
	}
	return &Images{conn: conn, client: runtimev1.NewImageServiceClient(conn)}, nil
}

// Close ends the connection.
func (i *Images) Close() error { return i.conn.Close() }

// Load has the runtime hold the image under its tag, or under its digest where it has none. What the runtime holds already
// it does not pull. It fails where the runtime, asked for the tag, came to another digest: the tag has moved.
func (i *Images) Load(ctx context.Context, image pin.Image) error {
	spec := &runtimev1.ImageSpec{Image: reference(image)}
	switch held, err := i.holds(ctx, spec, image); {
	case err != nil:
		return err
	case held:
		return nil
	}
	_, err := i.client.PullImage(ctx, &runtimev1.PullImageRequest{Image: spec, Auth: auth(image)})
	if err != nil {
		return fmt.Errorf("pull %s into the runtime: %w", spec.Image, err)
	}
	switch held, err := i.holds(ctx, spec, image); {
	case err != nil:
		return err
	case !held:
		return fmt.Errorf("pull %s into the runtime: the runtime came to another digest than %s", spec.Image, image.Digest)
	}
	return nil
}

// holds tells whether the runtime has the image under this name and of this digest.
func (i *Images) holds(ctx context.Context, spec *runtimev1.ImageSpec, image pin.Image) (bool, error) {
	status, err := i.client.ImageStatus(ctx, &runtimev1.ImageStatusRequest{Image: spec})
	if err != nil {
		return false, fmt.Errorf("status of %s in the runtime: %w", spec.Image, err)
	}
	return slices.ContainsFunc(status.GetImage().GetRepoDigests(), func(d string) bool {
		return strings.HasSuffix(d, "@"+image.Digest.String())
	}), nil
}

func reference(image pin.Image) string {
	if image.Tag != "" {
		return image.Repository.String() + ":" + image.Tag
	}
	return image.Repository.String() + "@" + image.Digest.String()
}

func auth(image pin.Image) *runtimev1.AuthConfig {
	c := image.Credential
	if c == (pullsecret.Credential{}) {
		return nil
	}
	return &runtimev1.AuthConfig{
		Username: c.Username, Password: c.Password, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken,
		ServerAddress: image.Repository.Registry,
	}
}
