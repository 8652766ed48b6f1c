package mirror

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// Somebody's odd entry costs that registry its mirror, and nothing else: neither the others, nor the removal, nor an
// end.
func TestInstall_PassesOverWhatNoRuntimeCouldReadEither(t *testing.T) {
	t.Parallel()
	for name, place := range map[string]func(t *testing.T, dir string){
		"a pipe": func(t *testing.T, dir string) {
			require.NoError(t, os.Mkdir(dir, 0o755))
			require.NoError(t, syscall.Mkfifo(filepath.Join(dir, "hosts.toml"), 0o600))
		},
		"a device that never ends": func(t *testing.T, dir string) {
			require.NoError(t, os.Mkdir(dir, 0o755))
			require.NoError(t, os.Symlink("/dev/zero", filepath.Join(dir, "hosts.toml")))
		},
		"a directory": func(t *testing.T, dir string) {
			require.NoError(t, os.MkdirAll(filepath.Join(dir, "hosts.toml"), 0o755))
		},
		"a link to itself": func(t *testing.T, dir string) { require.NoError(t, os.Symlink(filepath.Base(dir), dir)) },
		"a link to a file": func(t *testing.T, dir string) { require.NoError(t, os.Symlink("../config.toml", dir)) },
		"a link to nowhere": func(t *testing.T, dir string) {
			require.NoError(t, os.Symlink("/nowhere/at/all", dir))
		},
		"a file of many megabytes": func(t *testing.T, dir string) {
			require.NoError(t, os.Mkdir(dir, 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(strings.Repeat("# x\n", 2<<20)),
				0o600))
		},
		"no TOML": func(t *testing.T, dir string) {
			require.NoError(t, os.Mkdir(dir, 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte("\xff\x00["), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := node(t, Containerd, tree{config: configured, certs + "quay.io/hosts.toml": "server = \"https://q\"\n"})
			odd := filepath.Join(o.Root, certs, "odd.example")
			place(t, odd)
			was, err := os.Lstat(odd)
			require.NoError(t, err)

			result, err := Install(o)
			require.NoError(t, err)
			require.ElementsMatch(t, []string{certs + "_default/hosts.toml", certs + "quay.io/hosts.toml"},
				result.Changed)
			require.Equal(t, []FindingKind{NotMirrored}, kinds(result), result.Findings)
			require.Equal(t, certs+"odd.example/hosts.toml", result.Findings[0].Path)
			status, err := Status(o)
			require.NoError(t, err)
			require.False(t, status.InForce(), "one registry is not mirrored")
			_, err = Hosts(o, "quay.io")
			require.NoError(t, err)
			_, err = Hosts(o, "odd.example")
			require.NoError(t, err)

			removed, err := Remove(o)
			require.NoError(t, err)
			require.ElementsMatch(t, result.Changed, removed.Changed)
			is, err := os.Lstat(odd)
			require.NoError(t, err)
			require.Equal(t, was.Mode(), is.Mode())
			require.Equal(t, "server = \"https://q\"\n", content(t, o, certs+"quay.io/hosts.toml"))
		})
	}
}

func TestInstall_ARegistryWhoseFileMayNotBeWrittenCostsNoOtherItsMirror(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount")
	}
	o := node(t, Containerd, tree{config: configured, certs + "a.example/hosts.toml": "server = \"https://a\"\n",
		certs + "quay.io/hosts.toml": "server = \"https://q\"\n"})
	protected := filepath.Join(o.Root, certs, "a.example")
	if err := syscall.Mount(protected, protected, "", syscall.MS_BIND, ""); err != nil {
		t.Skip("nothing can be mounted here: ", err)
	}
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(protected, syscall.MNT_DETACH)) })
	require.NoError(t, syscall.Mount("", protected, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""))

	result, err := Install(o)
	require.NoError(t, err)
	require.ElementsMatch(t, []string{certs + "_default/hosts.toml", certs + "quay.io/hosts.toml"}, result.Changed)
	require.Equal(t, []FindingKind{NotMirrored}, kinds(result), result.Findings)
	status, err := Status(o)
	require.NoError(t, err)
	require.False(t, status.InForce())
	removed, err := Remove(o)
	require.NoError(t, err)
	require.ElementsMatch(t, result.Changed, removed.Changed)
}

func TestInstall_PassesOverDirectoriesWhoseNamesNoImageCanSpell(t *testing.T) {
	t.Parallel()
	before := tree{config: configured}
	for _, name := range []string{"my registry", "new\nline", "\xff\xfe", "-rf", "a*b", ".hidden", "ünï"} {
		before[certs+name+"/hosts.toml"] = "server = \"https://q\"\n"
	}
	o := node(t, Containerd, before)
	was := read(t, o.Root)
	result, err := Install(o)
	require.NoError(t, err)
	require.Equal(t, []string{certs + "_default/hosts.toml"}, result.Changed)
	status, err := Status(o)
	require.NoError(t, err)
	require.True(t, status.InForce(), status.Findings)
	requireUndone(t, o, was)
}

