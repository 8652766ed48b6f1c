// Package cri loads images into the node's container runtime by the Kubernetes Container Runtime Interface, so that a
// pod starts without any pull. The runtime pulls by itself, through the mirror of its node, which has the image
// already.
package cri

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/shoal-cache/shoal/api/pullsecret"
	"github.com/shoal-cache/shoal/node/internal/agent/pin"
)

const (
	// maxMessage bounds an answer of the runtime in bytes, as the kubelet does.
	maxMessage = 16 << 20
	// statusTimeout bounds a question that the runtime answers out of its memory. One that hangs is not to hold up
	// other pins.
	statusTimeout = 10 * time.Second
)

// Images is the runtime's ImageService. It implements pin.Runtime.
type Images struct {
	conn    *grpc.ClientConn
	client  runtimev1.ImageServiceClient
	runtime runtimev1.RuntimeServiceClient
}

var _ pin.Runtime = (*Images)(nil)

// New makes a client of the runtime at a socket such as "unix:///run/containerd/containerd.sock". It connects when it
// is used first. Close ends it.
func New(endpoint string) (*Images, error) {
	// A Unix socket is guarded by its file mode; there is nobody between.
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return nil, fmt.Errorf("container runtime %s: %w", endpoint, err)
	}
	return &Images{
		conn: conn, client: runtimev1.NewImageServiceClient(conn), runtime: runtimev1.NewRuntimeServiceClient(conn),
	}, nil
}

// Close ends the connection.
func (i *Images) Close() error { return i.conn.Close() }

// Load has the runtime pull the image by its tag, or by its digest where it has none. It fails where the runtime, asked
// for the tag, came to another digest: the tag has moved.
func (i *Images) Load(ctx context.Context, image pin.Image) error {
	name := reference(image)
	_, err := i.client.PullImage(ctx, &runtimev1.PullImageRequest{Image: &runtimev1.ImageSpec{Image: name},
		Auth: auth(image)})
	if err != nil {
		return fmt.Errorf("pull %s into the runtime: %w", name, err)
	}
	switch held, err := i.Holds(ctx, image); {
	case err != nil:
		return err
	case !held:
		return fmt.Errorf("pull %s into the runtime: the runtime came to another digest than %s", name, image.Digest)
	}
	return nil
}

// Holds reports whether the runtime has the image under the name that Load gives it, and of this digest.
func (i *Images) Holds(ctx context.Context, image pin.Image) (bool, error) {
	name := reference(image)
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	status, err := i.client.ImageStatus(ctx, &runtimev1.ImageStatusRequest{Image: &runtimev1.ImageSpec{Image: name}})
	if err != nil {
		return false, fmt.Errorf("status of %s in the runtime: %w", name, err)
	}
	return slices.ContainsFunc(status.GetImage().GetRepoDigests(), func(d string) bool {
		return strings.HasSuffix(d, "@"+image.Digest.String())
	}), nil
}

// Pulled lists what the runtime has pulled, each as repository@digest. What was brought to it otherwise has no such
// name.
func (i *Images) Pulled(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	list, err := i.client.ListImages(ctx, &runtimev1.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("images of the runtime: %w", err)
	}
	var all []string
	for _, image := range list.GetImages() {
		all = append(all, image.GetRepoDigests()...)
	}
	return all, nil
}

// Version is what the runtime calls itself, such as containerd and v2.4.2.
func (i *Images) Version(ctx context.Context) (name, version string, err error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	v, err := i.runtime.Version(ctx, &runtimev1.VersionRequest{})
	if err != nil {
		return "", "", fmt.Errorf("version of the runtime: %w", err)
	}
	return v.GetRuntimeName(), v.GetRuntimeVersion(), nil
}

func reference(image pin.Image) string {
	if image.Tag != "" {
		return image.Repository.String() + ":" + image.Tag
	}
	return image.Repository.String() + "@" + image.Digest.String()
}

// auth names no ServerAddress, as the kubelet does not: containerd would show the credentials to that host alone, and
// so not to the mirror of the node.
func auth(image pin.Image) *runtimev1.AuthConfig {
	c := image.Credential
	if c == (pullsecret.Credential{}) {
		return nil
	}
	return &runtimev1.AuthConfig{
		Username: c.Username, Password: c.Password, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken,
	}
}
