package mirror

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// Install makes the runtime use the front. Installing again, also with other options, changes what the difference
// requires.
func Install(o Options) (Result, error) {
	if err := o.checkInstall(); err != nil {
		return Result{}, fmt.Errorf("install mirror: %w", err)
	}
	result, err := install(o)
	if err != nil {
		return result, fmt.Errorf("install mirror for %s: %w", o.Runtime, err)
	}
	return result, nil
}

func install(o Options) (Result, error) {
	st, unlock, err := lockedState(o.StateDir, lockMade)
	if err != nil {
		return Result{}, err
	}
	defer unlock()
	o.state = st
	i := installation{Options: o, restart: st.restarts(), kept: make(map[string]bool)}
	err = i.workOut() // all of it, before anything is changed
	if err == nil {
		err = i.carryOut()
	}
	return i.result, err
}

// installation is one run of Install.
type installation struct {
	Options
	changes []change
	restart map[string]Runtime // by the files that a runtime reads only when it starts
	kept    map[string]bool    // paths that the state is to know afterwards
	result  Result
}

// workOut finds what is to be changed, and puts into the state what is needed to undo it.
func (i *installation) workOut() error {
	d, err := driverOf(i.Runtime)
	if err != nil {
		return err
	}
	p, err := d.plan(i.Options)
	i.found(p.findings...)
	i.found(i.misnamed()...)
	if err != nil {
		return err
	}
	saved, err := i.state.saveEdits(i.Options)
	i.found(saved...)
	if err != nil {
		return err
	}
	for _, t := range p.targets {
		if err := i.prepare(t); err != nil {
			return fmt.Errorf("%s: %w", t.path, err)
		}
	}
	for _, l := range p.links {
		i.kept[l.path] = true
		i.changes = append(i.changes, i.state.prepareLink(i.Options, l))
	}
	restored, stuck, err := i.state.restoreAll(i.Options, i.kept)
	i.changes = append(i.changes, restored...)
	for _, f := range stuck {
		i.keep(f)
	}
	return err
}

// prepare works out what becomes of one target.
func (i *installation) prepare(t target) error {
	c, err := i.state.prepare(i.Options, t)
	if errors.Is(err, errForeign) {
		i.found(Finding{NotMirrored, t.path, err.Error()})
		return nil
	}
	if err != nil {
		return err
	}
	i.kept[t.path] = true
	if t.restart {
		i.restart[t.path] = i.Runtime
	}
	i.changes = append(i.changes, c)
	return nil
}

func (i *installation) found(f ...Finding) { i.result.Findings = append(i.result.Findings, f...) }

// keep tells of a file that stays in the state, since it is not changed as it should be.
func (i *installation) keep(f Finding) {
	i.found(f)
	i.kept[f.Path] = true
}

// carryOut makes the changes.
func (i *installation) carryOut() error {
	st := i.state
	st.Registries = i.Registries
	st.see(i.Options)
	readers := i.readers(i.Runtime)
	// The state is on disk before the first change is, and names all that may be found after a crash.
	if err := st.save(i.Options); err != nil {
		return err
	}
	if err := i.apply(readers); err != nil {
		return err
	}
	for _, path := range st.paths() {
		if !i.kept[path] {
			delete(st.Files, path)
			delete(st.Links, path)
		}
	}
	if err := st.removeDirs(i.Options); err != nil {
		return err
	}
	st.settle()
	i.found(restarts(i.result.Changed, i.restart)...)
	return st.save(i.Options)
}

// apply makes each change, and notes the readers of what it writes. That a file may not be written is an error where it
// is so for all.
func (i *installation) apply(readers []string) error {
	var refused []error
	for _, c := range i.changes {
		did, err := c.apply(i.Options)
		if isRefusal(err) || errors.Is(err, errForeign) {
			refused = append(refused, err)
			i.keep(Finding{NotMirrored, c.path, err.Error()})
			continue
		}
		if err != nil {
			return err
		}
		if did {
			i.result.Changed = append(i.result.Changed, c.path)
			if rec := i.state.Files[c.path]; rec != nil {
				rec.At, rec.Readers = time.Now(), readers
			}
		}
	}
	if len(refused) == len(i.changes) {
		return errors.Join(refused...)
	}
	return nil
}

// isRefusal reports whether a file may not be written: it lies on a read-only file system, or is protected. That is so
// for one registry, and not for the others.
func isRefusal(err error) bool {
	return errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission)
}

// restarts are findings for the changed files that a runtime reads only when it starts.
func restarts(changed []string, restart map[string]Runtime) (found []Finding) {
	for _, path := range changed {
		if r, ok := restart[path]; ok {
			found = append(found, restartNeeded(path, r))
		}
	}
	return found
}

// prepare works out a target's new content, and puts into the state what is needed to undo it.
func (st *state) prepare(o Options, t target) (change, error) {
	d, err := driverOf(o.Runtime)
	if err != nil {
		return change{}, err
	}
	if err := o.contains(t.path); err != nil {
		return change{}, err
	}
	now, err := readFile(o.on(t.path))
	if errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("%w: %w", errForeign, err)
	}
	if err != nil {
		return change{}, err
	}
	rec, known := st.Files[t.path]
	if !known || !now.exists || !rec.wrote(now.content) {
		// What is there now, without our entries, is what somebody wants to have: it is the original from here on.
		original := now
		stripped, err := strip(now.content, rec, o)
		if err != nil {
			return change{}, err
		}
		if known && rec.mentions(stripped) {
			return change{}, fmt.Errorf("%w: %s", errForeign, rec.unmarked())
		}
		if ours := !bytes.Equal(stripped, now.content); ours {
			original.content = stripped
			original.exists = known && rec.Existed || !isBlank(stripped)
		}
		written := []string(nil)
		if known {
			written = rec.Written
		}
		rec = &record{Existed: original.exists, Original: original.content, Written: written}
	}
	content, err := t.insert(rec.Original)
	if err != nil {
		return change{}, err
	}
	rec.Runtime, rec.Mark, rec.Restart = o.Runtime, o.markOf(t), t.restart
	rec.latest = digestOf(content)
	rec.Marked = d.marked(content)
	if !slices.Contains(rec.Written, rec.latest) {
		rec.Written = append(rec.Written, rec.latest)
	}
	st.Files[t.path] = rec
	st.makeDirs(o, filepath.Dir(t.path))
	mode := now.mode
	if !now.exists {
		mode = newFileMode
	}
	if !bytes.Equal(now.content, content) {
		rec.At, rec.Readers = time.Time{}, nil // not known until it is written
	}
	return change{path: t.path, content: content, mode: mode}, nil
}

// newFileMode is for files that were not there: every runtime, rootless ones too, may read them.
const newFileMode = 0o644

// strip takes the entries of an earlier installation (rec, where it is known) or of this runtime's out of content.
func strip(content []byte, rec *record, o Options) ([]byte, error) {
	runtime := o.Runtime
	if rec != nil {
		runtime = rec.Runtime
	}
	d, err := driverOf(runtime)
	if err != nil {
		return nil, err
	}
	return d.strip(content), nil
}

func (st *state) prepareLink(o Options, l link) change {
	if _, err := os.Lstat(o.on(l.path)); err == nil {
		return change{path: l.path, keep: true} // made by an earlier installation, or by somebody else meanwhile
	}
	st.Links[l.path] = l.to
	st.makeDirs(o, filepath.Dir(l.path))
	return change{path: l.path, linkTo: l.to}
}
