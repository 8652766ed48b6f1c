package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
)

// Fault is what is wrong with a host's network. The zero Fault is none.
type Fault struct {
	// Cut are hosts from which nothing arrives.
	Cut []netip.Addr
	// Loss is the share of arriving packets that are lost, in thousandths.
	Loss int
	// Rate bounds what the host sends and receives, where above 0. It is for hosts that were made without one.
	Rate Rate
}

// SetFault puts a fault in the place of the host's last one. A cut takes one direction away, so a partition is a fault
// on either side.
func (n *Network) SetFault(ctx context.Context, h *Host, f Fault) error {
	filter := exec.CommandContext(ctx, "nsenter", "--net=/run/netns/"+h.namespace, "nft", "-f", "-")
	filter.Stdin = strings.NewReader(f.rules())
	err := run(filter)
	for _, end := range []struct{ namespace, device string }{{n.hub, h.Name}, {h.namespace, "eth0"}} {
		// Without a fault there may be no filter of ours to remove, and then the kernel refuses.
		_ = run(exec.CommandContext(ctx, "tc", "-n", end.namespace, "qdisc", "del", "dev", end.device, "root"))
		err = errors.Join(err, shape(ctx, end.namespace, end.device, f.Rate))
	}
	return err
}

// rules are the fault as a script of nft(8), which it applies as a whole.
func (f Fault) rules() string {
	var b strings.Builder
	b.WriteString("table inet fault\ndelete table inet fault\n") // the first line makes the second one valid
	if len(f.Cut) == 0 && f.Loss <= 0 {
		return b.String()
	}
	b.WriteString("table inet fault {\n chain arriving {\n  type filter hook input priority 0;\n")
	for _, a := range f.Cut {
		fmt.Fprintf(&b, "  ip saddr %s drop\n", a)
	}
	if f.Loss > 0 {
		fmt.Fprintf(&b, "  iifname \"eth0\" numgen random mod 1000 < %d drop\n", f.Loss)
	}
	b.WriteString(" }\n}\n")
	return b.String()
}

// Plain is Command without a mount namespace of the process's own, so that it sees what is mounted and unmounted later.
func (h *Host) Plain(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=/run/netns/" + h.namespace, name}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// Listen listens inside the host's namespace.
func (h *Host) Listen(ctx context.Context, address string) (net.Listener, error) {
	var listener net.Listener
	err := h.inside(func() (err error) {
		listener, err = new(net.ListenConfig).Listen(ctx, "tcp", address)
		return err
	})
	return listener, err
}
