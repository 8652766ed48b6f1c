package store

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// The test binary runs itself as a child that uses a store until it is killed. These variables tell the child what to
// do.
const (
	childEnv     = "SHOAL_STORE_TEST_CHILD" // one of the modes below
	childPathEnv = "SHOAL_STORE_TEST_PATH"
	childSeedEnv = "SHOAL_STORE_TEST_SEED"
	childStepEnv = "SHOAL_STORE_TEST_STEP" // kill yourself before this many-th file operation
)

// Modes of a child.
const (
	modeOpen  = "open"  // opens the store and closes it
	modeKeep  = "keep"  // ingests, commits and pins, and never removes
	modeChurn = "churn" // deletes too, and evicts
)

// churnLimits are so small that a child evicts all the time.
var churnLimits = Limits{Capacity: 24 * chunkSize}

func runChild() {
	if err := childWork(os.Getenv(childEnv)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func childWork(mode string) error {
	k := disk{}
	if step, _ := strconv.Atoi(os.Getenv(childStepEnv)); step > 0 {
		k.fault = dieAt(step)
	}
	o := quiet(Options{
		Path:    os.Getenv(childPathEnv),
		OnEvent: func(ev Event) { fmt.Println(ev.Type, ev.Info.Digest) },
	})
	if mode == modeChurn {
		o.Limits = churnLimits
	}
	s, err := openWith(context.Background(), o, k)
	if err != nil {
		return err
	}
	if mode == modeOpen {
		return s.Close()
	}
	seed, err := strconv.ParseUint(os.Getenv(childSeedEnv), 10, 64)
	if err != nil {
		return err
	}
	return childLoop(s, mode, rand.New(rand.NewPCG(seed, 0)))
}

// dieAt kills the process before its n-th file operation.
func dieAt(n int) func(op, path string) error {
	var mu sync.Mutex
	return func(string, string) error {
		mu.Lock()
		defer mu.Unlock()
		if n--; n == 0 {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // the signal is on its way, and nobody else gets the lock
		}
		return nil
	}
}

// childSample is the blob that a child makes of a number below childBlobs.
func childSample(n uint64) sample {
	sizes := []int{0, 100, chunkSize, chunkSize + 1, 3*chunkSize + 77}
	return newSample(1000+n, sizes[n%uint64(len(sizes))])
}

const childBlobs = 128

// childSamples are all of them, by digest.
var childSamples = sync.OnceValue(func() map[digest.Digest]sample {
	samples := make(map[digest.Digest]sample, childBlobs)
	for n := range uint64(childBlobs) {
		b := childSample(n)
		samples[b.digest] = b
	}
	return samples
})

func childMediaType(d digest.Digest) string { return "media/" + d.Encoded()[:8] }

// childLoop uses the store for ever, and says on standard output what is done.
func childLoop(s *Store, mode string, rnd *rand.Rand) error {
	kv := s.KV("child")
	for round := 1; ; round++ {
		b := childSample(rnd.Uint64N(childBlobs))
		switch rnd.IntN(8) {
		case 0:
			if mode == modeKeep {
				break
			}
			if err := s.Delete(b.digest); err != nil && !errors.Is(err, ErrPinned) {
				return err
			}
		case 1:
			if err := s.Pin("child", []digest.Digest{b.digest}); err != nil {
				return err
			}
			if err := kv.Put("round", []byte(strconv.Itoa(round))); err != nil {
				return err
			}
			fmt.Println("round", round)
		default:
			if err := childIngest(s, b, rnd); err != nil {
				return err
			}
		}
	}
}

func childIngest(s *Store, b sample, rnd *rand.Rand) error {
	g, err := s.Ingest(b.digest, b.size(), Origin{})
	if errors.Is(err, ErrExists) || errors.Is(err, content.ErrNoSpace) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = g.Close() }()
	for _, i := range rnd.Perm(b.chunks()) {
		if rnd.IntN(8) == 0 {
			return nil // gives up, and leaves a partial ingest
		}
		if err := g.WriteChunk(i, content.ChunkCID(b.chunk(i)), b.chunk(i)); err != nil {
			return err
		}
		fmt.Println("wrote", i)
	}
	return g.Commit(context.Background(), childMediaType(b.digest))
}

// report is what a child said before it was killed.
type report struct {
	committed map[digest.Digest]bool
	round     int // last one remembered
	lines     int
}

// runUntilKilled runs a child that is killed after so many lines, or kills itself before so many file operations.
func runUntilKilled(t *testing.T, mode, path string, seed uint64, lines, step int) report {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+mode, childPathEnv+"="+path,
		childSeedEnv+"="+strconv.FormatUint(seed, 10), childStepEnv+"="+strconv.Itoa(step))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	r := report{committed: make(map[digest.Digest]bool)}
	for in := bufio.NewReader(out); ; {
		line, err := in.ReadString('\n')
		if err == io.EOF {
			break // a line without its end was not said
		}
		require.NoError(t, err)
		r.note(t, strings.Fields(line))
		if r.lines == lines {
			require.NoError(t, cmd.Process.Kill())
		}
	}
	var exit *exec.ExitError
	require.ErrorAs(t, cmd.Wait(), &exit, "stderr: %s", &stderr)
	status, ok := exit.Sys().(syscall.WaitStatus)
	require.True(t, ok && status.Signal() == syscall.SIGKILL, "the child ended by itself: %s", &stderr)
	return r
}

