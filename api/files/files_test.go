package files

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRead_TakesWhatIsARegularFileOfAnEnd(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	require.NoError(t, os.WriteFile(in("file"), []byte("x"), 0o600))
	require.NoError(t, os.WriteFile(in("empty"), nil, 0o600))
	require.NoError(t, os.Symlink("file", in("link"))) // as Kubernetes mounts a Secret
	require.NoError(t, os.WriteFile(in("long"), nil, 0o600))
	require.NoError(t, os.Truncate(in("long"), Most+1))
	require.NoError(t, os.WriteFile(in("full"), nil, 0o600))
	require.NoError(t, os.Truncate(in("full"), Most))
	require.NoError(t, syscall.Mkfifo(in("pipe"), 0o600))
	require.NoError(t, os.Symlink("pipe", in("link to a pipe")))
	for name, c := range map[string]struct {
		path, fails string
		bytes       int
	}{
		"a file":            {in("file"), "", 1},
		"a link to one":     {in("link"), "", 1},
		"an empty one":      {in("empty"), "", 0},
		"the longest":       {in("full"), "", Most},
		"a longer one":      {in("long"), "read " + in("long") + ": is larger than 16 MiB", 0},
		"a device":          {"/dev/zero", "read /dev/zero: is no regular file", 0},
		"a full device":     {"/dev/full", "read /dev/full: is no regular file", 0},
		"a pipe":            {in("pipe"), "read " + in("pipe") + ": is no regular file", 0},
		"a link to a pipe":  {in("link to a pipe"), "is no regular file", 0},
		"a directory":       {dir, "read " + dir + ": is a directory; name a file", 0},
		"what is not there": {in("none"), "no such file", 0},
		"a file of /proc":   {"/proc/self/cmdline", "", -1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			data, err := Read(c.path)
			if c.fails != "" {
				require.ErrorContains(t, err, c.fails)
				return
			}
			require.NoError(t, err)
			if c.bytes >= 0 {
				require.Len(t, data, c.bytes)
			}
		})
	}
}
