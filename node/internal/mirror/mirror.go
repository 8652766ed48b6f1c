// Package mirror makes a container runtime use the agent's registry front as a mirror, and undoes it.
//
// Install reads what the runtime has configured, puts the front before every other mirror, and leaves the registry itself
// as the last resort, so that a node without a running agent pulls as before. What other people wrote is kept: TLS files,
// other mirrors, headers, comments. Before anything changes, the original bytes and the digests of what is about to be
// written go into a state file. Remove puts the original bytes back where the file is still as Install left it, takes out
// only the agent's own entries where somebody has edited it since, and removes files and directories that Install made.
// Every file is replaced by a rename, so a crash at any moment leaves the old or the new one, and either operation can
// be run again.
package mirror

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
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
	// Registries are the hosts to mirror, as image references spell them. Empty: All.
	Registries []string
	// Root is where the node's file system is mounted. Empty: "/". All paths below are those on the node.
	Root string
	// Path is the runtime's mirror configuration: a directory for containerd and CRI-O, a file for k3s and RKE2. Empty:
	// where the runtime looks for it.
	Path string
	// RuntimeConfig is containerd's own configuration file, which is only read. Empty: where it usually is.
	RuntimeConfig string
	// StateDir is where the originals are kept until removal. It is used by nobody else.
	StateDir string

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
	// LegacyMirrors: containerd's configuration holds mirrors or TLS files in the old form, which excludes a directory of
	// mirrors.
	LegacyMirrors FindingKind = "LegacyMirrors"
	// RuntimeConfigUnreadable: containerd's configuration could not be read, so nothing is known about it.
	RuntimeConfigUnreadable FindingKind = "RuntimeConfigUnreadable"
	// NotMirrored: an entry had to be left as it is, so its registry is not mirrored.
	NotMirrored FindingKind = "NotMirrored"
	// RestartNeeded: the runtime reads the change only when it starts.
	RestartNeeded FindingKind = "RestartNeeded"
	// Edited: somebody changed a file after Install wrote it. Reported by Status.
	Edited FindingKind = "Edited"
	// Missing: somebody removed a file after Install wrote it. Reported by Status.
	Missing FindingKind = "Missing"
)

// Finding is something that somebody should look at.
type Finding struct {
	Kind FindingKind
	// Path is the file it is about, on the node.
	Path string
	// Message says what was found and what to do.
	Message string
}

func (f Finding) String() string { return fmt.Sprintf("%s: %s: %s", f.Kind, f.Path, f.Message) }

// errForeign is that an entry, or a file, must be left as it is. On installation the reason becomes a finding.
var errForeign = errors.New("left as it is")

