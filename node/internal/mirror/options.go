package mirror

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/distribution/reference"
)

// Installable is why Install would refuse the options, whatever the node is like.
func (o Options) Installable() error { return o.checkInstall() }

func (o *Options) checkInstall() error {
	if err := o.check(); err != nil {
		return err
	}
	if o.Runtime == CRIO && slices.Contains(o.Registries, All) {
		return fmt.Errorf("%s has no way to mirror all registries; name those that are to be mirrored with "+
			"--registry, such as docker.io", o.Runtime)
	}
	return nil
}

// check fills in what is left out and refuses what cannot work.
func (o *Options) check() error {
	if _, err := driverOf(o.Runtime); err != nil {
		return err
	}
	o.Root = cmp.Or(o.Root, "/")
	switch root, err := os.Stat(o.Root); {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("root %q is not there; want the directory where the node's file system is mounted", o.Root)
	case err != nil:
		return fmt.Errorf("root: %w", err)
	case !root.IsDir():
		return fmt.Errorf("root %q is no directory; want the one where the node's file system is mounted", o.Root)
	}
	if o.StateDir == "" {
		return errors.New("no state directory is given")
	}
	o.RuntimeConfig = cmp.Or(o.RuntimeConfig, paths[o.Runtime].config)
	o.named = filepath.Clean(o.RuntimeConfig) != paths[o.Runtime].config
	for what, path := range map[string]string{"path": o.Path, "runtime configuration": o.RuntimeConfig} {
		if path != "" && !filepath.IsAbs(path) {
			return fmt.Errorf("%s %q: want a path on the node that begins with /", what, path)
		}
	}
	if len(o.Registries) == 0 {
		o.Registries = []string{All}
	}
	for _, registry := range o.Registries {
		if err := CheckRegistry(registry); err != nil {
			return err
		}
	}
	if err := o.checkEndpoint(); err != nil {
		return err
	}
	if o.Release != "" {
		if _, ok := o.release(); !ok {
			return fmt.Errorf("runtime version %q: want one such as 2.4.2", o.Release)
		}
	}
	return nil
}

// CheckRegistry refuses what no image reference names. A runtime would never look for a mirror of it.
func CheckRegistry(registry string) error {
	if registry == All {
		return nil
	}
	refused := func(why string) error {
		return fmt.Errorf("registry %q: %s; want a host as image references spell it, such as docker.io or "+
			"registry.example:5000, or %q for all", registry, why, All)
	}
	lower := strings.ToLower(registry)
	switch {
	case registry == "":
		return refused("it is empty")
	case strings.Contains(registry, "://"):
		return refused("it has a scheme; leave that out")
	case strings.Contains(registry, "/"):
		return refused("it has a path; leave that out")
	case lower != registry:
		return refused(fmt.Sprintf("it has upper-case letters; write %s", lower))
	case strings.HasSuffix(registry, "."):
		return refused("it ends in a dot; leave that out")
	}
	host := registry
	if i := strings.LastIndex(registry, ":"); i > 0 && !strings.HasSuffix(registry, "]") {
		host = registry[:i]
		port := registry[i+1:]
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return refused(fmt.Sprintf("its port %q is no number from 1 to 65535", port))
		}
	}
	if strings.HasPrefix(host, "[") && net.ParseIP(strings.Trim(host, "[]")) == nil {
		return refused("it has brackets, and no IPv6 address in them")
	}
	// With a path of two parts no name is short for one of docker.io.
	named, err := reference.ParseNormalizedNamed(registry + "/a/b")
	switch {
	case err != nil:
		return refused("it is no host")
	case reference.Domain(named) == registry:
		return nil
	case reference.Path(named) == "a/b":
		return refused(fmt.Sprintf("runtimes call it %s", reference.Domain(named)))
	}
	return refused(fmt.Sprintf("runtimes take it for a folder of %s", reference.Domain(named)))
}

// checkEndpoint brings the endpoint into the form that is written.
func (o *Options) checkEndpoint() error {
	const want = "want the URL of the registry front, such as http://127.0.0.1:5050"
	u, err := url.Parse(o.Endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" ||
		strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "" ||
		strings.ContainsAny(o.Endpoint, "\"\\\n") {
		return fmt.Errorf("endpoint %q: %s", o.Endpoint, want)
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return fmt.Errorf("endpoint %q: its port %q is no number from 1 to 65535; %s", o.Endpoint, port, want)
		}
	}
	host, err := readable(u)
	if err != nil {
		return fmt.Errorf("endpoint %q: %w", o.Endpoint, err)
	}
	o.byName = net.ParseIP(u.Hostname()).Equal(net.IPv6loopback)
	o.Endpoint = u.Scheme + "://" + host
	return nil
}

// readable is the endpoint's host in a form that every runtime reads. Containerd 1.6 drops a hosts.toml, and podman
// refuses all pulls of the registry, where an IPv6 address is in it.
func readable(endpoint *url.URL) (string, error) {
	ip := net.ParseIP(endpoint.Hostname())
	if ip == nil || ip.To4() != nil {
		return endpoint.Host, nil
	}
	if !ip.IsLoopback() && !ip.IsUnspecified() {
		return "", errors.New("some runtimes read no IPv6 address here: give a name, or 127.0.0.1")
	}
	if port := endpoint.Port(); port != "" {
		return "localhost:" + port, nil
	}
	return "localhost", nil
}
