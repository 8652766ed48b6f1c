// Command pin pins blobs in the store of an agent that does not run. Tests without Kubernetes use it, because only
// Kubernetes makes pins.
//
//	go run ./node/internal/store/pin -store DIRECTORY DIGEST...
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/store"
)

func main() {
	path := flag.String("store", "", "the agent's store.path")
	flag.Parse()
	if err := pin(context.Background(), *path, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "pin:", err)
		os.Exit(1)
	}
}

func pin(ctx context.Context, path string, names []string) error {
	if path == "" || len(names) == 0 {
		return errors.New("want -store and the digests of what to pin")
	}
	pinned := make([]digest.Digest, len(names))
	for i, name := range names {
		var err error
		if pinned[i], err = digest.Parse(name); err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
	}
	s, err := store.Open(ctx, store.Options{Path: path, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	return errors.Join(s.Pin("test", pinned), s.Close())
}
