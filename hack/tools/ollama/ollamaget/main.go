// Command ollamaget downloads the blobs of a model by Ollama's own transfer package from the registry that it is given,
// as "ollama pull --insecure" does for models of tensors, and prints where they are. The package checks each digest.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/ollama/ollama/x/imagegen/transfer"
)

func main() {
	if len(os.Args) != 5 {
		fmt.Fprintln(os.Stderr, "usage: ollamaget http://HOST:PORT NAMESPACE/MODEL TAG FOLDER")
		os.Exit(2)
	}
	if err := pull(context.Background(), os.Args[1], os.Args[2], os.Args[3], os.Args[4]); err != nil {
		fmt.Fprintln(os.Stderr, "ollamaget:", err)
		os.Exit(1)
	}
}

func pull(ctx context.Context, registry, model, tag, folder string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, registry+"/v2/"+model+"/manifests/"+tag, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/vnd.docker.distribution.manifest.v2+json")
	req.Header.Set("User-Agent", "ollama-transfer/1.0")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("manifest: %s %s: %w", resp.Status, data, err)
	}
	type blob struct {
		Digest string
		Size   int64
	}
	var manifest struct {
		Config blob
		Layers []blob
	}
	if err := json.Unmarshal(data, &manifest); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	o := transfer.DownloadOptions{BaseURL: registry, Repository: model, DestDir: folder}
	for _, b := range append(manifest.Layers, manifest.Config) {
		o.Blobs = append(o.Blobs, transfer.Blob{Digest: b.Digest, Size: b.Size})
	}
	if err := transfer.Download(ctx, o); err != nil {
		return err
	}
	for _, b := range o.Blobs {
		fmt.Println(filepath.Join(folder, strings.Replace(b.Digest, ":", "-", 1)))
	}
	return nil
}
