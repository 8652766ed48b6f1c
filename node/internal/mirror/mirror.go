// Package mirror makes a container runtime use the agent's registry front as a mirror, and undoes it.
//
// Install reads what the runtime has configured, puts the front before every other mirror, and leaves the registry
// itself as the last resort, so that a node without a running agent pulls as before. What other people wrote is kept:
// TLS files, other mirrors, headers, comments. Before anything changes, the original bytes and the digests of what is
// about to be written go into a state file. Remove puts the original bytes back where the file is still as Install left
// it, takes out only the agent's own entries where somebody has edited it since, and removes files and directories that
// Install made. Every file is replaced by a rename, so a crash at any moment leaves the old or the new one, and either
// operation can be run again.
package mirror

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/pelletier/go-toml/v2"
	"go.yaml.in/yaml/v3"
)

// Runtime names a family of runtimes that share a way to configure mirrors.
type Runtime string

const (
	// Containerd reads a directory with a hosts.toml for each registry (containerd 1.5 and later).
	Containerd Runtime = "containerd"
	// MicroK8s is containerd with its files inside of the snap.
	MicroK8s Runtime = "microk8s"
	// Talos is containerd with its files where Talos mounts them.
	Talos Runtime = "talos"
	// CRIO is CRI-O, podman and whatever else reads containers-registries.conf(5).
	CRIO Runtime = "cri-o"
	// K3s reads registries.yaml when it starts, and writes containerd's files from it.
	K3s Runtime = "k3s"
	// RKE2 does as K3s, with a file of its own.
	RKE2 Runtime = "rke2"
)

// Runtimes are all runtimes that can be configured.
var Runtimes = []Runtime{Containerd, CRIO, K3s, RKE2, MicroK8s, Talos}

// All stands for every registry that has no configuration of its own.
const All = "*"

// Options say what to configure.
type Options struct {
	Runtime Runtime
	// Endpoint is the URL of the agent's registry front, such as http://127.0.0.1:5050.
	Endpoint string
	// AnyEndpoint has Status take the endpoint of what is installed for the right one, where nobody says which it is.
	AnyEndpoint bool
	// Registries are the hosts to mirror, as image references spell them. Empty: All.
	Registries []string
	// Root is where the node's file system is mounted. Empty: "/". All paths below are those on the node.
	Root string
	// Path is the runtime's mirror configuration: a directory for containerd and CRI-O, a file for k3s and RKE2. Empty:
	// where the runtime looks for it.
	Path string
	// RuntimeConfig is containerd's own configuration file, which is only read. Empty: where it usually is.
	RuntimeConfig string
	// FixConfigPath has Install make containerd read the directory of mirrors where its configuration keeps it from
	// that: by a link where config_path is a list, and by a change to the configuration where it is not set.
	FixConfigPath bool
	// Release is the version of the node's runtime, as that reports it. Empty: not known, unless the node is this
	// machine.
	Release string
	// Socket is where the runtime's socket is found here, which tells when it was started. Empty: where it usually is.
	Socket string
	// StateDir is where the originals are kept until removal. It is used by nobody else.
	StateDir string

	// byName tells that Endpoint names the IPv6 loopback "localhost", as every runtime reads it.
	byName bool
	// asIs has the runtime's configuration read as it is now, and not as it would be without what Install did to it.
	asIs bool
	// state is what an earlier installation left.
	state *state
	// dump is the configuration that the node's containerd says it has; nil where it can't be asked.
	dump func() ([]byte, error)
	// reloaded reports whether CRI-O has read its configuration again after a time; nil where that can't be told.
	reloaded func(since time.Time) bool
	// named tells that RuntimeConfig was given, and is not where the runtime looks by itself.
	named bool
	// crash, in tests, is called before every write to disk, and its error ends the run there.
	crash func() error
}

// Result says what was done, or found.
type Result struct {
	// Changed are the paths, on the node, that were written or removed.
	Changed []string
	// Findings are what somebody should look at. They are no errors: the runtime pulls as well as before.
	Findings []Finding
}

