package mirror

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// This file finds out whether the runtime that runs has read what was written for it.

// programs are what the processes of the runtimes run. Those that are left out are known by their sockets; MicroK8s'
// containerd has files of its own, as every snap.
var programs = map[Runtime]string{Containerd: "containerd", Talos: "containerd", CRIO: "crio"}

// sockets are where the runtimes listen.
var sockets = map[Runtime]string{
	Containerd: "/run/containerd/containerd.sock",
	MicroK8s:   "/var/snap/microk8s/common/run/containerd.sock",
	Talos:      "/run/containerd/containerd.sock",
	K3s:        "/run/k3s/containerd/containerd.sock",
	RKE2:       "/run/k3s/containerd/containerd.sock",
}

// units are the runtime's services, of which a node runs one.
func (r Runtime) units() []string {
	switch r {
	case MicroK8s:
		return []string{"snap.microk8s.daemon-containerd"}
	case RKE2:
		return []string{"rke2-agent", "rke2-server"}
	case K3s:
		return []string{"k3s-agent", "k3s"}
	case CRIO:
		return []string{"crio"}
	}
	return []string{string(r)}
}

// renewal is what systemctl is told for the runtime to read its configuration.
func (r Runtime) renewal() string {
	if r == CRIO {
		return "try-reload-or-restart"
	}
	return "try-restart"
}

func restartNeeded(path string, r Runtime) Finding {
	when := "when it starts"
	if r == CRIO {
		when = "when it starts or is reloaded"
	}
	return Finding{RestartNeeded, path, fmt.Sprintf("%s reads it only %s: on this node, run systemctl %s %s", r, when,
		r.renewal(), strings.Join(r.units(), " "))}
}

// clockPrecision is how far the start of a process may be off.
const clockPrecision = 20 * time.Millisecond

// readBefore reports whether the node's runtime last read its configuration before a file was written, as far as that
// shows here.
func (o Options) readBefore(path string, rec *record) bool {
	written := o.writtenAt(path, rec)
	before, known := same(o.readers(rec.Runtime), rec.Readers)
	if !known {
		read, seen := o.started(rec.Runtime)
		if !seen {
			read, seen = o.listensSince(rec.Runtime)
		}
		before = seen && read.Before(written) && !written.After(time.Now()) // the clock has been set back since
	}
	return before && (rec.Runtime != CRIO || o.reloaded == nil || !o.reloaded(written))
}

// readers tell the runtime that runs from one that was started earlier or later, whatever the clock says. Each is a
// word for how it was seen, and what was seen.
func (o Options) readers(r Runtime) (all []string) {
	if p, found := o.process(r); found {
		all = append(all, "process "+p.id)
	}
	if socket, known := o.socketOf(r); known {
		if inode, ok := socket.Sys().(*syscall.Stat_t); ok {
			all = append(all, fmt.Sprintf("socket %d %d", inode.Ino, socket.ModTime().UnixNano()))
		}
	}
	return all
}

// same reports whether two readers that were seen in the same way are the same. known is false where there are none.
func same(now, then []string) (same, known bool) {
	for _, reader := range now {
		how, _, _ := strings.Cut(reader, " ")
		for _, other := range then {
			if strings.HasPrefix(other, how+" ") {
				return reader == other, true
			}
		}
	}
	return false, false
}

// writtenAt is when Install wrote a file.
func (o Options) writtenAt(path string, rec *record) time.Time {
	if !rec.At.IsZero() {
		return rec.At
	}
	return o.changedAt(path)
}

