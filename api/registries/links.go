package registries

import (
	"cmp"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// Link is one of those in an answer's Link headers. Text is the whole of it.
type Link struct{ Target, Rel, Text string }

// Links reads the Link headers (RFC 8288), as far as model hubs use them.
func Links(h http.Header) (out []Link) {
	for _, line := range h.Values("Link") {
		for len(line) > 0 {
			start := strings.IndexByte(line, '<')
			if start < 0 {
				break
			}
			line = line[start:]
			target, rest, ok := strings.Cut(line[1:], ">")
			if !ok {
				break
			}
			end := strings.IndexByte(rest, '<') // of the next link
			if end < 0 {
				end = len(rest)
			}
			l := Link{Target: target, Text: strings.TrimRight("<"+target+">"+rest[:end], ", ")}
			for param := range strings.SplitSeq(rest[:end], ";") {
				if rel, ok := strings.CutPrefix(strings.Trim(param, " ,"), "rel="); ok {
					l.Rel = strings.Trim(rel, `"`)
				}
			}
			out = append(out, l)
			line = rest[end:]
		}
	}
	return out
}

// Below is where a link leads that the service at base gives in its answer to a question at another URL: always below
// base, whichever host it names. A plain proxy passes on the links of the service behind it as they are, and a token is
// base's alone. It fails where the link is no URL of a host.
func Below(base, at *url.URL, link string) (*url.URL, error) {
	to, err := at.Parse(link)
	if err != nil || to.Host == "" {
		return nil, fmt.Errorf("%.200q is no URL of a host", link)
	}
	path := to.EscapedPath()
	if rest, ok := strings.CutPrefix(path, strings.TrimSuffix(base.EscapedPath(), "/")+"/"); ok {
		path = rest
	}
	root := *base
	root.Path = cmp.Or(base.Path, "/")
	below := root.JoinPath(path)
	below.RawQuery = to.RawQuery
	return below, nil
}
