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
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"
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
	// RuntimeConfig is containerd's own configuration file, which only FixConfigPath has changed. Empty: where it
	// usually is.
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

func (f Finding) String() string { return string(f.Kind) + ": " + f.Told() }

// Told is the finding without its kind, for where that stands beside it.
func (f Finding) Told() string { return f.Path + ": " + f.Message }

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
