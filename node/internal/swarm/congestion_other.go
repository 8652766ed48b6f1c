//go:build !linux

package swarm

import "net"

// setCongestion leaves c as it is: only Linux has a choice.
func setCongestion(net.Conn, []string) error { return nil }
