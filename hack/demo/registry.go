package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/shoal-cache/shoal/hack/httpget"
	"github.com/shoal-cache/shoal/hack/ports"
)

// serveRegistry is the registry's process: it serves the blobs in dir on addr until ctx ends, and counts the bytes of
// blobs it sends; GET /count tells them.
func serveRegistry(ctx context.Context, addr, dir string) error {
	var sent atomic.Int64
	oci := registry.New(registry.WithBlobHandler(blobFiles(dir)))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /count", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, sent.Load())
	})
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			w = countingWriter{w, &sent}
		}
		oci.ServeHTTP(w, r)
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// blobFiles serves <dir>/sha256/<hex>. The library's own handler for files hashes a blob for every request.
type blobFiles string

func (d blobFiles) path(h v1.Hash) string { return filepath.Join(string(d), h.Algorithm, h.Hex) }

func (d blobFiles) Stat(_ context.Context, _ string, h v1.Hash) (int64, error) {
	info, err := os.Stat(d.path(h))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, registry.ErrNotFound
	}
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (d blobFiles) Get(_ context.Context, _ string, h v1.Hash) (io.ReadCloser, error) {
	f, err := os.Open(d.path(h))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, registry.ErrNotFound
	}
	return f, err
}

type countingWriter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (w countingWriter) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b)
	w.n.Add(int64(n))
	return n, err
}

// registryProcess is the running registry.
type registryProcess struct{ url string }

// startRegistry starts the registry and pushes the image's manifest.
func startRegistry(ctx context.Context, children *processes, dir string, img image) (registryProcess, error) {
	free, err := ports.Loopback(ctx, 1)
	if err != nil {
		return registryProcess{}, err
	}
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(free[0]))
	self, err := os.Executable()
	if err != nil {
		return registryProcess{}, err
	}
	child, err := children.start(ctx, filepath.Join(dir, "registry.log"), self, "registry", addr, img.dir)
	if err != nil {
		return registryProcess{}, err
	}
	reg := registryProcess{url: "http://" + addr}
	err = child.until(ctx, "the registry", func(ctx context.Context) error {
		url := fmt.Sprintf("%s/v2/%s/manifests/%s", reg.url, repository, tag)
		r, err := http.NewRequestWithContext(ctx, http.MethodPut, url, bytes.NewReader(img.manifest))
		if err != nil {
			return err
		}
		r.Header.Set("Content-Type", string(types.OCIManifestSchema1))
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusCreated {
			return fmt.Errorf("PUT %s: %s", url, answer.Status)
		}
		return nil
	})
	return reg, err
}

// count is how many bytes of blobs the registry has sent.
func (r registryProcess) count(ctx context.Context) (int64, error) {
	body, err := httpget.Body(ctx, r.url+"/count")
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(string(body), 10, 64)
}
