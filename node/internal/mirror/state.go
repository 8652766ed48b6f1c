package mirror

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	stateFile    = "state.json"
	stateVersion = 1
)

// state is what Remove has to know. It is written before the changes it is about.
type state struct {
	Version int `json:"version"`
	// Registries are those that the last Install was given.
	Registries []string `json:"registries,omitempty"`
	// Files and Links are keyed by their paths on the node; Links hold where they point.
	Files map[string]*record `json:"files,omitempty"`
	Links map[string]string  `json:"links,omitempty"`
	// Dirs are the directories that were made, outer ones before inner ones.
	Dirs []string `json:"dirs,omitempty"`
	// Loaded is what the containerd that runs has read.
	Loaded loaded `json:"loaded,omitzero"`
}

// record is one file's past.
type record struct {
	Runtime Runtime `json:"runtime"`
	// Existed and Original are the file as it was.
	Existed  bool   `json:"existed"`
	Original []byte `json:"original,omitempty"`
	// Written are the SHA-256 digests of the contents that Install wrote or was about to write when it was interrupted.
	Written []string `json:"written"`
	// Mark is what shows that the file holds what Install wrote. Empty: not known, of an earlier version of this
	// program.
	Mark string `json:"mark,omitempty"`
	// Marked are the lines, or values, that Remove takes out of the file, so that what somebody added to them is found.
	Marked []string `json:"marked,omitempty"`
	// Restart tells that the runtime reads the file only when it starts.
	Restart bool `json:"restart,omitempty"`
	// At is when the file was written. Zero: not known, and the file's own time counts.
	At time.Time `json:"at,omitzero"`
	// Readers are those of the runtime that ran when the file was written.
	Readers []string `json:"readers,omitempty"`

	latest string // the digest of what this run writes
}

func (r *record) wrote(content []byte) bool { return slices.Contains(r.Written, digestOf(content)) }

// mentions reports whether content holds what Install wrote and the original did not.
func (r *record) mentions(content []byte) bool {
	return r.Mark != "" && bytes.Contains(content, []byte(r.Mark)) && !bytes.Contains(r.Original, []byte(r.Mark))
}

// unmarked says what is to be done about a file that mentions the agent with no markers around it.
func (r *record) unmarked() string {
	return fmt.Sprintf("was edited since it was written, and what holds %s is no longer marked; take that out by hand",
		r.Mark)
}

// addedTo are the marked lines of content that Install did not write.
func (r *record) addedTo(content []byte) (added []string) {
	d, err := driverOf(r.Runtime)
	if err != nil || len(r.Marked) == 0 || r.wrote(content) {
		return nil
	}
	left := slices.Clone(r.Marked)
	for _, line := range d.marked(content) {
		if i := slices.Index(left, line); i >= 0 {
			left = slices.Delete(left, i, i+1)
			continue
		}
		if !slices.Contains(r.Marked, line) { // an editor may have copied all
			added = append(added, line)
		}
	}
	return added
}

// savedEdits is the folder, in that of the state, for files in which somebody had written between the marks.
const savedEdits = "edited"

// saveEdits keeps copies of the files in which somebody has written between the marks, for what stands there is about
// to be taken out.
func (st *state) saveEdits(o Options) (found []Finding, err error) {
	for _, path := range slices.Sorted(maps.Keys(st.Files)) {
		saved, err := st.saveEdit(o, path)
		if err != nil {
			return found, err
		}
		found = append(found, saved...)
	}
	return found, nil
}

func (st *state) saveEdit(o Options, path string) ([]Finding, error) {
	now, err := readUpTo(o.on(path), maxGrown)
	if err != nil || !now.exists {
		return nil, nil //nolint:nilerr // whoever changes the file says so
	}
	added := st.Files[path].addedTo(now.content)
	if len(added) == 0 {
		return nil, nil
	}
	dir := filepath.Join(o.StateDir, savedEdits)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	copied := filepath.Join(dir, strings.ReplaceAll(strings.TrimPrefix(path, "/"), "/", "_")+"."+
		digestOf(now.content)[:8])
	if err := writeFile(copied, now.content, 0o600); err != nil {
		return nil, err
	}
	return []Finding{{EditSaved, path, fmt.Sprintf("had lines of somebody's between the marks of the agent's, such as "+
		"%q; they are taken out with it, and the file as it was is kept as %s: write them outside of the marks",
		added[0], copied)}}, nil
}

