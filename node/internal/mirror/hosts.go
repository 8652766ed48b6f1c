package mirror

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Host is where the runtime looks for the content of a registry, as it is configured without the agent.
type Host struct {
	// URL is that below which <repository>/manifests/… stands. Nil, of the registry itself: where it usually is.
	URL *url.URL
	// Self tells that the host is the registry, and not a mirror of it. It comes last.
	Self bool
	// Pull and Resolve tell whether it may be asked for content by digest, and what a tag means.
	Pull, Resolve bool
	// CAs are PEM certificates that are trusted besides the system's. Pairs are PEM certificates and their keys.
	CAs        [][]byte
	Pairs      [][2][]byte
	SkipVerify bool
	Header     http.Header
}

// Hosts are those of a registry in the order in which containerd asks them, the registry itself last. They are none
// where nothing is configured for it. Other runtimes' mirrors are not read.
func Hosts(o Options, registry string) ([]Host, error) {
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("hosts of %s: %w", registry, err)
	}
	if d, err := driverOf(o.Runtime); err != nil || d != (certsD{}) {
		return nil, err
	}
	o.asIs = true
	names := append(hostNames(registry), "_default")
	for _, dir := range containerdDirs(o).dirs {
		for _, name := range names {
			if own := o.behind(filepath.Join(dir, name)); isDir(o.on(own)) && !o.installed(own) {
				hosts, err := o.hostsIn(own)
				if err != nil {
					return nil, fmt.Errorf("hosts of %s: %w", registry, err)
				}
				return hosts, nil
			}
		}
	}
	return nil, nil
}

// installed reports whether all that a directory holds is what Install wrote, so that without the agent it would not be
// there.
func (o Options) installed(dir string) bool {
	entries, err := os.ReadDir(o.on(dir))
	if err != nil || len(entries) != 1 || entries[0].Name() != "hosts.toml" {
		return false
	}
	now, err := readFile(filepath.Join(o.on(dir), "hosts.toml"))
	return err == nil && len(now.content) > 0 && len(stripMarked(now.content)) == 0
}

// behind is the directory, on the node, that a link in a directory of mirrors leads to.
func (o Options) behind(path string) string {
	if to, err := os.Readlink(o.on(path)); err == nil {
		if filepath.IsAbs(to) {
			return filepath.Clean(to)
		}
		return filepath.Join(filepath.Dir(path), to)
	}
	return path
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// hostsIn reads a directory as containerd does: hosts.toml, or the certificates where there is none or it can't be
// read.
func (o Options) hostsIn(dir string) ([]Host, error) {
	now, err := readFile(filepath.Join(o.on(dir), "hosts.toml"))
	if err != nil && !errors.Is(err, errForeign) {
		return nil, err
	}
	content := o.asRead(stripMarked(now.content))
	var file map[string]any
	if len(content) == 0 || o.accepted(content) != nil {
		keys, err := certificateKeys(o.on(dir), "")
		if err != nil {
			return nil, err
		}
		content = []byte(keys)
	}
	if err := toml.Unmarshal(content, &file); err != nil {
		return nil, err
	}
	order, err := hostOrder(content)
	if err != nil {
		return nil, err
	}
	var hosts []Host
	for _, name := range order {
		h, err := o.host(dir, name, table(table(file, "host"), name))
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, h)
	}
	r, _ := o.release()
	server, _ := folded(file, r)["server"].(string)
	self, err := o.host(dir, server, file)
	self.Self = true
	return append(hosts, self), err
}

// asRead is content as the node's containerd reads it: containerd 1 passes over a byte order mark, and others stop at
// it.
func (o Options) asRead(content []byte) []byte {
	if r, known := o.release(); known && r.major == 1 {
		_, content = cutMark(content)
	}
	return content
}

// host reads the keys of one host.
func (o Options) host(dir, name string, keys map[string]any) (h Host, err error) {
	r, _ := o.release()
	keys = folded(keys, r)
	if name != "" {
		if !strings.HasPrefix(name, "http") {
			name = "https://" + name
		}
		if h.URL, err = url.Parse(name); err != nil {
			return Host{}, err
		}
		override, _ := keys["override_path"].(bool)
		if h.URL.Path != "" {
			h.URL.Path = path.Clean(h.URL.Path)
		}
		if !override && !strings.HasSuffix(h.URL.Path, "/v2") {
			h.URL.Path = strings.TrimSuffix(h.URL.Path, "/") + "/v2"
		}
	}
	capabilities, restricted := keys["capabilities"].([]any)
	restricted = restricted && len(capabilities) > 0
	can := func(what string) bool {
		return !restricted || slices.ContainsFunc(capabilities, func(c any) bool {
			s, _ := c.(string)
			return strings.EqualFold(s, what)
		})
	}
	h.Pull, h.Resolve = can("pull"), can("resolve")
	h.SkipVerify, _ = keys["skip_verify"].(bool)
	for key, value := range table(keys, "header") {
		if h.Header == nil {
			h.Header = http.Header{}
		}
		h.Header[http.CanonicalHeaderKey(key)] = texts(value)
	}
	for _, file := range texts(keys["ca"]) {
		pem, err := o.certificate(dir, file)
		if err != nil {
			return Host{}, err
		}
		h.CAs = append(h.CAs, pem)
	}
	for _, files := range pairs(keys["client"]) {
		cert, err := o.certificate(dir, files[0])
		key := cert
		if err == nil && files[1] != "" {
			key, err = o.certificate(dir, files[1])
		}
		if err != nil {
			return Host{}, err
		}
		h.Pairs = append(h.Pairs, [2][]byte{cert, key})
	}
	return h, nil
}

func (o Options) certificate(dir, file string) ([]byte, error) {
	if !filepath.IsAbs(file) {
		file = filepath.Join(dir, file)
	}
	now, err := readFile(o.on(file))
	if err == nil && !now.exists {
		err = fmt.Errorf("%s: %w", file, fs.ErrNotExist)
	}
	return now.content, err
}

// texts are the strings of a value that is one, or a list.
func texts(value any) (all []string) {
	switch v := value.(type) {
	case string:
		return []string{v}
	case []any:
		for _, e := range v {
			if s, ok := e.(string); ok {
				all = append(all, s)
			}
		}
	}
	return all
}

// pairs are the files of a certificate and its key, which may be the same.
func pairs(value any) (all [][2]string) {
	list, isList := value.([]any)
	if !isList {
		list = []any{value}
	}
	for _, e := range list {
		switch files := texts(e); len(files) {
		case 1:
			all = append(all, [2]string{files[0]})
		case 2:
			all = append(all, [2]string{files[0], files[1]})
		}
	}
	return all
}
