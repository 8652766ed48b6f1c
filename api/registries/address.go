package registries

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// ErrAddress is the error of an address at which no registry is asked. Whoever may create a pod chooses the host of an
// image, and whoever has a host chooses where its name and its redirects lead: not to the node itself.
var ErrAddress = errors.New("this address is not asked")

// metadata are the addresses at which clouds give a machine its own credentials, besides those that are link-local.
var metadata = []netip.Addr{
	netip.MustParseAddr("fd00:ec2::254"),   // AWS
	netip.MustParseAddr("fd20:ce::254"),    // Google Cloud
	netip.MustParseAddr("100.100.100.200"), // Alibaba Cloud
	netip.MustParseAddr("168.63.129.16"),   // Azure
	netip.MustParseAddr("192.0.0.192"),     // Oracle Cloud
}

var (
	thisNetwork = netip.MustParsePrefix("0.0.0.0/8") // RFC 1122, section 3.2.1.3: the machine itself
	nat64       = netip.MustParsePrefix("64:ff9b::/96")
	siteLocal   = netip.MustParsePrefix("fec0::/10")
)

// refused says of which kind an address is at which no registry is asked. It is "" for others.
func refused(ip netip.Addr) string {
	ip = ip.Unmap().WithZone("")
	if nat64.Contains(ip) {
		b := ip.As16()
		ip = netip.AddrFrom4([4]byte(b[12:]))
	}
	switch {
	case ip.IsLoopback():
		return "a loopback address"
	case ip.IsUnspecified(), thisNetwork.Contains(ip):
		return "the machine itself"
	case ip.IsLinkLocalUnicast():
		return "a link-local address"
	case ip.IsMulticast(), ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "no address of one machine"
	case siteLocal.Contains(ip):
		return "a site-local address"
	}
	if slices.Contains(metadata, ip) {
		return "a cloud's metadata service"
	}
	return ""
}

// shared is what a provider has for its customers' devices (RFC 6598), which is no network of all either.
var shared = netip.MustParsePrefix("100.64.0.0/10")

// private reports whether an address is one of a private network.
func private(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	if nat64.Contains(ip) {
		b := ip.As16()
		ip = netip.AddrFrom4([4]byte(b[12:]))
	}
	return ip.IsPrivate() || shared.Contains(ip)
}

// Inner reports whether an address is one of the network around, or of the machine itself.
func Inner(ip netip.Addr) bool { return private(ip) || refused(ip) != "" }

// Dialer dials where registries may be asked. What it is given are the addresses that names resolve to, at the moment
// of the dial, so a name whose address changes does not pass.
type Dialer struct {
	net.Dialer
	// Allowed are ranges at which registries are asked although they are those of the machine itself.
	Allowed []netip.Prefix
	// Outward: private networks are not asked either.
	Outward bool

	named   map[string]bool // host:port of what the administrator wrote down
	proxies sync.Map        // host:port of the proxies that the administrator has set
}

// Name has it dial a URL wherever that is, since the administrator wrote it down. It is to be called before any dial.
func (d *Dialer) Name(u *url.URL) {
	if d.named == nil {
		d.named = make(map[string]bool)
	}
	d.named[hostPort(u)] = true
}

// hostPort is what a dial for u is given.
func hostPort(u *url.URL) string {
	p := cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443", "socks5": "1080",
		"socks5h": "1080"}[u.Scheme])
	return net.JoinHostPort(strings.ToLower(u.Hostname()), p)
}

// Proxy is choose, whose choices may be dialled.
func (d *Dialer) Proxy(choose func(*http.Request) (*url.URL, error)) func(*http.Request) (*url.URL, error) {
	return func(r *http.Request) (*url.URL, error) {
		u, err := choose(r)
		if u != nil {
			d.proxies.Store(hostPort(u), true)
		}
		return u, err
	}
}

// DialContext is that of net.Dialer.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	checked := d.Dialer
	if _, proxy := d.proxies.Load(address); !proxy && !d.named[strings.ToLower(address)] {
		checked.ControlContext = func(_ context.Context, _, resolved string, _ syscall.RawConn) error {
			at, err := netip.ParseAddrPort(resolved)
			if err != nil {
				return fmt.Errorf("%s: %w", resolved, ErrAddress)
			}
			return d.check(address, at.Addr())
		}
	}
	return checked.DialContext(ctx, network, address)
}

// CheckURL fails for a URL that names an address instead of a host, where that is not asked. A proxy would resolve it
// otherwise.
func (d *Dialer) CheckURL(u *url.URL) error {
	address := hostPort(u)
	ip, err := netip.ParseAddr(u.Hostname())
	if err != nil || d.named[address] {
		return nil // a name is checked when it is dialled
	}
	return d.check(address, ip)
}

func (d *Dialer) check(address string, ip netip.Addr) error {
	kind := refused(ip)
	if kind == "" && d.Outward && private(ip) {
		kind = "an address of a private network"
	}
	if kind == "" {
		return nil
	}
	ip = ip.Unmap().WithZone("")
	for _, p := range d.Allowed {
		if p.Contains(ip) {
			return nil
		}
	}
	return fmt.Errorf("%s is %s, %s; registries there are asked only where upstreams lists them as an endpoint or "+
		"upstream.allowAddresses holds the address: %w", address, ip, kind, ErrAddress)
}
