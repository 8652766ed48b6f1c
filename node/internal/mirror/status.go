package mirror

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"slices"

	"github.com/pelletier/go-toml/v2"
	"go.yaml.in/yaml/v3"
)

// Status says, without changing anything, which files Install wrote and what somebody should look at. Without
// registries it is about those that Install was given.
func Status(o Options) (Result, error) {
	asked := len(o.Registries)
	if err := o.check(); err != nil {
		return Result{}, fmt.Errorf("mirror status: %w", err)
	}
	st, err := loadState(o.StateDir)
	if err != nil {
		return Result{}, fmt.Errorf("mirror status: %w", err)
	}
	if asked == 0 && len(st.Registries) > 0 {
		o.Registries = st.Registries
	}
	d, err := driverOf(o.Runtime)
	if err != nil {
		return Result{}, err
	}
	result, intact, edited, err := st.found(o)
	if err != nil {
		return result, fmt.Errorf("mirror status: %w", err)
	}
	o.state, o.asIs = st, true
	p, err := d.plan(o)
	if err != nil {
		return result, fmt.Errorf("mirror status: %w", err)
	}
	for _, path := range slices.Sorted(maps.Keys(edited)) {
		f := Finding{Edited, path,
			"was edited since it was written; removal keeps the edit and takes out the agent's entries"}
		if o.unplugged(d, p, st.Files[path], path, edited[path]) {
			f.Kind, f.Message = Missing, "was edited since it was written, and does not lead to the agent first any "+
				"more; install again, or remove the mirror"
		} else {
			result.Changed = append(result.Changed, path)
		}
		if added := st.Files[path].addedTo(edited[path]); len(added) > 0 {
			f.Message += fmt.Sprintf("; %q is between the agent's marks, and would be taken out with it: write it "+
				"outside", added[0])
		}
		result.Findings = append(result.Findings, f)
	}
	if slices.Equal(slices.Sorted(slices.Values(o.Registries)), slices.Sorted(slices.Values(st.Registries))) {
		result.Findings = append(result.Findings, st.outdated(o, p.targets, intact)...)
	}
	result.Findings = slices.Concat(result.Findings, p.findings, o.misnamed(), st.unloaded(o, intact))
	if len(result.Changed) > 0 {
		result.Findings = append(result.Findings, st.without(o, p.targets)...)
	}
	return result, nil
}

// found compares the files with what Install wrote: those that are as they were written, and those that were edited and
// name the agent still. The result tells of the others.
func (st *state) found(o Options) (result Result, intact, edited map[string][]byte, err error) {
	intact, edited = map[string][]byte{}, map[string][]byte{}
	for _, path := range st.paths() {
		rec, isFile := st.Files[path]
		if !isFile {
			result.Changed = append(result.Changed, path)
			continue
		}
		now, err := readFile(o.on(path))
		if err != nil && !errors.Is(err, errForeign) {
			return result, nil, nil, err
		}
		f := Finding{Path: path}
		switch {
		case err == nil && rec.wrote(now.content):
			intact[path] = now.content
			result.Changed = append(result.Changed, path)
			// What installed in a pod saw no process of the node.
			due := rec.Restart || rec.Runtime == CRIO && o.hasToBeRenewed()
			if due && !st.servesAtOnce() && o.readBefore(path, rec) {
				result.Findings = append(result.Findings, restartNeeded(path, rec.Runtime))
			}
			continue
		case err == nil && !now.exists && !rec.Existed:
			f.Kind, f.Message = Missing, "is not there: it was removed since it was written, or an installation did "+
				"not come to its end; install again, or remove the mirror"
		case err == nil && now.exists == rec.Existed && bytes.Equal(now.content, rec.Original):
			f.Kind, f.Message = Missing, "does not hold what was to be written: "+
				"an installation did not come to its end; install again, or remove the mirror"
		case err == nil && !now.exists:
			f.Kind, f.Message = Missing, "was removed since it was written; install again, or remove the mirror"
		case err != nil:
			f.Kind, f.Message = Missing, "cannot be read any more, so that nothing is known of it: "+err.Error()
		case !rec.mentions(uncommented(now.content)):
			f.Kind, f.Message = Missing, "was edited since it was written, and does not name the agent any more; "+
				"install again, or remove the mirror"
		default:
			edited[path] = now.content
			continue
		}
		result.Findings = append(result.Findings, f)
	}
	return result, intact, edited, nil
}

