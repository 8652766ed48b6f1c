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
// "chaos mallory". Digests are blobs that it claims to have. A liar attacks nobody, and answers with lies.
func (r *Rig) Mallory(ctx context.Context, d time.Duration, digests []string, liar bool) error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("hostile peer: %w", err)
	}
	r.mallories.Add(1)
	log := filepath.Join(r.dir, fmt.Sprintf("mallory.%02d.log", r.mallories.Load()))
	cmd := r.mallory.Plain(ctx, program, "mallory", "-listen", fmt.Sprintf("/ip4/%s/tcp/0", r.mallory.Addr),
		"-peers", strings.Join(r.addresses, ","), "-digests", strings.Join(digests, ","),
		fmt.Sprintf("-liar=%t", liar))
	p, err := proc.Start(cmd, log)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
	err = p.Exited() // it ends by itself where an agent does not speak what it attacks
	p.Kill()
	return err
}
