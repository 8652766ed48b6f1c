package mirror

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Modes, owners and extended attributes are the administrator's, before and after the installation.
func TestRemove_LeavesModesOwnersAndAttributesAsTheyAre(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give files away")
	}
	o := node(t, Containerd, tree{config: configured, certs + "a.example/hosts.toml": "server = \"https://a\"\n",
		certs + "b.example/hosts.toml": "server = \"https://b\"\n"})
	a, b := filepath.Join(o.Root, certs, "a.example/hosts.toml"), filepath.Join(o.Root, certs, "b.example/hosts.toml")
	require.NoError(t, os.Chown(a, 1234, 4321))
	require.NoError(t, os.Chmod(a, 0o2640|os.ModeSetgid))
	attributes := unix.Setxattr(a, "user.note", []byte("kept"), 0) == nil
	_, err := Install(o)
	require.NoError(t, err)
	kept := func(path string, uid, gid uint32, mode os.FileMode) {
		t.Helper()
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode())
		owner := info.Sys().(*syscall.Stat_t)
		require.Equal(t, [2]uint32{uid, gid}, [2]uint32{owner.Uid, owner.Gid})
	}
	kept(a, 1234, 4321, 0o640|os.ModeSetgid)

	require.NoError(t, os.Chmod(b, 0o600))
	require.NoError(t, os.Chown(b, 77, 78))
	again := o
	again.Endpoint = "http://127.0.0.1:6060"
	_, err = Install(again)
	require.NoError(t, err)
	kept(b, 77, 78, 0o600)
	_, err = Remove(o)
	require.NoError(t, err)
	kept(a, 1234, 4321, 0o640|os.ModeSetgid)
	kept(b, 77, 78, 0o600)
	if attributes {
		value := make([]byte, 16)
		n, err := unix.Getxattr(a, "user.note", value)
		require.NoError(t, err)
		require.Equal(t, "kept", string(value[:n]))
	}
}

// Somebody's file may have grown beyond what is read of a configuration.
func TestRemove_TakesItsEntriesOutOfAFileOfManyMegabytes(t *testing.T) {
	t.Parallel()
	o := node(t, Containerd, tree{config: configured})
	_, err := Install(o)
	require.NoError(t, err)
	const path = certs + "_default/hosts.toml"
	more := strings.Repeat("# more\n", (10<<20)/len("# more\n"))
	require.NoError(t, os.WriteFile(filepath.Join(o.Root, path), []byte(content(t, o, path)+more), 0o600))
	status, err := Status(o)
	require.NoError(t, err)
	require.False(t, status.InForce())
	require.Contains(t, status.Findings[0].Message, "too many bytes")
	_, err = Remove(o)
	require.NoError(t, err)
	require.Equal(t, more, content(t, o, path))
}

func TestRemove_SaysThatAFileIsTooLarge(t *testing.T) {
	t.Parallel()
	o := node(t, Containerd, tree{config: configured})
	_, err := Install(o)
	require.NoError(t, err)
	path := filepath.Join(o.Root, certs, "_default/hosts.toml")
	require.NoError(t, os.Truncate(path, maxGrown+1)) // a hole, which takes no room
	result, err := Remove(o)
	require.ErrorIs(t, err, ErrNotUndone)
	require.Equal(t, []FindingKind{NotUndone}, kinds(result))
	_, err = os.Stat(path)
	require.NoError(t, err)
	require.NoError(t, os.Remove(path))
	_, err = Remove(o)
	require.NoError(t, err)
}

