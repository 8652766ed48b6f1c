package store

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// refusing is a connection that is gone.
type refusing struct{}

func (refusing) Write([]byte) (int, error) { return 0, syscall.EPIPE }

func TestSection_TroubleOfTheDiskIsToldFromThatOfAConnection(t *testing.T) {
	t.Parallel()
	// This process has no memory at 0, and reading there is EIO.
	unreadable, err := os.Open("/proc/self/mem")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, unreadable.Close()) })
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, make([]byte, 50), 0o600))
	file, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, file.Close()) })
	for name, c := range map[string]struct {
		file *os.File
		to   io.Writer // nil: it is read
		disk bool
	}{
		"a file that cannot be read, read":   {unreadable, nil, true},
		"a file that cannot be read, sent":   {unreadable, connection(t), true},
		"a file that cannot be read, copied": {unreadable, io.Discard, true},
		"a file that ends early, read":       {file, nil, true},
		"a file that ends early, sent":       {file, connection(t), true},
		"a file whose reader is gone":        {file, refusing{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sec, err := newSection(t.Context(), c.file, 0, 100)
			require.NoError(t, err)
			defer func() { require.NoError(t, sec.Close()) }()
			if c.to == nil {
				_, err = io.ReadAll(onlyReader{sec})
			} else {
				_, err = sec.WriteTo(c.to)
			}
			require.Error(t, err)
			require.Equal(t, c.disk, errors.Is(err, content.ErrStorage), "%v", err)
		})
	}
}

// connection is a connection over TCP, of which the other side reads all.
func connection(t *testing.T) net.Conn {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
	}()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", l.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// So who reads of a fetch that ends in that moment is told why it ended.
func TestSection_OfAFileThatHasJustBeenClosedIsTold(t *testing.T) {
	t.Parallel()
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	require.NoError(t, err)
	require.NoError(t, file.Close())
	_, err = newSection(t.Context(), file, 0, 1)
	require.ErrorIs(t, err, os.ErrClosed)
}
