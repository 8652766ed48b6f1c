package guard

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/prometheus/procfs"
)

// listening is the state of a socket that listens, as of tcp(7) and /proc/net/tcp.
const listening = 0x0a

// end kills every process that listens on the port and runs the program that the guard itself is. The signal is
// SIGKILL, which also ends a process that is stopped. It returns how many processes it killed.
func end(port uint64) (int, error) {
	fs, err := procfs.NewFS(procfs.DefaultMountPoint)
	if err != nil {
		return 0, err
	}
	sockets, err := listeners(fs, port)
	if err != nil || len(sockets) == 0 {
		return 0, err
	}
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	processes, err := fs.AllProcs()
	if err != nil {
		return 0, err
	}
	killed := 0
	for _, p := range processes {
		if p.PID == os.Getpid() || owned(p, sockets) == (held{}) {
			continue
		}
		program, err := p.Executable()
		if err != nil || !same(program, self) {
			return killed, fmt.Errorf("port %d belongs to process %d, which runs %q and is no agent: it is left alone",
				port, p.PID, program)
		}
		if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
			return killed, fmt.Errorf("end agent, process %d: %w", p.PID, err)
		}
		killed++
	}
	if killed == 0 {
		return 0, fmt.Errorf("the process that listens on port %d cannot be seen; "+
			"the guard needs the agent's process namespace and user", port)
	}
	return killed, nil
}

// held is a socket that a process has open: the link in /proc that names it, and the name.
type held struct{ link, name string }

// still reports whether the process has it open still. No other socket ever has that name.
func (h held) still() bool {
	name, err := os.Readlink(h.link)
	return err == nil && name == h.name
}

// agentAt is by which socket a process listens on the port that runs the program that the guard itself is; zero where
// none is seen to. listens: somebody does.
func agentAt(port uint64) (agent held, listens bool, err error) {
	fs, err := procfs.NewFS(procfs.DefaultMountPoint)
	if err != nil {
		return held{}, false, err
	}
	self, err := os.Executable()
	if err != nil {
		return held{}, false, err
	}
	sockets, err := listeners(fs, port)
	if err != nil || len(sockets) == 0 {
		return held{}, false, err
	}
	processes, err := fs.AllProcs()
	if err != nil {
		return held{}, false, err
	}
	for _, p := range processes {
		h := held{}
		if p.PID != os.Getpid() {
			h = owned(p, sockets)
		}
		if h == (held{}) {
			continue
		}
		if program, err := p.Executable(); err == nil && same(program, self) {
			return h, true, nil
		}
	}
	now, err := listeners(fs, port) // or it was the agent, which has ended meanwhile
	return held{}, slices.ContainsFunc(now, func(s string) bool { return slices.Contains(sockets, s) }), err
}

// same reports whether the link to a process's program names another program of that name.
func same(program, self string) bool {
	return filepath.Base(strings.TrimSuffix(program, " (deleted)")) == filepath.Base(self)
}

// listeners are the sockets that listen on the port, as links in /proc/PID/fd name them.
func listeners(fs procfs.FS, port uint64) ([]string, error) {
	v4, err := fs.NetTCP() //nolint:staticcheck // netlink wants a capability of the guard that reading /proc does not
	if err != nil {
		return nil, err
	}
	v6, err := fs.NetTCP6()                //nolint:staticcheck // as above
	if err != nil && !os.IsNotExist(err) { // a machine without IPv6 has no such file
		return nil, err
	}
	var sockets []string
	for _, line := range slices.Concat(v4, v6) {
		if line.St == listening && line.LocalPort == port {
			sockets = append(sockets, "socket:["+strconv.FormatUint(line.Inode, 10)+"]")
		}
	}
	return sockets, nil
}

// owned is one of the sockets that the process has open. One that has ended, or that the guard may not look into, has
// none.
func owned(p procfs.Proc, sockets []string) held {
	numbers, err := p.FileDescriptors()
	if err != nil {
		return held{}
	}
	for _, n := range numbers {
		link := fmt.Sprintf("%s/%d/fd/%d", procfs.DefaultMountPoint, p.PID, n)
		if name, err := os.Readlink(link); err == nil && slices.Contains(sockets, name) {
			return held{link, name}
		}
	}
	return held{}
}
