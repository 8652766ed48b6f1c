package upstream

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"time"
)

// Mirror is a host that the node's administrator has the container runtime ask for a registry's content, before the
// registry or in its place. It is asked as the runtime would ask it: what only it has is to be had here too.
type Mirror struct {
	// URL is that below which <repository>/manifests/… stands. Nil, of the registry itself: where it usually is.
	URL *url.URL
	// Self tells that the host is the registry. It is the last, gets the callers' credentials, and has the last word.
	Self bool
	// Pull and Resolve tell whether it may be asked for content by digest, and what a tag means.
	Pull, Resolve bool
	// CAs are PEM certificates that are trusted besides the system's. Pairs are PEM certificates and their keys.
	CAs        [][]byte
	Pairs      [][2][]byte
	SkipVerify bool
	Header     http.Header
}

// mirrorsFor is how long the mirrors of a registry are not asked for anew.
const mirrorsFor = 30 * time.Second

// mirror is an endpoint that a Mirror says.
type mirror struct {
	Mirror
	client *http.Client
	away   *http.Client // see registry.away
}

// mirrored puts the mirrors of the registry before its endpoints. What it knew of them stays where they are as before.
func (c *Client) mirrored(reg *registry, before *registry, now time.Time) *registry {
	if c.opts.Mirrors == nil {
		return reg
	}
	mirrors, err := c.opts.Mirrors(reg.name)
	if err != nil {
		c.log.Warn("mirrors of a registry are not known, and not asked", "registry", reg.name, "error", err)
		mirrors = nil
	}
	if before != nil && reflect.DeepEqual(mirrors, before.mirrors) {
		before.mirroredUntil.set(now.Add(mirrorsFor))
		return before
	}
	reg.mirrors = mirrors
	reg.mirroredUntil.set(now.Add(mirrorsFor))
	own := reg.endpoints
	reg.endpoints = nil
	for _, m := range mirrors {
		config, err := m.tls()
		if err != nil {
			c.log.Warn("a mirror cannot be asked", "registry", reg.name, "mirror", m.URL, "error", err)
			continue
		}
		ep := &endpoint{base: m.URL, mirror: &mirror{Mirror: m, client: c.mirrorClient(m, config, false)}}
		if m.Self && m.URL == nil {
			ep.base = own[0].base.JoinPath("/v2")
			ep.mirror.away = c.mirrorClient(m, config, true)
		}
		reg.endpoints = append(reg.endpoints, ep)
	}
	if len(reg.endpoints) == 0 || !reg.endpoints[len(reg.endpoints)-1].mirror.Self {
		reg.endpoints = append(reg.endpoints, own...)
	}
	return reg
}

// tls are the mirror's own TLS settings.
func (m Mirror) tls() (*tls.Config, error) {
	config := &tls.Config{
		InsecureSkipVerify: m.SkipVerify, //nolint:gosec // the administrator asked for it, for this host
		MinVersion:         tls.VersionTLS12,
	}
	if len(m.CAs) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(bytes.Join(m.CAs, []byte("\n"))) {
			return nil, errors.New("its CA files hold no PEM certificate")
		}
		config.RootCAs = pool
	}
	for _, pair := range m.Pairs {
		cert, err := tls.X509KeyPair(pair[0], pair[1])
		if err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
		config.Certificates = append(config.Certificates, cert)
	}
	return config, nil
}

// mirrorClient is a client with such settings. outward: it asks nobody in private networks.
func (c *Client) mirrorClient(m Mirror, config *tls.Config, outward bool) *http.Client {
	d := c.newDialer()
	d.Outward = outward
	if m.URL != nil {
		d.Name(m.URL)
	}
	transport := c.baseTransport(d)
	transport.TLSClientConfig = config.Clone()
	return c.newHTTPClient(d, transport)
}

// serves reports whether the endpoint may be asked what the call asks.
func (ep *endpoint) serves(call call) bool {
	if ep.mirror == nil || ep.mirror.Self {
		return true
	}
	kind, ref, _ := strings.Cut(call.path, "/")
	switch {
	case kind == "blobs", kind == "manifests" && strings.Contains(ref, ":"):
		return ep.mirror.Pull
	case kind == "manifests":
		return ep.mirror.Resolve
	}
	return false
}

// isMirror tells that the endpoint is another's: it gets no credentials for the registry, and what it refuses the
// registry may give.
func (ep *endpoint) isMirror() bool { return ep.mirror != nil && !ep.mirror.Self }

// dress gives a request to a mirror what the administrator wants it to have.
func (ep *endpoint) dress(req *http.Request) {
	if ep.mirror != nil {
		for name, values := range ep.mirror.Header {
			if name != "Authorization" || req.Header.Get(name) == "" {
				req.Header[name] = values
			}
		}
	}
}

// clients are what the endpoint is asked with, and what follows a redirect to elsewhere; see registry.away.
func (ep *endpoint) clients(reg *registry) (own, away *http.Client) {
	if ep.mirror != nil {
		return ep.mirror.client, ep.mirror.away
	}
	return reg.client, reg.away
}