// One waits for the other, which then removes what it waits at.
func TestInstall_AndRemovalAtOnceEndAsOneAfterTheOther(t *testing.T) {
	t.Parallel()
	o := node(t, Containerd, tree{config: configured, certs + "a.example/hosts.toml": "server = \"https://a\"\n"})
	before := read(t, o.Root)
	var all sync.WaitGroup
	for i := range 40 {
		run := Install
		if i%2 == 1 {
			run = Remove
		}
		all.Go(func() {
			if _, err := run(o); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	_, err := Install(o)
	require.NoError(t, err)
	status, err := Status(o)
	require.NoError(t, err)
	require.True(t, status.InForce(), status.Findings)
	requireUndone(t, o, before)
	_, err = os.Stat(o.StateDir)
	require.ErrorIs(t, err, os.ErrNotExist)
}

// Containerd 1 passes over a byte order mark, and containerd 2 does not read such a file.
func TestByteOrderMark_IsTakenAsTheReleaseTakesIt(t *testing.T) {
	t.Parallel()
	const path = certs + "a.example/hosts.toml"
	for name, c := range map[string]struct {
		release string
		inForce bool
	}{"1.7": {"1.7.28", true}, "2.4": {"2.4.2", false}, "not known which": {"", false}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := node(t, Containerd, tree{config: v2with("/etc/containerd/certs.d"),
				path: byteOrderMark + "[host.\"https://m\"]\n"})
			o.Release = c.release
			before := read(t, o.Root)
			_, err := Install(o)
			require.NoError(t, err)
			status, err := Status(o)
			require.NoError(t, err)
			require.Equal(t, c.inForce, status.InForce(), status.Findings)
			if c.inForce {
				text, marked := strings.CutPrefix(content(t, o, path), byteOrderMark)
				require.True(t, marked)
				list, _ := hosts(t, text)
				require.Equal(t, []string{front, "https://m"}, list)
			}
			requireUndone(t, o, before)
		})
	}
}

// An editor put the mark before a file that was made.
func TestRemove_FindsItsEntryAfterAByteOrderMark(t *testing.T) {
	t.Parallel()
	o := node(t, Containerd, tree{config: configured})
	before := read(t, o.Root)
	_, err := Install(o)
	require.NoError(t, err)
	const path = certs + "_default/hosts.toml"
	edited := byteOrderMark + strings.ReplaceAll(content(t, o, path), "\n", "\r\n")
	require.NoError(t, os.WriteFile(filepath.Join(o.Root, path), []byte(edited), 0o600))
	status, err := Status(o)
	require.NoError(t, err)
	require.False(t, status.InForce(), "containerd 2 does not read it any more")
	requireUndone(t, o, before)
}

// A full disk has no room for a second file, and the first gets shorter.
func TestRemove_WorksOnAFullDisk(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount")
	}
	root := t.TempDir()
	if err := syscall.Mount("tmpfs", root, "tmpfs", 0, "size=256k"); err != nil {
		t.Skip("nothing can be mounted here: ", err)
	}
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(root, syscall.MNT_DETACH)) })
	long := strings.Repeat("# a long comment\n", 2000)
	(tree{config: configured, certs + "a.example/hosts.toml": long}).write(t, root)
	o := Options{Runtime: Containerd, Endpoint: front, Root: root, StateDir: filepath.Join(t.TempDir(), "state")}
	before := read(t, root)
	_, err := Install(o)
	require.NoError(t, err)
	fill := filepath.Join(root, "fill")
	require.ErrorIs(t, os.WriteFile(fill, make([]byte, 1<<20), 0o600), syscall.ENOSPC)
	_, err = Remove(o)
	require.NoError(t, err)
	require.NoError(t, os.Remove(fill))
	require.Equal(t, before, read(t, root))
}

// Whoever reads the runtime's folders may not be who installed.
func TestInstall_MakesFoldersThatOthersMayRead(t *testing.T) { //nolint:paralleltest // the umask is the process's
	o := node(t, Containerd, tree{config: configured})
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	_, err := Install(o)
	require.NoError(t, err)
	for _, dir := range []string{certs, certs + "_default"} {
		info, err := os.Stat(filepath.Join(o.Root, dir))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o755), info.Mode().Perm(), dir)
	}
}
