package mirror

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// hostTable are a host's keys in the types that containerd takes.
type hostTable struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   *bool          `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath bool           `toml:"override_path"`
	DialTimeout  any            `toml:"dial_timeout"`
}

// accepted is an error where the node's containerd does not take a hosts.toml. Containerd then passes over the whole
// file, with a line in its log, and asks none of the mirrors in it.
func (o Options) accepted(content []byte) error {
	r, known := o.release()
	if !known {
		r = release{newest, newest, newest}
	}
	err := r.accepts(content)
	if err == nil {
		return nil
	}
	if mark, _ := cutMark(content); len(mark) > 0 {
		err = errors.New("it begins with a byte order mark, which containerd 2 stops at; save it without one")
	}
	return fmt.Errorf("%w: containerd cannot read it either: %w", errForeign, err)
}

func (r release) accepts(content []byte) error {
	var file struct {
		hostTable
		Server string               `toml:"server"`
		Host   map[string]hostTable `toml:"host"`
	}
	if err := toml.Unmarshal(content, &file); err != nil {
		return err
	}
	order, err := hostOrder(content)
	if err != nil {
		return err
	}
	for _, host := range order {
		if r.major == 1 && strings.ContainsAny(host, "[]") {
			return fmt.Errorf("containerd 1 reads no table whose name holds a bracket: %q", host)
		}
		if err := r.acceptsHost(host, file.Host[host]); err != nil {
			return fmt.Errorf("host %q: %w", host, err)
		}
	}
	return r.acceptsHost(file.Server, file.hostTable)
}

// firstReferrers is the first release that knows the capability of that name.
var firstReferrers = release{2, 2, 0}

func (r release) acceptsHost(address string, keys hostTable) error {
	if address != "" && !strings.HasPrefix(address, "http") {
		address = "https://" + address
	}
	if _, err := url.Parse(address); err != nil {
		return err
	}
	for _, c := range keys.Capabilities {
		switch c = strings.ToLower(c); {
		case c == "pull" || c == "resolve" || c == "push":
		case c == "referrers" && !r.before(firstReferrers):
		default:
			return fmt.Errorf("capability %q is unknown", c)
		}
	}
	if !isTexts(keys.CA) {
		return fmt.Errorf("ca is no file, or list of files: %v", keys.CA)
	}
	if clients, isList := keys.Client.([]any); !isTexts(keys.Client) && (!isList ||
		slices.ContainsFunc(clients, func(c any) bool { return !isClient(c) })) {
		return fmt.Errorf("client is no file, or list of files or of pairs of them: %v", keys.Client)
	}
	for name, value := range keys.Header {
		if value == nil || !isTexts(value) {
			return fmt.Errorf("header %q is no text, or list of texts: %v", name, value)
		}
	}
	timeout, isText := keys.DialTimeout.(string)
	if r.major == 1 || keys.DialTimeout == nil || timeout == "" && isText {
		return nil
	}
	if !isText {
		return fmt.Errorf("dial_timeout is no text: %v", keys.DialTimeout)
	}
	_, err := time.ParseDuration(timeout)
	return err
}

// isClient reports whether a value is a file with a certificate and its key, or a pair of files.
func isClient(v any) bool {
	pair, isPair := v.([]any)
	return v != nil && isTexts(v) && (!isPair || len(pair) == 2)
}

// isTexts reports whether a value is a text, or a list of texts, or not there.
func isTexts(v any) bool {
	switch v := v.(type) {
	case nil, string:
		return true
	case []any:
		return !slices.ContainsFunc(v, func(e any) bool { _, isText := e.(string); return !isText })
	}
	return false
}