// outdated are findings for files that are as Install wrote them, and that it would write otherwise by now. It takes
// over mirrors and certificates from other files, which somebody may have changed. Or the agent is at another endpoint.
func (st *state) outdated(o Options, targets []target, intact map[string][]byte) (found []Finding) {
	for _, t := range targets {
		rec, content := st.Files[t.path], intact[t.path]
		if content == nil {
			continue
		}
		switch mark := o.markOf(t); {
		case mark == rec.Mark:
			fresh, err := t.insert(rec.Original)
			if err != nil || !bytes.Equal(content, fresh) && !sameMeaning(t.path, o.asRead(content), o.asRead(fresh)) {
				found = append(found, Finding{Outdated, t.path, "takes over what other files say of mirrors and " +
					"certificates, and they were changed since it was written; install again"})
			}
		case t.mark == "" && rec.Mark != "" && !o.AnyEndpoint:
			found = append(found, Finding{Outdated, t.path, fmt.Sprintf("leads to an agent at %s, and not to the one "+
				"at %s; install again", rec.Mark, mark)})
		}
	}
	return found
}

// unplugged reports whether a file that names the agent, and was edited, says something else than if the agent's
// entries were put in once more. Where their marks are gone it is enough that the file can be read.
func (o Options) unplugged(d driver, p plan, rec *record, path string, content []byte) bool {
	if _, isHosts := d.(certsD); isHosts {
		content = o.asRead(content)
		if filepath.Base(path) == "hosts.toml" && o.accepted(content) != nil {
			return true
		}
	} else {
		_, content = cutMark(content)
	}
	if !sameMeaning(path, content, content) {
		return true
	}
	bare := d.strip(content)
	for _, t := range p.targets {
		if t.path == path && o.markOf(t) == rec.Mark && !bytes.Equal(bare, content) {
			fresh, err := t.insert(bare)
			return err != nil || !sameMeaning(path, content, fresh)
		}
	}
	return false
}

// sameMeaning reports whether two contents of a file say the same to who reads it. What cannot be read says nothing.
func sameMeaning(path string, a, b []byte) bool {
	var inA, inB any
	if filepath.Ext(path) == ".yaml" {
		return yaml.Unmarshal(a, &inA) == nil && yaml.Unmarshal(b, &inB) == nil && reflect.DeepEqual(inA, inB)
	}
	if toml.Unmarshal(a, &inA) != nil || toml.Unmarshal(b, &inB) != nil || !reflect.DeepEqual(inA, inB) {
		return false
	}
	orderA, errA := hostOrder(a) // which containerd goes by
	orderB, errB := hostOrder(b)
	return errA == nil && errB == nil && slices.Equal(orderA, orderB)
}

// uncommented is content without its lines of comment.
func uncommented(content []byte) (rest []byte) {
	for line := range bytes.Lines(content) {
		if !bytes.HasPrefix(bytes.TrimSpace(line), []byte("#")) {
			rest = append(rest, line...)
		}
	}
	return rest
}

// without are findings for what an installation would write and none has written: a registry that got a directory of
// its own since, or one whose entry has to be left as it is.
func (st *state) without(o Options, targets []target) (found []Finding) {
	for _, t := range targets {
		if st.Files[t.path] != nil {
			continue
		}
		f := Finding{Missing, t.path,
			"does not name the agent, and so is not mirrored: it was not there when the mirror was installed; " +
				"install again"}
		now, err := readFile(o.on(t.path))
		if err == nil {
			_, err = t.insert(now.content)
		}
		if err != nil {
			f.Kind, f.Message = NotMirrored, err.Error()
		}
		found = append(found, f)
	}
	return found
}

// InForce tells, of a result of Status, whether the runtime asks the agent for the registries that it was installed
// for, as far as its administrator lets it ask mirrors.
func (r Result) InForce() bool {
	return len(r.Changed) > 0 && !slices.ContainsFunc(r.Findings, func(f Finding) bool {
		return f.Kind != Edited && f.Kind != DigestsOnly
	})
}
