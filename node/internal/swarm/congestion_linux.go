package swarm

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// setCongestion has c use the first of the congestion controls that the kernel knows and lets the agent use. Where
// there is none it returns why it is not the last.
func setCongestion(c net.Conn, names []string) (err error) {
	socket, ok := c.(syscall.Conn)
	if !ok || len(names) == 0 {
		return nil
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	if gone := raw.Control(func(fd uintptr) {
		for _, name := range names {
			if err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, name); err == nil {
				return
			}
		}
	}); gone != nil {
		return gone
	}
	return err
}
