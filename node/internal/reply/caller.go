package reply

import (
	"net/http"
	"net/netip"
)

// Caller is the address from which a request comes. "": from this machine, whose runtime pulls for all its pods.
func Caller(r *http.Request) string {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || at.Addr().Unmap().IsLoopback() {
		return ""
	}
	return at.Addr().Unmap().WithZone("").String()
}