func (r *report) note(t *testing.T, words []string) {
	r.lines++
	switch words[0] {
	case Committed.String():
		r.committed[digest.Digest(words[1])] = true
	case "round":
		n, err := strconv.Atoi(words[1])
		require.NoError(t, err)
		r.round = n
	}
}

// requireIntact opens what a killed child left, checks that all that is there is right, in every form in which it can
// be read, and returns the blobs that are there.
func requireIntact(t *testing.T, path string, r report) map[digest.Digest]bool {
	t.Helper()
	s := openTest(t, Options{Path: path})
	<-s.finished
	samples := childSamples()
	list, err := s.List(t.Context())
	require.NoError(t, err)
	present := make(map[digest.Digest]bool)
	for _, info := range list {
		present[info.Digest] = true
		// That of a blob that was committed at a start died with the process that had been told it.
		require.Contains(t, []string{"", childMediaType(info.Digest)}, info.MediaType)
		requireHas(t, s, samples[info.Digest])
		requireBlocks(t, s, samples[info.Digest])
	}
	for id := range s.partials {
		requireTrueChunks(t, s, samples[id.digest])
	}
	if r.round > 0 {
		require.Len(t, s.Pins()["child"], 1)
		v, ok := s.KV("child").Get("round")
		require.True(t, ok)
		round, err := strconv.Atoi(string(v))
		require.NoError(t, err)
		require.GreaterOrEqual(t, round, r.round)
	}
	require.NoError(t, s.Close())
	return present
}

// requireBlocks checks that every block of a committed blob is found and right.
func requireBlocks(t *testing.T, s *Store, b sample) {
	t.Helper()
	m, err := s.ChunkMap(b.digest)
	require.NoError(t, err)
	for i := range b.chunks() {
		block, err := s.Blockstore().Get(t.Context(), m.CID(i))
		require.NoError(t, err)
		require.True(t, bytes.Equal(b.chunk(i), block.RawData()))
	}
	_, inner, err := m.DAG()
	require.NoError(t, err)
	for _, want := range inner {
		block, err := s.Blockstore().Get(t.Context(), want.Cid())
		require.NoError(t, err)
		require.Equal(t, want.RawData(), block.RawData())
	}
}

// requireTrueChunks checks that whatever a partial ingest says is present has the right bytes.
func requireTrueChunks(t *testing.T, s *Store, b sample) {
	t.Helper()
	g, err := s.Ingest(b.digest, b.size(), Origin{})
	require.NoError(t, err)
	for i := range b.chunks() {
		if !g.Has(i) {
			continue
		}
		got := make([]byte, len(b.chunk(i)))
		n, err := g.ReadChunk(i, got, 0)
		require.Equal(t, len(got), n, err)
		require.True(t, bytes.Equal(b.chunk(i), got), "chunk %d counts as present and is not", i)
	}
	require.NoError(t, g.Close())
}