// target is one file that a runtime reads.
type target struct {
	// path is the file's, on the node.
	path string
	// insert puts the agent's entries into the file's content, which holds none of them. A file that is not there has
	// none.
	insert func(content []byte) ([]byte, error)
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

// check fills in what is left out and refuses what cannot work.
func (o *Options) check() error {
	if _, err := driverOf(o.Runtime); err != nil {
		return err
	}
	if o.Root == "" {
		o.Root = "/"
	}
	if o.StateDir == "" {
		return errors.New("no state directory is given")
	}
	if o.RuntimeConfig == "" {
		o.RuntimeConfig = paths[o.Runtime].config
	}
	if len(o.Registries) == 0 {
		o.Registries = []string{All}
	}
	for _, registry := range o.Registries {
		if registry != All && (registry == "" || registry == "_default" || strings.ContainsAny(registry, "/\\*\"'# \t\n") || strings.HasPrefix(registry, ".")) {
			return fmt.Errorf("registry %q: want a host as image references spell it, such as docker.io or registry.example:5000, or %q for all", registry, All)
		}
	}
	u, err := url.Parse(o.Endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "" ||
		strings.ContainsAny(o.Endpoint, "\"\\\n") {
		return fmt.Errorf("endpoint %q: want the URL of the registry front, such as http://127.0.0.1:5050", o.Endpoint)
	}
	o.Endpoint = u.Scheme + "://" + u.Host
	return nil
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
	if err := o.check(); err != nil {
		return Result{}, fmt.Errorf("install mirror: %w", err)
	}
	result, err := install(o)
	if err != nil {
		return result, fmt.Errorf("install mirror for %s: %w", o.Runtime, err)
	}
	return result, nil
}

func install(o Options) (Result, error) {
	if err := os.MkdirAll(o.StateDir, 0o700); err != nil {
		return Result{}, err
	}
	unlock, err := lock(o.StateDir)
	if err != nil {
		return Result{}, err
	}
	defer unlock()
	st, err := loadState(o.StateDir)
	if err != nil {
		return Result{}, err
	}
	d, err := driverOf(o.Runtime)
	if err != nil {
		return Result{}, err
	}
	p, err := d.plan(o)
	result := Result{Findings: p.findings}
	if err != nil {
		return result, err
	}

	// Everything is worked out before anything is changed.
	var changes []change
	wanted := make(map[string]bool)
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
		c, err := st.restore(o, path)
		if err != nil {
			return result, fmt.Errorf("%s: %w", path, err)
		}
		changes = append(changes, c)
	}

	// The state is on disk before the first change is, and names all that may be found after a crash.
	if err := st.save(o); err != nil {
		return result, err
	}
	for _, c := range changes {
		did, err := c.apply(o)
		if err != nil {
			return result, err
		}
		if did {
			result.Changed = append(result.Changed, c.path)
		}
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
	if len(result.Changed) > 0 && (o.Runtime == K3s || o.Runtime == RKE2) {
		result.Findings = append(result.Findings, Finding{RestartNeeded, o.mirrors(),
			fmt.Sprintf("%s reads it only when it starts; restart %s on this node", o.Runtime, o.Runtime)})
	}
	return result, st.save(o)
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
	if _, err := os.Stat(o.StateDir); err == nil {
		unlock, err := lock(o.StateDir)
		if err != nil {
			return Result{}, err
		}
		defer unlock()
		if st, err = loadState(o.StateDir); err != nil {
			return Result{}, err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return Result{}, err
	}

	var changes []change
	for _, path := range st.paths() {
		c, err := st.restore(o, path)
		if err != nil {
			return Result{}, fmt.Errorf("%s: %w", path, err)
		}
		changes = append(changes, c)
	}
	strays, err := st.strays(o)
	if err != nil {
		return Result{}, err
	}
	var result Result
	for _, c := range append(changes, strays...) {
		did, err := c.apply(o)
		if err != nil {
			return result, err
		}
		if did {
			result.Changed = append(result.Changed, c.path)
		}
	}
	st.Files, st.Links = nil, nil
	if err := st.removeDirs(o); err != nil {
		return result, err
	}
	return result, dropState(o.StateDir)
}

// Status says, without changing anything, which files Install wrote and what somebody should look at.
func Status(o Options) (Result, error) {
	if err := o.check(); err != nil {
		return Result{}, fmt.Errorf("mirror status: %w", err)
	}
	st, err := loadState(o.StateDir)
	if err != nil {
		return Result{}, fmt.Errorf("mirror status: %w", err)
	}
	d, err := driverOf(o.Runtime)
	if err != nil {
		return Result{}, err
	}
	var result Result
	for _, path := range st.paths() {
		result.Changed = append(result.Changed, path)
		rec, isFile := st.Files[path]
		if !isFile {
			continue
		}
		now, err := readFile(o.on(path))
		switch {
		case err != nil:
			return result, fmt.Errorf("mirror status: %w", err)
		case !now.exists:
			result.Findings = append(result.Findings, Finding{Missing, path, "was removed since it was written; install again, or remove the mirror"})
		case !rec.wrote(now.content):
			result.Findings = append(result.Findings, Finding{Edited, path, "was edited since it was written; removal keeps the edit and takes out the agent's entries"})
		}
	}
	if p, err := d.plan(o); err == nil {
		result.Findings = append(result.Findings, p.findings...)
	}
	return result, nil
}

// prepare works out a target's new content, and puts into the state what is needed to undo it.
func (st *state) prepare(o Options, t target) (change, error) {
	now, err := readFile(o.on(t.path))
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
		if ours := !bytes.Equal(stripped, now.content); ours {
			original.content = stripped
			original.exists = known && rec.Existed || len(bytes.TrimSpace(stripped)) > 0
		}
		written := []string(nil)
		if known {
			written = rec.Written
		}
		rec = &record{Existed: original.exists, Mode: original.mode, Original: original.content, Written: written}
	}
	content, err := t.insert(rec.Original)
	if err != nil {
		return change{}, err
	}
	rec.Runtime = o.Runtime
	rec.latest = digestOf(content)
	if !slices.Contains(rec.Written, rec.latest) {
		rec.Written = append(rec.Written, rec.latest)
	}
	st.Files[t.path] = rec
	st.makeDirs(o, filepath.Dir(t.path))
	return change{path: t.path, content: content, mode: rec.Mode}, nil
}

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

// restore works out how to undo what the state knows of path.
func (st *state) restore(o Options, path string) (change, error) {
	if to, isLink := st.Links[path]; isLink {
		now, err := os.Readlink(o.on(path))
		return change{path: path, remove: true, keep: err != nil || now != to}, nil
	}
	rec := st.Files[path]
	now, err := readFile(o.on(path))
	switch {
	case errors.Is(err, errForeign), err == nil && !now.exists:
		return change{path: path, keep: true}, nil // somebody removed it, or put a link in its place, and wants it so
	case err != nil:
		return change{}, err
	case rec.wrote(now.content):
		return change{path: path, content: rec.Original, mode: rec.Mode, remove: !rec.Existed}, nil
	}
	stripped, err := strip(now.content, rec, o)
	if err != nil {
		return change{}, err
	}
	empty := len(bytes.TrimSpace(stripped)) == 0
	return change{path: path, content: stripped, mode: now.mode, remove: empty && !rec.Existed}, nil
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
		now, err := readFile(o.on(path))
		if errors.Is(err, errForeign) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if stripped := d.strip(now.content); !bytes.Equal(stripped, now.content) {
			changes = append(changes, change{path: path, content: stripped, mode: now.mode, remove: len(bytes.TrimSpace(stripped)) == 0})
		}
	}
	return changes, nil
}