// changedAt is when a file was last changed; the zero time where that can't be told.
func (o Options) changedAt(path string) time.Time {
	info, err := os.Stat(o.on(path))
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// listensSince is when the runtime's socket was made, which it makes when it starts.
func (o Options) listensSince(r Runtime) (time.Time, bool) {
	socket, known := o.socketOf(r)
	if !known {
		return time.Time{}, false
	}
	return socket.ModTime(), true
}

func (o Options) socketOf(r Runtime) (fs.FileInfo, bool) {
	path := cmp.Or(o.Socket, o.on(sockets[r]))
	socket, err := os.Stat(path)
	return socket, err == nil && socket.Mode()&fs.ModeSocket != 0
}

// started is when the process of the node's runtime was started, at the latest.
func (o Options) started(r Runtime) (time.Time, bool) {
	p, found := o.process(r)
	return p.started, found
}

// process is one of a runtime.
type process struct {
	started time.Time
	// id is of this process alone.
	id string
	// program is a path that runs what it runs, and dir where it works. Both are empty where those are not of the files
	// that are seen here.
	program, dir string
}

// process is the oldest one of the node's runtime.
func (o Options) process(r Runtime) (oldest process, found bool) {
	proc, err := procfs.NewFS(procfs.DefaultMountPoint)
	if err != nil || programs[r] == "" {
		return process{}, false
	}
	processes, err := proc.AllProcs()
	if err != nil {
		return process{}, false
	}
	for _, p := range processes {
		program, err := p.Executable()
		if err != nil || filepath.Base(strings.TrimSuffix(program, " (deleted)")) != programs[r] || !o.serves(r, p) {
			continue
		}
		at, err := startOf(p)
		if err != nil || found && !at.Before(oldest.started) {
			continue
		}
		oldest, found = process{started: at, id: idOf(p)}, true
		if dir, err := p.Cwd(); err == nil && seesSameFiles(p) {
			// This names the program also after an upgrade has replaced the file.
			oldest.program, oldest.dir = filepath.Join(procOf(p), "exe"), dir
		}
	}
	return oldest, found
}

// idOf tells a process from those that have its number before or after it.
func idOf(p procfs.Proc) string {
	boot, _ := os.ReadFile(filepath.Join(procfs.DefaultMountPoint, "sys/kernel/random/boot_id"))
	stat, _ := p.Stat()
	return fmt.Sprintf("%s %d %d", bytes.TrimSpace(boot), p.PID, stat.Starttime)
}

func procOf(p procfs.Proc) string {
	return filepath.Join(procfs.DefaultMountPoint, strconv.Itoa(p.PID))
}

// isOfNode reports whether a process runs as this one does: as the same user, among the same processes. The root of a
// container is the same user by its number alone.
func isOfNode(p procfs.Proc) bool {
	info, err := os.Stat(procOf(p))
	if err != nil {
		return false
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(owner.Uid) == os.Geteuid() && sharesNamespace(p, "pid") && sharesNamespace(p, "user")
}

// seesSameFiles reports whether a path means the same to a process as here. The program of another is never run: it may
// be anybody's.
func seesSameFiles(p procfs.Proc) bool {
	root, err := os.Readlink(filepath.Join(procOf(p), "root"))
	return err == nil && root == "/" && sharesNamespace(p, "mnt")
}

func sharesNamespace(p procfs.Proc, kind string) bool {
	its, err := os.Readlink(filepath.Join(procOf(p), "ns", kind))
	own, errOwn := os.Readlink(filepath.Join(procfs.DefaultMountPoint, "self", "ns", kind))
	return err == nil && errOwn == nil && its == own
}

// statOf is what a process finds at a path.
func statOf(p procfs.Proc, path string) (fs.FileInfo, error) {
	if seesSameFiles(p) {
		return os.Stat(path)
	}
	root, err := os.OpenRoot(filepath.Join(procOf(p), "root")) // out of which neither dots nor links lead
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	return root.Stat(cmp.Or(strings.TrimPrefix(filepath.Clean(path), "/"), "."))
}

// serves reports whether a process of the runtime's program reads the configuration that is meant here: there may be
// other containerds.
func (o Options) serves(r Runtime, p procfs.Proc) bool {
	if !isOfNode(p) {
		return false
	}
	if r == CRIO {
		dir := o.mirrors()
		for dir != "/" && o.changedAt(dir).IsZero() {
			dir = filepath.Dir(dir)
		}
		return o.finds(p, dir, dir)
	}
	args, err := p.CmdLine()
	if err != nil {
		return false
	}
	config, runs := configOf(args)
	if !filepath.IsAbs(config) {
		dir, err := p.Cwd()
		if err != nil {
			return false
		}
		config = filepath.Join(dir, config)
	}
	return runs && o.finds(p, config, o.RuntimeConfig)
}

// finds reports whether a process finds at a path the file or folder that the node has at another.
func (o Options) finds(p procfs.Proc, path, onNode string) bool {
	its, err := statOf(p, path)
	own, errOwn := os.Stat(o.on(onNode))
	return err == nil && errOwn == nil && os.SameFile(its, own)
}

// configOf is the configuration file that containerd's command line names. It reports false for a command that prints
// something and ends.
func configOf(args []string) (config string, runs bool) {
	config = paths[Containerd].config
	for i, arg := range args {
		name, value, given := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		switch {
		case i == 0:
		case arg == "config" || arg == "publish" || arg == "--version" || arg == "-v":
			return config, false
		case arg[:min(1, len(arg))] != "-" || name != "config" && name != "c":
		case given:
			config = value
		case i+1 < len(args):
			config = args[i+1]
		}
	}
	return config, true
}

// ticks is how many of the units in which /proc gives times are a second: proc_pid_stat(5).
const ticks = 100

// startOf is when a process was started, at the latest. It is counted from now, because the clock may have been set
// since the machine started.
func startOf(p procfs.Proc) (time.Time, error) {
	stat, err := p.Stat()
	if err != nil {
		return time.Time{}, err
	}
	var sinceBoot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &sinceBoot); err != nil {
		return time.Time{}, err
	}
	age := time.Duration(sinceBoot.Nano()) - time.Duration(stat.Starttime)*(time.Second/ticks)
	return time.Now().Add(clockPrecision - age), nil
}

// loaded is what a containerd has read of its configuration.
type loaded struct {
	Readers []string `json:"readers"`
	// Files are the SHA-256 digests by path; empty for a file that was changed before it was seen here and after
	// containerd was started.
	Files map[string]string `json:"files"`
}

// see notes the configuration of a containerd that was not seen before.
func (st *state) see(o Options) {
	readers := o.readers(o.Runtime)
	if known, _ := same(readers, st.Loaded.Readers); known || len(readers) == 0 {
		return
	}
	o.asIs = true
	files, err := readConfigFiles(o)
	if err != nil {
		return
	}
	st.Loaded = loaded{Readers: readers, Files: map[string]string{}}
	for _, f := range files {
		st.Loaded.Files[f.path] = f.digest
		if o.changedSince(f.path) {
			st.Loaded.Files[f.path] = ""
		}
	}
}

// changedSince reports whether a file was changed after containerd was started, as its time has it.
func (o Options) changedSince(path string) bool {
	started, known := o.started(o.Runtime)
	changed := o.changedAt(path)
	return known && started.Before(changed) && !changed.After(time.Now()) // nor where the clock was set back since
}

// unloaded are findings for files of containerd's configuration that somebody changed after it was started.
func (st *state) unloaded(o Options, intact map[string][]byte) (found []Finding) {
	files, err := readConfigFiles(o)
	if err != nil {
		return nil // the plan tells of it
	}
	seen, _ := same(o.readers(o.Runtime), st.Loaded.Readers)
	for _, f := range files {
		changed := seen && st.Loaded.Files[f.path] != f.digest || !seen && o.changedSince(f.path)
		if intact[f.path] != nil || !changed {
			continue
		}
		found = append(found, Finding{RestartNeeded, f.path, fmt.Sprintf("was changed after %s was started, which "+
			"reads it only then, so that what it says of mirrors may not hold yet: on this node, run systemctl "+
			"try-restart %s", o.Runtime, strings.Join(o.Runtime.units(), " "))})
	}
	return found
}

// hasToBeRenewed reports whether a CRI-O runs on the node and does not itself follow changes of its registries.
func (o Options) hasToBeRenewed() bool {
	_, runs := o.started(CRIO)
	return runs && !o.followsRegistries()
}

// followsRegistries reports whether CRI-O's configuration has it read its registries again when they change:
// crio.conf(5), auto_reload_registries.
func (o Options) followsRegistries() bool {
	files := []string{"/etc/crio/crio.conf"}
	if dropIns, err := o.glob("/etc/crio/crio.conf.d/*"); err == nil {
		files = append(files, dropIns...)
	}
	follows := false
	for _, path := range files {
		now, err := readFile(o.on(path))
		var c map[string]any
		if err != nil || toml.Unmarshal(now.content, &c) != nil {
			continue
		}
		follows = truth(table(table(c, "crio"), "image"), "auto_reload_registries", follows)
	}
	return follows
}

// crioReload is a word of the journal about registries that CRI-O has read again.
const crioReload = "applied new registry configuration"

// execReload is the time, in what systemctl shows of a unit, at which it was last reloaded.
var execReload = regexp.MustCompile(`start_time=\[(\w{3} \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC)\]`)

// crioReloaded reports whether CRI-O was reloaded after a time, as its service or the journal has it. Times are in
// seconds there.
func crioReloaded(ctx context.Context, since time.Time) bool {
	since = since.Truncate(time.Second)
	show := exec.CommandContext(ctx, "systemctl", "show", "-p", "ExecReload", CRIO.units()[0])
	show.Env = append(os.Environ(), "TZ=UTC")
	out, err := show.Output()
	if m := execReload.FindSubmatch(out); err == nil && m != nil {
		if at, err := time.Parse("Mon 2006-01-02 15:04:05 MST", string(m[1])); err == nil && !at.Before(since) {
			return true
		}
	}
	out, err = exec.CommandContext(ctx, "journalctl", "-q", "-o", "cat", "-u", CRIO.units()[0], "-g", crioReload,
		"--since=@"+strconv.FormatInt(since.Unix(), 10)).Output()
	return err == nil && slices.ContainsFunc(strings.Split(string(out), "\n"), func(line string) bool {
		return strings.Contains(strings.ToLower(line), crioReload)
	})
}