// FindingKind is for callers that act on a finding.
type FindingKind string

const (
	// ConfigPathUnset: containerd's configuration does not name a directory of mirrors. Containerd before 2.2 then
	// reads none.
	ConfigPathUnset FindingKind = "ConfigPathUnset"
	// ConfigPathElsewhere: containerd's configuration names other directories than the one that was written.
	ConfigPathElsewhere FindingKind = "ConfigPathElsewhere"
	// ConfigPathList: containerd's configuration names a list of directories, which containerd 2.1 and later take for
	// the name of one.
	ConfigPathList FindingKind = "ConfigPathList"
	// LegacyMirrors: containerd's configuration holds mirrors or TLS files in the old form, which excludes a directory
	// of mirrors.
	LegacyMirrors FindingKind = "LegacyMirrors"
	// RuntimeConfigUnreadable: containerd's configuration could not be read, so nothing is known about it.
	RuntimeConfigUnreadable FindingKind = "RuntimeConfigUnreadable"
	// CRIDisabled: containerd is configured not to serve the CRI, so that Kubernetes cannot pull through it.
	CRIDisabled FindingKind = "CRIDisabled"
	// Outdated: what Install wrote was made from other files, which say something else by now.
	Outdated FindingKind = "Outdated"
	// EditSaved: somebody had written between the marks of what Install wrote. That was taken out with it, and saved.
	EditSaved FindingKind = "EditSaved"
	// NotMirrored: an entry had to be left as it is, so its registry is not mirrored.
	NotMirrored FindingKind = "NotMirrored"
	// RestartNeeded: the runtime reads the change only when it starts.
	RestartNeeded FindingKind = "RestartNeeded"
	// Edited: somebody changed a file after Install wrote it. Reported by Status.
	Edited FindingKind = "Edited"
	// NotUndone: what Install wrote can no longer be told from the rest of a file, so Remove left it. Reported by
	// Remove, with ErrNotUndone.
	NotUndone FindingKind = "NotUndone"
	// DigestsOnly: a registry's mirrors are for images that are named by digest alone, as the administrator has it.
	// Others do not ask the agent.
	DigestsOnly FindingKind = "DigestsOnly"
	// Missing: somebody removed a file after Install wrote it. Reported by Status.
	Missing FindingKind = "Missing"
)

// Finding is something that somebody should look at.
type Finding struct {
	Kind FindingKind `json:"reason"`
	// Path is the file it is about, on the node.
	Path string `json:"path"`
	// Message says what was found and what to do.
	Message string `json:"message"`
}

func (f Finding) String() string { return fmt.Sprintf("%s: %s: %s", f.Kind, f.Path, f.Message) }

// ErrNotUndone is that Remove could not take out all of the agent's entries. The findings tell where.
var ErrNotUndone = errors.New("the agent's entries are not all taken out")

// ErrEditSaved is that somebody had written between the marks of what Install wrote, so that Remove took it out with
// the rest. The findings tell where it is kept.
var ErrEditSaved = errors.New("somebody's lines were between the agent's, and are saved")

// errForeign is that an entry, or a file, must be left as it is. On installation the reason becomes a finding.
var errForeign = errors.New("left as it is")

// target is one file that a runtime reads.
type target struct {
	// path is the file's, on the node.
	path string
	// insert puts the agent's entries into the file's content, which holds none of them. A file that is not there has
	// none.
	insert func(content []byte) ([]byte, error)
	// restart tells that the runtime reads the file only when it starts.
	restart bool
	// mark is what shows that the file holds what was inserted. Empty: the endpoint's address.
	mark string
}

// markOf is the target's mark.
func (o Options) markOf(t target) string {
	if t.mark != "" {
		return t.mark
	}
	_, address, _ := strings.Cut(o.Endpoint, "://")
	return address
}

