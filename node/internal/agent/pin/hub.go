package pin

import (
	"context"
	"fmt"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/node/internal/content"
)

// listHub makes the closure of files of a model hub. Its top is what the hub tells of the commit.
func (a *attempt) listHub(ctx context.Context, art *artifact) error {
	if a.opts.Hub == nil {
		return fmt.Errorf("%w: this agent is no front for a model hub; set hub.enabled in the chart", errNoHub)
	}
	keep := func(path string) bool { return v1alpha1.MatchesFiles(art.Hub.Files, path) }
	repo := art.closure.repo
	var files []content.Request
	list := func(authorization string) (err error) {
		files, err = a.opts.Hub.Files(ctx, repo, art.Tag, art.Hub.Commit, authorization, keep, a.fetches)
		return err
	}
	err := list("")
	if a.fetches && content.Denied(err) {
		err = a.accessTo(repo, true).try(ctx, list)
	}
	if err != nil {
		return fmt.Errorf("list the files: %w", err)
	}
	for _, req := range files {
		if _, err := art.closure.add(req); err != nil {
			return err
		}
	}
	art.top = files[0].Digest
	return nil
}