func digestOf(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

func newState() *state {
	return &state{Version: stateVersion, Files: make(map[string]*record), Links: make(map[string]string)}
}

// loadState reads the state; where there is none it is a new one.
func loadState(dir string) (*state, error) {
	path := filepath.Join(dir, stateFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return newState(), nil
	}
	if err != nil {
		return nil, err
	}
	st := newState()
	if err := json.Unmarshal(b, st); err != nil {
		return nil, fmt.Errorf("state file %s is damaged: %w; move it away, and remove takes out what stands between "+
			"its marks, but knows of no original", path, err)
	}
	if st.Version != stateVersion {
		return nil, fmt.Errorf("state file %s has version %d; this program knows %d: "+
			"use the one that installed the mirror", path, st.Version, stateVersion)
	}
	return st, nil
}

func (st *state) save(o Options) error {
	if o.crash != nil {
		if err := o.crash(); err != nil {
			return err
		}
	}
	b, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(o.StateDir, stateFile)
	if now, err := os.ReadFile(path); err == nil && bytes.Equal(now, b) {
		return removeHalf(path) // the guard installs again and again, and a disk need not be written to for that
	}
	return writeFile(path, b, 0o600)
}

// dropState removes the state, and its directory where nothing else is in it.
func dropState(dir string) error {
	path := filepath.Join(dir, stateFile)
	if err := removeHalf(path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return removeIfEmpty(dir)
}

// lock keeps other runs of this program out of dir. Whoever had it before may have removed the directory meanwhile, and
// somebody may have made another: only a lock on the one that is there counts. errGone tells that none is.
func lock(dir string) (unlock func(), err error) {
	for {
		f, err := os.Open(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errGone
		}
		if err != nil {
			return nil, err
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		held, err := f.Stat()
		if err != nil {
			_ = f.Close()
			return nil, err
		}
		if there, err := os.Stat(dir); err == nil && os.SameFile(held, there) {
			return func() { _ = f.Close() }, nil
		}
		_ = f.Close()
	}
}

// errGone is that there is no directory of the state: nothing is installed.
var errGone = errors.New("no state directory")

// lockMade is lock with a directory that is made where there is none.
func lockMade(dir string) (unlock func(), err error) {
	for {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		if unlock, err = lock(dir); !errors.Is(err, errGone) {
			return unlock, err
		}
	}
}

// lockedState reads the state once lock has kept other runs out, which it does until unlock.
func lockedState(dir string, lock func(dir string) (func(), error)) (st *state, unlock func(), err error) {
	if unlock, err = lock(dir); err != nil {
		return nil, nil, err
	}
	if st, err = loadState(dir); err != nil {
		unlock()
		return nil, nil, err
	}
	return st, unlock, nil
}

// paths are those of all files and links, sorted.
func (st *state) paths() []string {
	all := slices.AppendSeq(slices.Collect(maps.Keys(st.Files)), maps.Keys(st.Links))
	slices.Sort(all)
	return all
}

// restarts are the files that a runtime reads only when it starts.
func (st *state) restarts() map[string]Runtime {
	all := make(map[string]Runtime)
	for path, rec := range st.Files {
		if rec.Restart {
			all[path] = rec.Runtime
		}
	}
	return all
}

// settle forgets the contents of earlier runs, once those of this one are in place.
func (st *state) settle() {
	for _, rec := range st.Files {
		if rec.latest != "" {
			rec.Written = []string{rec.latest}
		}
	}
}

// made reports whether an installation made the directory.
func (st *state) made(dir string) bool { return st != nil && slices.Contains(st.Dirs, dir) }

// servesAtOnce reports whether an installation made the one directory that containerd takes a list for. Containerd
// reads it with the next pull, whether or not it has read what else was written for releases that know no such
// directory.
func (st *state) servesAtOnce() bool {
	for path, to := range st.Links {
		if strings.HasPrefix(path, to+":") { // a list, and not a registry with its port
			return true
		}
	}
	return false
}

// linked reports whether an installation made the link at path.
func (st *state) linked(path string) bool { return st != nil && st.Links[path] != "" }

// makeDirs notes the directories that are to be made for dir.
func (st *state) makeDirs(o Options, dir string) {
	var missing []string
	for ; dir != "/" && dir != "."; dir = filepath.Dir(dir) {
		if _, err := os.Stat(o.on(dir)); err == nil || slices.Contains(st.Dirs, dir) {
			break
		}
		missing = append(missing, dir)
	}
	slices.Reverse(missing)
	st.Dirs = append(st.Dirs, missing...)
}

// removeDirs removes, inner ones first, the directories that were made, are empty, and are not needed.
func (st *state) removeDirs(o Options) error {
	var left []string
	for _, dir := range slices.Backward(st.Dirs) {
		if err := removeIfEmpty(o.on(dir)); err != nil {
			return err
		}
		if _, err := os.Stat(o.on(dir)); err == nil {
			left = append(left, dir)
		}
	}
	slices.Reverse(left)
	st.Dirs = left
	return nil
}