// link is a symbolic link that keeps a registry's own configuration in force.
type link struct{ path, to string }

// plan is what a runtime's configuration is to look like.
type plan struct {
	targets  []target
	links    []link
	findings []Finding
}

// driver knows the configuration of one family of runtimes.
type driver interface {
	// plan reads what is there and says what is to be written.
	plan(o Options) (plan, error)
	// strip takes out of a file's content what Install put there. It returns content itself where there is nothing.
	strip(content []byte) []byte
	// marked are the lines, or values, that strip takes out for good.
	marked(content []byte) []string
	// written lists the files that may hold the agent's entries, for a removal without state.
	written(o Options) ([]string, error)
}

func driverOf(r Runtime) (driver, error) {
	switch r {
	case Containerd, MicroK8s, Talos:
		return certsD{}, nil
	case CRIO:
		return registriesConf{}, nil
	case K3s, RKE2:
		return registriesYAML{}, nil
	}
	return nil, fmt.Errorf("runtime %q is unknown; want one of %v", r, Runtimes)
}

// paths are where a runtime has its mirrors, and containerd its configuration.
var paths = map[Runtime]struct{ mirrors, config string }{
	Containerd: {"/etc/containerd/certs.d", "/etc/containerd/config.toml"},
	MicroK8s:   {"/var/snap/microk8s/current/args/certs.d", "/var/snap/microk8s/current/args/containerd.toml"},
	Talos:      {"/etc/cri/conf.d/hosts", "/etc/cri/containerd.toml"},
	CRIO:       {"/etc/containers/registries.conf.d", ""},
	K3s:        {"/etc/rancher/k3s/registries.yaml", ""},
	RKE2:       {"/etc/rancher/rke2/registries.yaml", ""},
}

// hostsFile is where runtimes look up names first: hosts(5).
const hostsFile = "/etc/hosts"

// misnamed is a finding where the endpoint is on the IPv6 loopback and the node's name for that leads elsewhere.
func (o Options) misnamed() []Finding {
	now, err := readFile(o.on(hostsFile))
	if !o.byName || err != nil {
		return nil
	}
	elsewhere := false
	for line := range strings.Lines(string(now.content)) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) == 0 || !slices.Contains(fields[1:], "localhost") {
			continue
		}
		if net.ParseIP(fields[0]).Equal(net.IPv6loopback) {
			return nil
		}
		elsewhere = true
	}
	if !elsewhere {
		return nil
	}
	return []Finding{{NotMirrored, hostsFile, "leads localhost to other addresses than ::1, and no runtime reads " +
		"[::1] itself in its configuration: have the agent listen on 127.0.0.1, or add a line \"::1 localhost\""}}
}

// on is where the node's path is found here.
func (o Options) on(path string) string { return filepath.Join(o.Root, path) }

