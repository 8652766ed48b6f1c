package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/node/internal/admin"
	"github.com/shoal-cache/shoal/node/internal/config"
)

// The administrator's socket stands in a folder of the store that the agent's user alone may enter. What is asked there
// has no credentials: whoever reaches it could read the store's files as well.
func socketOf(c *config.Config) string { return filepath.Join(c.Store.Path, "admin", "socket") }

// contentsServer serves the administrator's socket. Where it cannot be made (its path may be too long for one) the
// agent does without.
func (n *node) contentsServer(ctx context.Context) (s server, ok bool) {
	l, err := listenPrivately(ctx, socketOf(n.config))
	if err != nil {
		n.log.Warn("shoal-node get and add do not work here", "error", err)
		return server{}, false
	}
	return server{name: "contents", address: l.Addr().String(), listener: l, handler: admin.NewContents(admin.Shelf{
		Open: func(d digest.Digest) (io.ReadCloser, int64, error) {
			b, err := n.store.Get(d)
			if err != nil {
				return nil, 0, err
			}
			body, err := b.Range(ctx, 0, b.Size())
			if err != nil {
				return nil, 0, errors.Join(err, b.Close())
			}
			return &bothClosed{body, b}, b.Size(), nil
		},
		Put: n.store.Put,
	}, n.log.With("part", "admin"))}, true
}

// bothClosed is a body that closes what it is a part of too.
type bothClosed struct {
	io.ReadCloser
	whole io.Closer
}

func (b *bothClosed) Close() error { return errors.Join(b.ReadCloser.Close(), b.whole.Close()) }

// listenPrivately listens at a socket in a folder that nobody else may enter.
func listenPrivately(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) { // of an agent that was killed
		return nil, err
	}
	var lc net.ListenConfig
	return lc.Listen(ctx, "unix", path)
}

func contentsCommands(load loader) []*cobra.Command {
	var file string
	get := load.command(&cobra.Command{
		Use: "get DIGEST", Short: "Write content that this machine holds to a file",
		Args:    view.Arguments(1, 1, "-o FILE names the file to write"),
		Example: "  shoal-node get sha256:… -o layer.tar\n  shoal-node get sha256:… -o - | tar t",
	}, func(cmd *cobra.Command, c *config.Config, args []string) error {
		return get(cmd.Context(), socketOf(c), args[0], file, cmd.OutOrStdout())
	})
	hideAllBut(get, "store-path")
	get.Flags().StringVarP(&file, "output", "o", "", "the `file` to write; default, or -: standard output")
	var name string
	var size int64
	add := load.command(&cobra.Command{
		Use: "add FILE", Short: "Put a file into the cache, under its digest, and print that",
		Args: view.Arguments(1, 1),
		Long: `add puts a file into the cache of this machine as a blob, from where every admitted machine takes it by
its digest. It is evicted like any other. With - for FILE it reads standard input, and wants --digest and --size.`,
		Example: "  shoal-node add model.safetensors",
	}, func(cmd *cobra.Command, c *config.Config, args []string) error {
		body, d, n, err := toAdd(args[0], name, size, cmd.InOrStdin())
		if err != nil {
			return err
		}
		defer func() { _ = body.Close() }()
		if err := add(cmd.Context(), socketOf(c), d, body, n); err != nil {
			return err
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), d)
		return err
	})
	hideAllBut(add, "store-path")
	add.Flags().StringVar(&name, "digest", "", "of what comes from standard input")
	add.Flags().Int64Var(&size, "size", -1, "of what comes from standard input, in bytes")
	return []*cobra.Command{get, add}
}

// toAdd opens what is to be added, and tells its digest and size.
func toAdd(file, name string, size int64, in io.Reader) (io.ReadCloser, digest.Digest, int64, error) {
	if file == "-" {
		if name == "" || size < 0 {
			return nil, "", 0, errors.New("add -: standard input is not read twice, so name its --digest and --size")
		}
		return io.NopCloser(in), digest.Digest(name), size, nil
	}
	if name != "" || size >= 0 {
		return nil, "", 0, errors.New("add FILE: --digest and --size are for standard input")
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, "", 0, err
	}
	d, n, err := view.Sum(f)
	if err != nil {
		return nil, "", 0, errors.Join(err, f.Close())
	}
	return f, d, n, nil
}

func get(ctx context.Context, socket, name, file string, out io.Writer) error {
	if err := view.Saved(file, out); err != nil {
		return err
	}
	d, err := view.DigestNamed(program, name)
	if err != nil {
		return err
	}
	resp, err := askSocket(ctx, socket, http.MethodGet, d, nil, 0)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	return view.Save(file, out, d, resp.Body)
}

func add(ctx context.Context, socket string, d digest.Digest, body io.Reader, size int64) error {
	resp, err := askSocket(ctx, socket, http.MethodPut, d, body, size)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// maxRefusal bounds what is read of a refusal.
const maxRefusal = 4 << 10

func askSocket(ctx context.Context, socket, method string, d digest.Digest, body io.Reader,
	size int64) (*http.Response, error) {
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn,
		error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", socket)
	}, ExpectContinueTimeout: time.Minute}}
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+view.ContentsPath+d.String(), body)
	if err != nil {
		return nil, err
	}
	req.ContentLength = size
	if size == 0 {
		req.Body = http.NoBody
	} else if body != nil {
		req.Header.Set("Expect", "100-continue") // so that what is refused is not sent
	}
	resp, err := client.Do(req)
	if dial, ok := errors.AsType[*net.OpError](err); ok && dial.Op == "dial" {
		return nil, fmt.Errorf("no agent answers at %s (%w): does it run (systemctl status shoal-node), is this its "+
			"store.path, and are you its user?", socket, dial.Err)
	}
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= http.StatusBadRequest {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
		_ = resp.Body.Close()
		if resp.StatusCode == http.StatusNotFound {
			return nil, fmt.Errorf("this machine does not hold %s", d)
		}
		return nil, errors.New(strings.TrimSpace(string(said)))
	}
	return resp, nil
}
