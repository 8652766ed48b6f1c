package hubtest

import (
	"context"
	"crypto/sha1" //nolint:gosec // git names its objects so
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
)

const (
	// ModelShards is how many large files Model makes.
	ModelShards = 4
	// ModelSmall is how many small files Model makes.
	ModelSmall = 7
	// parallelFiles is how many files huggingface_hub downloads at a time.
	parallelFiles = 8
)

// Model puts a model on the hub: a few large files of about size bytes together, and some small ones. It gives the
// bytes of the large ones.
func (h *Hub) Model(id string, size int64) (large int64) {
	files := map[string]File{}
	for i := range ModelShards {
		n := size/ModelShards + int64(i)
		large += n
		files[fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, ModelShards)] = File{Data: Random(uint64(i)+1, n),
			LFS: true}
	}
	for i := range ModelSmall {
		files[fmt.Sprintf("config-%d.json", i)] = File{Data: Text(fmt.Sprintf(`{"part": %d}`, i))}
	}
	h.Repo("models", id).Commit("main", files)
	return large
}

// Snapshot asks a hub, or a front of it, for a model as snapshot_download of huggingface_hub 1.28 does: all files of
// main, several at a time. It checks each against its name at the hub and keeps nothing. came is told of bytes of
// files, from several goroutines.
func Snapshot(ctx context.Context, endpoint, id string, came func(n int)) (commit string, err error) {
	var info struct {
		SHA string `json:"sha"`
	}
	if err := askJSON(ctx, endpoint+"/api/models/"+id+"/revision/main", &info); err != nil {
		return "", err
	}
	var tree []struct{ Type, Path string }
	if err := askJSON(ctx, endpoint+"/api/models/"+id+"/tree/"+info.SHA+"?recursive=true&expand=false",
		&tree); err != nil {
		return "", err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallelFiles)
	for _, e := range tree {
		if e.Type == "file" {
			group.Go(func() error {
				return download(ctx, endpoint+"/"+id+"/resolve/"+info.SHA+"/"+escape(e.Path), came)
			})
		}
	}
	return info.SHA, group.Wait()
}

func askJSON(ctx context.Context, url string, into any) error {
	resp, err := send(ctx, http.DefaultClient, http.MethodGet, url)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	return json.NewDecoder(resp.Body).Decode(into)
}

// download asks for a file's header, then for the file, and checks it.
func download(ctx context.Context, url string, came func(n int)) error {
	head, err := send(ctx, within, http.MethodHead, url)
	if err != nil {
		return err
	}
	_ = head.Body.Close()
	name, length := head.Header.Get("X-Linked-Etag"), head.Header.Get("X-Linked-Size")
	if name == "" {
		name, length = head.Header.Get("Etag"), head.Header.Get("Content-Length")
	}
	size, err := strconv.ParseInt(length, 10, 64)
	if err != nil {
		return fmt.Errorf("HEAD %s: size: %w", url, err)
	}
	resp, err := send(ctx, http.DefaultClient, http.MethodGet, url)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	var sum hash.Hash
	if name = strings.Trim(name, `"`); len(name) == 2*sha256.Size {
		sum = sha256.New()
	} else {
		sum = sha1.New() //nolint:gosec // as above
		_, _ = fmt.Fprintf(sum, "blob %d\x00", size)
	}
	n, err := io.Copy(sum, &told{resp.Body, came})
	switch {
	case err != nil:
		return fmt.Errorf("GET %s: %w", url, err)
	case n != size || hex.EncodeToString(sum.Sum(nil)) != name:
		return fmt.Errorf("GET %s: %d bytes that are not those of %s, which has %d", url, n, name, size)
	}
	return nil
}

// told tells how much is read.
type told struct {
	io.Reader
	came func(n int)
}

func (t *told) Read(p []byte) (int, error) {
	n, err := t.Reader.Read(p)
	t.came(n)
	return n, err
}

// within follows relative redirects alone, as clients do for a header.
var within = &http.Client{CheckRedirect: func(r *http.Request, _ []*http.Request) error {
	if strings.HasPrefix(r.Response.Header.Get("Location"), "/") {
		return nil
	}
	return http.ErrUseLastResponse
}}

func send(ctx context.Context, c *http.Client, method, url string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= http.StatusBadRequest {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("%s %s: %s", method, url, resp.Status)
	}
	return resp, nil
}
