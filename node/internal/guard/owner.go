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
		if p.PID == os.Getpid() || !owns(p, sockets) {
			continue
		}
		program, err := p.Executable()
		if err != nil || filepath.Base(strings.TrimSuffix(program, " (deleted)")) != filepath.Base(self) {
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

// owns reports whether the process holds one of the sockets. A process that has ended, or that the guard may not look
// into, holds none.
func owns(p procfs.Proc, sockets []string) bool {
	targets, err := p.FileDescriptorTargets()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(targets, func(t string) bool { return slices.Contains(sockets, t) })
}
