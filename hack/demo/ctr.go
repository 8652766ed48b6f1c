package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
)

// containerd is a containerd with directories and a socket of its own.
type containerd struct {
	socket, hosts string
	img           image
}

// startContainerd starts one that pulls through the agent, or returns nil where that is not wanted or not possible. The
// mirror is configured as on any node, by shoal-node.
func startContainerd(ctx context.Context, children *processes, o options, dir string, a *agent,
	img image) (*containerd, error) {
	if o.ctr == "no" {
		return nil, nil
	}
	_, missing := exec.LookPath("containerd")
	_, noClient := exec.LookPath("ctr")
	if reason := errors.Join(missing, noClient); reason != nil || os.Geteuid() != 0 {
		if o.ctr == "yes" {
			return nil, fmt.Errorf("containerd cannot be run here: "+
				"it needs root and the programs containerd and ctr: %w", reason)
		}
		say("without containerd: it needs root and the programs containerd and ctr")
		return nil, nil
	}

	home := filepath.Join(dir, "containerd")
	root := filepath.Join(home, "node")
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	install := exec.CommandContext(ctx, o.node, "mirror", "install", "--runtime=containerd",
		"--endpoint=http://"+a.registry,
		"--registry="+host, "--root="+root, "--state-dir="+filepath.Join(home, "mirror"))
	if out, err := install.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("shoal-node mirror install: %w: %s", err, out)
	}
	c := &containerd{socket: filepath.Join(home, "containerd.sock"),
		hosts: filepath.Join(home, "node/etc/containerd/certs.d"), img: img}
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n"+
		"[grpc]\naddress = %q\n[ttrpc]\naddress = %q\n",
		filepath.Join(home, "root"), filepath.Join(home, "state"), c.socket, c.socket+".ttrpc")
	path := filepath.Join(home, "config.toml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return nil, err
	}
	child, err := children.start(ctx, filepath.Join(dir, "containerd.log"), "containerd", "--config", path)
	if err != nil {
		return nil, err
	}
	return c, child.until(ctx, "containerd", func(ctx context.Context) error {
		_, err := c.ctr(ctx, "version")
		return err
	})
}

// pull fetches the image into containerd's content store, which takes only what matches its digest, and looks that all
// of it is there.
func (c *containerd) pull(ctx context.Context) (pulled, error) {
	if _, err := c.ctr(ctx, "content", "fetch", "--hosts-dir", c.hosts,
		fmt.Sprintf("%s/%s:%s", host, repository, tag)); err != nil {
		return pulled{}, err
	}
	listed, err := c.ctr(ctx, "content", "ls", "-q")
	if err != nil {
		return pulled{}, err
	}
	p := pulled{Digest: digest.FromBytes(c.img.manifest).String()}
	if !strings.Contains(listed, p.Digest) {
		return p, fmt.Errorf("containerd does not hold the manifest %s", p.Digest)
	}
	for _, b := range c.img.blobs {
		if !strings.Contains(listed, b.Digest.String()) {
			return p, fmt.Errorf("containerd does not hold %s", b.Digest)
		}
		p.Bytes += b.Size
	}
	return p, nil
}

func (c *containerd) ctr(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "ctr", append([]string{"--address", c.socket}, args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("ctr %s: %w: %s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}