func TestRemove_GivesBackAFileThatNobodyMayRead(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root, whom no mode keeps from reading")
	}
	o := node(t, Containerd, tree{config: configured, certs + "quay.io/hosts.toml": "server = \"https://q\"\n"})
	path := filepath.Join(o.Root, certs, "quay.io/hosts.toml")
	require.NoError(t, os.Chmod(path, 0))
	_, err := Install(o)
	require.NoError(t, err)
	_, err = Remove(o)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Zero(t, info.Mode().Perm())
}

func TestInstall_ALinkThatLeadsNowhereIsNamed(t *testing.T) {
	t.Parallel()
	o := node(t, Containerd, tree{config: configured, "/etc/containerd/certs.d": "-> /nowhere/at/all"})
	before := read(t, o.Root)
	result, err := Install(o)
	require.NoError(t, err)
	require.Equal(t, []FindingKind{NotMirrored}, kinds(result))
	require.Contains(t, result.Findings[0].Message, "symbolic link to /nowhere/at/all")
	status, err := Status(o)
	require.NoError(t, err)
	require.False(t, status.InForce())
	requireUndone(t, o, before)
}

// What could not be installed needs no writing to be removed.
func TestRemove_HasNothingToDoOnAFileSystemThatIsReadOnly(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount")
	}
	o := node(t, Containerd, tree{config: configured})
	etc := filepath.Join(o.Root, "etc")
	if err := syscall.Mount(etc, etc, "", syscall.MS_BIND, ""); err != nil {
		t.Skip("nothing can be mounted here: ", err)
	}
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(etc, syscall.MNT_DETACH)) })
	require.NoError(t, syscall.Mount("", etc, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""))
	_, err := Install(o)
	require.ErrorContains(t, err, "read-only")
	_, err = Remove(o)
	require.NoError(t, err)
	require.NoDirExists(t, o.StateDir)
}

// Where a node's file system is mounted elsewhere, an absolute link on it leads into this machine's.
func TestInstall_WritesNothingOutsideOfTheRoot(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	for name, before := range map[string]tree{
		"the folder of mirrors is a link": {config: configured, "/etc/containerd/certs.d": "-> " + outside},
		"a registry's folder is a link":   {config: configured, certs + "a.example": "-> " + outside},
		"a file is a link":                {config: configured, certs + "a.example/hosts.toml": "-> " + outside + "/hosts.toml"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := node(t, Containerd, before)
			o.Registries = []string{"a.example"}
			was := read(t, o.Root)
			result, err := Install(o)
			require.NoError(t, err)
			require.Empty(t, result.Changed)
			require.Equal(t, []FindingKind{NotMirrored}, kinds(result))
			entries, err := os.ReadDir(outside)
			require.NoError(t, err)
			require.Empty(t, entries)
			requireUndone(t, o, was)
		})
	}
}

// Nor is a link made there, nor an entry taken out.
func TestMirror_ChangesNothingOutsideOfTheRoot(t *testing.T) {
	t.Parallel()
	t.Run("a link of a registry", func(t *testing.T) {
		t.Parallel()
		outside := t.TempDir()
		o := node(t, Containerd, tree{config: v2with("/etc/containerd/certs.d:/etc/docker/certs.d"),
			"/etc/containerd/certs.d": "-> " + outside, "/etc/docker/certs.d/a.example/ca.crt": "PEM"})
		was := read(t, o.Root)
		result, err := Install(o)
		require.NoError(t, err)
		require.Contains(t, kinds(result), NotMirrored)
		entries, err := os.ReadDir(outside)
		require.NoError(t, err)
		require.Empty(t, entries)
		requireUndone(t, o, was)
	})
	t.Run("a folder of mirrors that was moved", func(t *testing.T) {
		t.Parallel()
		outside := filepath.Join(t.TempDir(), "certs.d")
		o := node(t, Containerd, tree{config: configured, certs + "a.example/hosts.toml": "server = \"https://a\"\n"})
		_, err := Install(o)
		require.NoError(t, err)
		require.NoError(t, os.Rename(filepath.Join(o.Root, certs), outside))
		require.NoError(t, os.Symlink(outside, filepath.Join(o.Root, certs)))
		was := read(t, outside)
		_, err = Remove(o)
		require.ErrorContains(t, err, "out of the root")
		require.Equal(t, was, read(t, outside))
		require.FileExists(t, filepath.Join(o.StateDir, stateFile), "the originals are kept")
	})
}
