package rig

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
)

// Pin pins blobs in the store of a node, whose agent is stopped for it and started again.
func (n *Node) Pin(ctx context.Context, program string, digests []string) error {
	n.Stop()
	cmd := exec.CommandContext(ctx, program, append([]string{"-store", n.store()}, digests...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pin on node %d: %w: %s", n.Index, err, bytes.TrimSpace(out))
	}
	return n.Start(ctx)
}
