// Package netns builds the network of a benchmark run: hosts as Linux network namespaces, joined by bridges that live
// in a namespace of their own, each link shaped both ways with a token bucket filter. Nothing appears in the machine's
// own namespace, so runs disturb neither it nor one another.
package netns

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// prefix starts the name of every namespace that a run makes: sb-<process ID>-<host>.
	prefix = "sb-"
	// core is the bridge to which hosts outside any zone are joined.
	core = "core"
	// uplink starts the name of the port that joins a zone's bridge to the core.
	uplink = "up-"
	// downlink starts the name of that link's other end.
	downlink = "down-"
	// headerBytes are the Ethernet, IPv4 and TCP headers of a packet with the timestamp option.
	headerBytes = 14 + 20 + 32
)

// Rate is a link's capacity in bits per second each way. Zero leaves the link unshaped.
type Rate float64

// Mbit is a rate of one million bits per second.
const Mbit Rate = 1e6

// Network is a set of hosts and the bridges between them. Its methods are not safe for concurrent use.
type Network struct {
	hub   string // the namespace that holds the bridges
	run   string
	hosts []*Host
	next  netip.Addr
}

// Host is one network namespace with one address.
type Host struct {
	// Name is unique within the network, Zone is empty for a host on the core bridge.
	Name, Zone string
	// Addr is the host's IPv4 address.
	Addr netip.Addr

	namespace string
}