// mirrors is the runtime's mirror configuration on the node.
func (o Options) mirrors() string {
	if o.Path != "" {
		return o.Path
	}
	return paths[o.Runtime].mirrors
}

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
	unlock, err := lockMade(o.StateDir)
	if err != nil {
		return Result{}, err
	}
	defer unlock()
	st, err := loadState(o.StateDir)
	if err != nil {
		return Result{}, err
	}
	o.state = st
	d, err := driverOf(o.Runtime)
	if err != nil {
		return Result{}, err
	}
	p, err := d.plan(o)
	result := Result{Findings: append(p.findings, o.misnamed()...)}
	if err != nil {
		return result, err
	}

	// Everything is worked out before anything is changed.
	var changes []change
	wanted := make(map[string]bool)
	restart := st.restarts()
	for _, path := range st.paths() {
		saved, err := st.saveEdit(o, path)
		if err != nil {
			return result, err
		}
		result.Findings = append(result.Findings, saved...)
	}
	for _, t := range p.targets {
		c, err := st.prepare(o, t)
		if errors.Is(err, errForeign) {
			result.Findings = append(result.Findings, Finding{NotMirrored, t.path, err.Error()})
			continue
		}
		if err != nil {
			return result, fmt.Errorf("%s: %w", t.path, err)
		}
		wanted[t.path] = true
		if t.restart {
			restart[t.path] = o.Runtime
		}
		changes = append(changes, c)
	}
	for _, l := range p.links {
		wanted[l.path] = true
		changes = append(changes, st.prepareLink(o, l))
	}
	for _, path := range st.paths() {
		if wanted[path] {
			continue
		}
		c, stuck, err := st.restore(o, path)
		if err != nil {
			return result, fmt.Errorf("%s: %w", path, err)
		}
		if stuck != nil {
			result.Findings = append(result.Findings, *stuck)
			wanted[path] = true // it is kept in the state
		}
		changes = append(changes, c)
	}

	st.Registries = o.Registries
	st.see(o)
	readers := o.readers(o.Runtime)
	// The state is on disk before the first change is, and names all that may be found after a crash.
	if err := st.save(o); err != nil {
		return result, err
	}
	var refused []error
	for _, c := range changes {
		did, err := c.apply(o)
		if isRefusal(err) || errors.Is(err, errForeign) {
			refused = append(refused, err)
			wanted[c.path] = true // it is kept in the state
			result.Findings = append(result.Findings, Finding{NotMirrored, c.path, err.Error()})
			continue
		}
		if err != nil {
			return result, err
		}
		if did {
			result.Changed = append(result.Changed, c.path)
			if rec := st.Files[c.path]; rec != nil {
				rec.At, rec.Readers = time.Now(), readers
			}
		}
	}
	if len(refused) > 0 && len(refused) == len(changes) {
		return result, errors.Join(refused...)
	}
	for _, path := range st.paths() {
		if !wanted[path] {
			delete(st.Files, path)
			delete(st.Links, path)
		}
	}
	if err := st.removeDirs(o); err != nil {
		return result, err
	}
	st.settle()
	result.Findings = append(result.Findings, restarts(result.Changed, restart)...)
	return result, st.save(o)
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
	st := newState()
	switch unlock, err := lock(o.StateDir); {
	case err == nil:
		defer unlock()
		if st, err = loadState(o.StateDir); err != nil {
			return Result{}, err
		}
	case !errors.Is(err, errGone):
		return Result{}, err
	default:
		// Nothing is installed, or the state was lost. Only the latter is worth a folder for the lock.
		if strays, err := st.strays(o); err != nil || len(strays) == 0 {
			return Result{}, err
		}
		if unlock, err = lockMade(o.StateDir); err != nil {
			return Result{}, err
		}
		defer unlock()
		if st, err = loadState(o.StateDir); err != nil {
			return Result{}, err
		}
	}

	var changes []change
	var stuck []Finding
	var result Result
	restart := st.restarts()
	for _, path := range st.paths() {
		saved, err := st.saveEdit(o, path)
		if err != nil {
			return Result{}, err
		}
		result.Findings = append(result.Findings, saved...)
		c, left, err := st.restore(o, path)
		if err != nil {
			return Result{}, fmt.Errorf("%s: %w", path, err)
		}
		if left != nil {
			stuck = append(stuck, *left)
		}
		changes = append(changes, c)
	}
	strays, err := st.strays(o)
	if err != nil {
		return Result{}, err
	}
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
	var edits error
	if len(result.Findings) > 0 {
		edits = fmt.Errorf("%w: %d of its files, see the notes", ErrEditSaved, len(result.Findings))
	}
	if len(stuck) > 0 {
		result.Findings = append(result.Findings, stuck...)
		return result, errors.Join(edits, st.keep(o, stuck))
	}
	result.Findings = append(result.Findings, restarts(result.Changed, restart)...)
	st.Files, st.Links = nil, nil
	if err := st.removeDirs(o); err != nil {
		return result, err
	}
	return result, errors.Join(edits, dropState(o.StateDir))
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
