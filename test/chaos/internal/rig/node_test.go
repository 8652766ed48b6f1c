package rig

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestEvicted_IsWhatAllProcessesOfANodeHaveSaidSince(t *testing.T) {
	t.Parallel()
	n := &Node{dir: filepath.Join(t.TempDir(), "node03")}
	for name, log := range map[string]string{
		".01.log": `{"time":"2026-11-29T03:00:00Z","level":"INFO","msg":"evicted a blob","digest":"sha256:before"}
{"time":"2026-11-29T03:02:00Z","level":"INFO","msg":"evicted a blob","digest":"sha256:after"}
{"time":"2026-11-29T03:02:00Z","level":"INFO","msg":"evicted a bl`,
		".02.log": `{"time":"2026-11-29T03:03:00Z","level":"INFO","msg":"evicted a blob","digest":"sha256:later"}
{"time":"2026-11-29T03:03:00Z","level":"INFO","msg":"agent started","digest":"sha256:other"}
`,
	} {
		require.NoError(t, os.WriteFile(n.dir+name, []byte(log), 0o600))
	}
	evicted, err := n.Evicted(time.Date(2026, 11, 29, 3, 1, 0, 0, time.UTC))
	require.NoError(t, err)
	require.Equal(t, map[string]bool{"sha256:after": true, "sha256:later": true}, evicted)
}