// New makes an empty network. It first removes what killed runs have left behind. It needs root and iproute2.
func New(ctx context.Context) (*Network, error) {
	if err := removeLeftovers(ctx); err != nil {
		return nil, err
	}
	run := prefix + strconv.Itoa(os.Getpid()) + "-"
	n := &Network{hub: run + "net", run: run, next: netip.MustParseAddr("10.88.0.1")}
	if err := ip(ctx, "netns", "add", n.hub); err != nil {
		return nil, err
	}
	if err := n.addBridge(ctx, core); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// AddZone makes a zone: a bridge joined to the core by one link of the given rate.
func (n *Network) AddZone(ctx context.Context, zone string, rate Rate) error {
	if err := n.addBridge(ctx, zone); err != nil {
		return err
	}
	up, down := uplink+zone, downlink+zone
	for _, args := range [][]string{
		{"-n", n.hub, "link", "add", up, "type", "veth", "peer", "name", down},
		{"-n", n.hub, "link", "set", up, "master", zone, "up"},
		{"-n", n.hub, "link", "set", down, "master", core, "up"},
	} {
		if err := ip(ctx, args...); err != nil {
			return err
		}
	}
	return errors.Join(shape(ctx, n.hub, up, rate), shape(ctx, n.hub, down, rate))
}

// AddHost makes a host on the bridge of the given zone, or on the core where zone is empty.
func (n *Network) AddHost(ctx context.Context, name, zone string, rate Rate) (*Host, error) {
	h := &Host{Name: name, Zone: zone, Addr: n.next, namespace: n.run + name}
	n.next = n.next.Next()
	if err := ip(ctx, "netns", "add", h.namespace); err != nil {
		return nil, err
	}
	n.hosts = append(n.hosts, h)
	bridge := core
	if zone != "" {
		bridge = zone
	}
	for _, args := range [][]string{
		{"-n", n.hub, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", h.namespace},
		{"-n", n.hub, "link", "set", name, "master", bridge, "up"},
		{"-n", h.namespace, "address", "add", h.Addr.String() + "/24", "dev", "eth0"},
		{"-n", h.namespace, "link", "set", "eth0", "up"},
		{"-n", h.namespace, "link", "set", "lo", "up"},
	} {
		if err := ip(ctx, args...); err != nil {
			return nil, err
		}
	}
	return h, errors.Join(shape(ctx, n.hub, name, rate), shape(ctx, h.namespace, "eth0", rate))
}

func (n *Network) addBridge(ctx context.Context, name string) error {
	if err := ip(ctx, "-n", n.hub, "link", "add", name, "type", "bridge"); err != nil {
		return err
	}
	return ip(ctx, "-n", n.hub, "link", "set", name, "up")
}

// SetLink cuts a host off the network, or joins it again.
func (n *Network) SetLink(ctx context.Context, h *Host, up bool) error {
	state := "down"
	if up {
		state = "up"
	}
	return ip(ctx, "-n", n.hub, "link", "set", h.Name, state)
}

// Close removes every namespace of the network. Processes that still run in them keep running, without a network that
// anyone can reach, so end them first.
func (n *Network) Close() error {
	ctx := context.Background() // the run's own context may be what ended
	var errs []error
	for _, h := range n.hosts {
		errs = append(errs, ip(ctx, "netns", "delete", h.namespace))
	}
	return errors.Join(append(errs, ip(ctx, "netns", "delete", n.hub))...)
}

// Traffic is what has crossed a link, in bytes of TCP payload: wire bytes less headers. Sent is what left the host, or
// the zone.
type Traffic struct{ Sent, Received int64 }

// Sub is the traffic since an earlier reading.
func (t Traffic) Sub(earlier Traffic) Traffic {
	return Traffic{Sent: t.Sent - earlier.Sent, Received: t.Received - earlier.Received}
}

// Traffic reads the counters of every link, keyed by the name of the host or of the zone.
func (n *Network) Traffic(ctx context.Context) (map[string]Traffic, error) {
	out, err := output(ctx, "-n", n.hub, "-j", "-s", "link", "show", "type", "veth")
	if err != nil {
		return nil, err
	}
	return parseTraffic(out)
}

// parseTraffic reads the output of ip -j -s link. The counters are those of the bridge's ports: a port receives what
// its host sends. A port's counter sees a packet before it is segmented, so one header a packet is exact.
func parseTraffic(b []byte) (map[string]Traffic, error) {
	type counter struct{ Bytes, Packets int64 }
	var links []struct {
		Ifname  string
		Stats64 struct{ Rx, Tx counter }
	}
	if err := json.Unmarshal(b, &links); err != nil {
		return nil, fmt.Errorf("link counters: %w", err)
	}
	payload := func(c counter) int64 { return max(0, c.Bytes-c.Packets*headerBytes) }
	traffic := make(map[string]Traffic, len(links))
	for _, l := range links {
		if strings.HasPrefix(l.Ifname, downlink) {
			continue // the other end of an uplink
		}
		sent, received := payload(l.Stats64.Rx), payload(l.Stats64.Tx)
		if zone, ok := strings.CutPrefix(l.Ifname, uplink); ok {
			// This port stands inside the zone and faces out, so what it receives comes from the core.
			traffic[zone] = Traffic{Sent: received, Received: sent}
			continue
		}
		traffic[l.Ifname] = Traffic{Sent: sent, Received: received}
	}
	return traffic, nil
}

// Command is exec.CommandContext for a process inside the host's namespace. The kernel kills the process when the
// benchmark itself is killed.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", h.namespace, name}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// DialContext dials from inside the host's namespace; a process outside reaches the host's loopback by it. The address
// must be numeric.
func (h *Host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := h.inside(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// inside makes a socket in the host's namespace.
func (h *Host) inside(open func() error) error {
	// A thread is in one namespace, and a socket belongs to the one it was made in for good: so only this call needs a
	// thread that has moved.
	runtime.LockOSThread()
	home, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("network namespace of this thread: %w", err)
	}
	defer home.Close()
	there, err := os.Open("/run/netns/" + h.namespace)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("network namespace of %s: %w", h.Name, err)
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace of %s: %w", h.Name, err)
	}
	openErr := open()
	if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
		// The thread stays locked, and so ends with this goroutine rather than serve others from the wrong namespace.
		return fmt.Errorf("leave network namespace of %s: %w", h.Name, errors.Join(err, openErr))
	}
	runtime.UnlockOSThread()
	return openErr
}

// shape gives the sending side of an interface a token bucket filter. The bucket holds the largest segmentation offload
// packet, and the queue 50 ms, as a switch port does.
func shape(ctx context.Context, namespace, device string, rate Rate) error {
	if rate <= 0 {
		return nil
	}
	args := []string{"-n", namespace, "qdisc", "add", "dev", device, "root", "tbf",
		"rate", strconv.FormatFloat(float64(rate), 'f', 0, 64) + "bit", "burst", "128kb", "latency", "50ms"}
	return run(exec.CommandContext(ctx, "tc", args...))
}

// removeLeftovers deletes the namespaces of runs whose process is gone, and ends what still runs in them.
func removeLeftovers(ctx context.Context) error {
	names, err := os.ReadDir("/run/netns")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list network namespaces: %w", err)
	}
	for _, entry := range names {
		owner, ok := runOf(entry.Name())
		if !ok || owner != os.Getpid() && syscall.Kill(owner, 0) == nil {
			continue
		}
		pids, err := output(ctx, "netns", "pids", entry.Name())
		if err != nil {
			return err
		}
		for field := range strings.FieldsSeq(string(pids)) {
			if pid, err := strconv.Atoi(field); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended by itself
			}
		}
		if err := ip(ctx, "netns", "delete", entry.Name()); err != nil {
			return err
		}
	}
	return nil
}

// runOf is the process ID of the run that made a namespace. It is false for namespaces of others.
func runOf(namespace string) (pid int, ok bool) {
	rest, ok := strings.CutPrefix(namespace, prefix)
	if !ok {
		return 0, false
	}
	owner, _, ok := strings.Cut(rest, "-")
	pid, err := strconv.Atoi(owner)
	return pid, ok && err == nil && pid > 0
}

func ip(ctx context.Context, args ...string) error {
	return run(exec.CommandContext(ctx, "ip", args...))
}

func output(ctx context.Context, args ...string) ([]byte, error) {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "ip", args...)
	cmd.Stdout = &out
	err := run(cmd)
	return out.Bytes(), err
}

func run(cmd *exec.Cmd) error {
	var problem bytes.Buffer
	cmd.Stderr = &problem
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(problem.Bytes()))
	}
	return nil
}
