package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// diskSize is that of a node's disk.
const diskSize = 384 << 20

// disk is an ext4 file system of its own in a file, so that it can fill up and fail.
type disk struct{ image, mount string }

// share has the disks below dir unmounted everywhere when they are unmounted here. Whoever makes a namespace meanwhile,
// as "ip netns exec" does, gets a copy of all mounts. It would keep a file system that has failed from being let go of
// and mounted anew.
func share(dir string) error {
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", dir, err)
	}
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share %s: %w", dir, err)
	}
	return nil
}

func newDisk(ctx context.Context, dir string) (*disk, error) {
	d := &disk{image: dir + ".ext4", mount: dir}
	if err := os.Mkdir(d.mount, 0o755); err != nil {
		return nil, fmt.Errorf("disk: %w", err)
	}
	f, err := os.Create(d.image)
	if err != nil {
		return nil, fmt.Errorf("disk: %w", err)
	}
	if err := errors.Join(f.Truncate(diskSize), f.Close()); err != nil {
		return nil, fmt.Errorf("disk: %w", err)
	}
	if err := run(ctx, "mkfs.ext4", "-q", "-m", "0", d.image); err != nil {
		return nil, err
	}
	return d, d.attach(ctx)
}

func (d *disk) attach(ctx context.Context) error {
	return run(ctx, "mount", "-o", "loop,errors=remount-ro", d.image, d.mount)
}

func (d *disk) detach(ctx context.Context) error { return run(ctx, "umount", d.mount) }

// repair finds errors that it can correct, for the file system did fail.
func (d *disk) repair(ctx context.Context) error {
	const corrected = 1
	err := run(ctx, "e2fsck", "-p", d.image)
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == corrected {
		return nil
	}
	return err
}

// fail makes the file system read-only as an error of the disk does: what is open for writing fails too.
func (d *disk) fail(ctx context.Context) error {
	return run(ctx, "mount", "-o", "remount,abort", d.mount)
}

// fill leaves little free.
func (d *disk) fill() error {
	var s unix.Statfs_t
	if err := unix.Statfs(d.mount, &s); err != nil {
		return fmt.Errorf("free space of %s: %w", d.mount, err)
	}
	f, err := os.Create(d.ballast())
	if err != nil {
		return fmt.Errorf("fill %s: %w", d.mount, err)
	}
	defer f.Close()
	const left = 256 << 10
	if free := int64(s.Bavail)*s.Bsize - left; free > 0 {
		if err := unix.Fallocate(int(f.Fd()), 0, 0, free); err != nil && !errors.Is(err, unix.ENOSPC) {
			return fmt.Errorf("fill %s: %w", d.mount, err)
		}
	}
	return nil
}

func (d *disk) empty() error {
	if err := os.Remove(d.ballast()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("free %s: %w", d.mount, err)
	}
	return nil
}

func (d *disk) ballast() string { return filepath.Join(d.mount, "ballast") }

// rot flips a bit of one of the blobs that are committed and among the wanted ones, and says which; empty where there
// is none.
func (d *disk) rot(store string, seed uint64, wanted func(digest string) bool) (string, error) {
	var blobs []string
	err := filepath.WalkDir(filepath.Join(store, "blobs"), func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() && !strings.Contains(entry.Name(), ".") &&
			wanted("sha256:"+entry.Name()) {
			blobs = append(blobs, path)
		}
		return nil // what cannot be read does not rot
	})
	if err != nil || len(blobs) == 0 {
		return "", err
	}
	slices.Sort(blobs)
	random := rand.New(rand.NewPCG(seed, 0))
	path := blobs[random.IntN(len(blobs))]
	switch err := flip(path, random); {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil // it was evicted just now, so nothing rots
	case err != nil:
		return "", fmt.Errorf("rot: %w", err)
	}
	return "sha256:" + filepath.Base(path), nil
}

func run(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// flip flips a bit of a file as a disk does it: below the page cache, so that bytes stay as they were that are in
// memory or on their way from there. In a file of less than a block it goes through the cache.
func flip(path string, random *rand.Rand) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case info.Size() == 0:
		return fs.ErrNotExist
	}
	const block = 4096
	size, flags, n := info.Size()/block*block, os.O_RDWR|unix.O_DIRECT, block
	if size == 0 {
		size, flags, n = info.Size(), os.O_RDWR, int(info.Size())
	}
	at := random.Int64N(size)
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	aligned, err := unix.Mmap(-1, 0, block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(aligned) }()
	if _, err := f.ReadAt(aligned[:n], at/block*block); err != nil {
		return err
	}
	aligned[at%block] ^= 1 << random.IntN(8)
	_, err = f.WriteAt(aligned[:n], at/block*block)
	return err
}
