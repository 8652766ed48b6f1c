package mirror

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Remove undoes what Install did. Where nothing was installed it does nothing.
func Remove(o Options) (Result, error) {
	if err := o.check(); err != nil {
		return Result{}, fmt.Errorf("remove mirror: %w", err)
	}
	result, err := remove(o)
	if err != nil {
		return result, fmt.Errorf("remove mirror for %s: %w", o.Runtime, err)
	}
	return result, nil
}

func remove(o Options) (Result, error) {
	st, unlock, err := stateToRemove(o)
	if err != nil || st == nil {
		return Result{}, err
	}
	defer unlock()
	restart := st.restarts()
	saved, err := st.saveEdits(o)
	if err != nil {
		return Result{}, err
	}
	changes, stuck, err := st.restoreAll(o, nil)
	if err != nil {
		return Result{}, err
	}
	strays, err := st.strays(o)
	if err != nil {
		return Result{}, err
	}
	result := Result{Findings: saved}
	var unwritable error // one file that cannot be written keeps none of the others
	for _, c := range append(changes, strays...) {
		did, err := c.apply(o)
		unwritable = errors.Join(unwritable, err)
		if did && err == nil {
			result.Changed = append(result.Changed, c.path)
		}
	}
	if unwritable != nil {
		return result, fmt.Errorf("make these writable (lsattr, mount, df), and remove the mirror again: %w",
			unwritable)
	}
	if len(stuck) == 0 {
		result.Findings = append(result.Findings, restarts(result.Changed, restart)...)
		err = st.drop(o)
	} else {
		result.Findings = append(result.Findings, stuck...)
		err = st.keep(o, stuck)
	}
	if len(saved) > 0 {
		err = errors.Join(fmt.Errorf("%w: %d of its files, see the notes", ErrEditSaved, len(saved)), err)
	}
	return result, err
}

// stateToRemove is the state, which is this run's until unlock. It is nil where there is nothing to remove.
func stateToRemove(o Options) (st *state, unlock func(), err error) {
	st, unlock, err = lockedState(o.StateDir, lock)
	if !errors.Is(err, errGone) {
		return st, unlock, err
	}
	// Nothing is installed, or the state was lost. Only the latter is worth a folder for the lock.
	if strays, err := newState().strays(o); err != nil || len(strays) == 0 {
		return nil, nil, err
	}
	return lockedState(o.StateDir, lockMade)
}

// drop forgets all, and removes what was made for it.
func (st *state) drop(o Options) error {
	st.Files, st.Links = nil, nil
	if err := st.removeDirs(o); err != nil {
		return err
	}
	return dropState(o.StateDir)
}

// keep saves what could not be undone, and says so. The originals stay in the state.
func (st *state) keep(o Options, stuck []Finding) error {
	left := make(map[string]*record)
	for _, f := range stuck {
		left[f.Path] = st.Files[f.Path]
	}
	st.Files, st.Links = left, nil
	if err := st.removeDirs(o); err != nil {
		return err
	}
	if err := st.save(o); err != nil {
		return err
	}
	return fmt.Errorf("%w: %d of its files, see the notes; what was there before is kept in %s", ErrNotUndone,
		len(stuck), filepath.Join(o.StateDir, stateFile))
}

// restoreAll works out how to undo what the state knows of all paths but some. Where it can't be undone a finding says
// so.
func (st *state) restoreAll(o Options, but map[string]bool) (changes []change, stuck []Finding, err error) {
	for _, path := range st.paths() {
		if but[path] {
			continue
		}
		c, left, err := st.restore(o, path)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", path, err)
		}
		if left != nil {
			stuck = append(stuck, *left)
		}
		changes = append(changes, c)
	}
	return changes, stuck, nil
}

// restore works out how to undo what the state knows of path, or finds that it can't.
func (st *state) restore(o Options, path string) (c change, stuck *Finding, err error) {
	if to, isLink := st.Links[path]; isLink {
		now, err := os.Readlink(o.on(path))
		return change{path: path, remove: true, keep: err != nil || now != to}, nil, nil
	}
	rec := st.Files[path]
	now, err := readUpTo(o.on(path), maxGrown)
	switch {
	case errors.Is(err, errTooLarge):
		return change{path: path, keep: true}, &Finding{NotUndone, path,
			err.Error() + "; take out the lines that hold " + rec.Mark + " by hand, and remove the mirror again"}, nil
	case errors.Is(err, errForeign), err == nil && !now.exists:
		// somebody removed it, or put a link in its place, and wants it so
		return change{path: path, keep: true}, nil, nil
	case err != nil:
		return change{}, nil, err
	}
	// A link in the place of a file that was made is somebody's own, and so is what it leads to.
	made := !rec.Existed && !isLink(o.on(path))
	if rec.wrote(now.content) {
		// Somebody may have changed the mode since, and wants it so.
		return change{path: path, content: rec.Original, mode: now.mode, remove: made}, nil, nil
	}
	stripped, err := strip(now.content, rec, o)
	if err != nil {
		return change{}, nil, err
	}
	if !bytes.Equal(now.content, rec.Original) && rec.mentions(stripped) {
		return change{path: path, keep: true}, &Finding{NotUndone, path,
			rec.unmarked() + ", and remove the mirror again"}, nil
	}
	empty := isBlank(stripped)
	return change{path: path, content: stripped, mode: now.mode, remove: empty && made}, nil, nil
}

func isLink(path string) bool {
	_, err := os.Readlink(path)
	return err == nil
}

// strays are entries of the agent that the state does not know, because it was lost.
func (st *state) strays(o Options) ([]change, error) {
	d, err := driverOf(o.Runtime)
	if err != nil {
		return nil, err
	}
	files, err := d.written(o)
	if err != nil {
		return nil, err
	}
	var changes []change
	for _, path := range files {
		if _, known := st.Files[path]; known {
			continue
		}
		now, err := readUpTo(o.on(path), maxGrown)
		if errors.Is(err, errForeign) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if stripped := d.strip(now.content); !bytes.Equal(stripped, now.content) {
			empty := isBlank(stripped)
			changes = append(changes, change{path: path, content: stripped, mode: now.mode, remove: empty &&
				!isLink(o.on(path))})
		}
	}
	return changes, nil
}
