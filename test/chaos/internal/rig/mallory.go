package rig

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/shoal-cache/shoal/test/internal/proc"
)

// Mallory lets a hostile peer into the swarm for a while, one that nobody has met: this program's own executable, as
// "chaos mallory". Digests are blobs that it claims to have.
func (r *Rig) Mallory(ctx context.Context, d time.Duration, digests []string) error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("hostile peer: %w", err)
	}
	r.mallories.Add(1)
	log := filepath.Join(r.dir, fmt.Sprintf("mallory.%02d.log", r.mallories.Load()))
	cmd := r.mallory.Plain(ctx, program, "mallory", "-listen", fmt.Sprintf("/ip4/%s/tcp/0", r.mallory.Addr),
		"-peers", strings.Join(r.addresses, ","), "-digests", strings.Join(digests, ","))
	p, err := proc.Start(cmd, log)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
	p.Kill()
	return nil
}