func requireSubset(t *testing.T, want, got map[digest.Digest]bool) {
	t.Helper()
	for d := range want {
		require.True(t, got[d], "%s was committed and is lost", d)
	}
}

func TestKillAtRandomMomentsLosesNoCommittedBlob(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 1))
	committed := make(map[digest.Digest]bool)
	for i := range uint64(8) {
		r := runUntilKilled(t, modeKeep, path, seed+i, 1+rnd.IntN(30), 0)
		present := requireIntact(t, path, r)
		requireSubset(t, r.committed, present)
		requireSubset(t, committed, present)
		committed = present
	}
	require.NotEmpty(t, committed)
}

func TestKillWhileEvictingServesNoWrongByte(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 2))
	for i := range uint64(10) {
		r := runUntilKilled(t, modeChurn, path, seed+i, 20+rnd.IntN(50), 0)
		requireIntact(t, path, r)
	}
}

// A child that dies before its 1st, 2nd, 3rd… file operation dies at every step of opening, ingest and commit.
func TestKillBeforeEachFileOperation(t *testing.T) {
	t.Parallel()
	for name, mode := range map[string]string{"while it only adds": modeKeep, "while it removes too": modeChurn} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var path string
			var committed map[digest.Digest]bool
			for step := 1; step <= 40; step++ {
				if step%8 == 1 { // a new store now and then, lest checking all that has gathered takes ever longer
					path, committed = t.TempDir(), nil
				}
				r := runUntilKilled(t, mode, path, uint64(step), 0, step)
				present := requireIntact(t, path, r)
				if mode == modeKeep {
					requireSubset(t, r.committed, present)
					requireSubset(t, committed, present)
				}
				committed = present
			}
		})
	}
}

// mountImage mounts a file that holds a file system, where that is allowed. Nothing is committed to the file system's
// own journal but by fsync, so that a copy of the file is one moment of it.
func mountImage(t *testing.T, image string) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop,commit=600", image, dir).CombinedOutput(); err != nil {
		t.Skipf("cannot mount a file here: %v: %s", err, out)
	}
	t.Cleanup(func() {
		// A process that another test is about to start has our open files until it is.
		require.Eventually(t, func() bool { return !errors.Is(syscall.Unmount(dir, 0), syscall.EBUSY) }, time.Minute,
			50*time.Millisecond)
	})
	return dir
}

// A copy of the disk under a mounted file system is what a loss of power leaves: what was synced, and of the rest
// whatever the kernel happens to have written.
func TestALossOfPowerLosesNoCommittedBlob(t *testing.T) {
	t.Parallel()
	image := filepath.Join(t.TempDir(), "disk")
	if out, err := exec.Command("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", image,
		"256M").CombinedOutput(); err != nil {
		t.Skipf("cannot make a file system here: %v: %s", err, out)
	}
	path := filepath.Join(mountImage(t, image), "store")
	committed := make(map[digest.Digest]bool)
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 3))
	for i := range uint64(4) {
		r := runUntilKilled(t, modeKeep, path, seed+i, 3+rnd.IntN(40), 0)
		maps.Copy(committed, r.committed)
		t.Run("round "+strconv.FormatUint(i, 10), func(t *testing.T) {
			left := filepath.Join(t.TempDir(), "disk")
			out, err := exec.Command("cp", "--sparse=always", image, left).CombinedOutput()
			require.NoError(t, err, "%s", out)
			requireIntactAfterReboot(t, filepath.Join(mountImage(t, left), "store"), r, committed)
		})
	}
	require.NotEmpty(t, committed)
}

func requireIntactAfterReboot(t *testing.T, path string, r report, committed map[digest.Digest]bool) {
	t.Helper()
	// The session file names the boot in which the child ran, which is also this one.
	require.NoError(t, os.WriteFile(filepath.Join(path, lockName), []byte("an earlier boot\n"), 0o600))
	s := openTest(t, Options{Path: path})
	for d := range committed {
		requireHas(t, s, childSamples()[d])
		requireBlocks(t, s, childSamples()[d])
	}
	for id := range s.partials {
		requireTrueChunks(t, s, childSamples()[id.digest])
	}
	if r.round > 0 {
		require.Len(t, s.Pins()["child"], 1)
	}
}
