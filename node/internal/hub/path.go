package hub

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// action is what the front does with a request.
type action string

const (
	// actPass hands the request to the hub as it is and keeps nothing.
	actPass action = "pass"
	// actFile gives a file: /{id}/resolve/{revision}/{path}.
	actFile action = "file"
	// actInfo tells of a repository: /api/models/{id}[/revision/{revision}].
	actInfo action = "info"
	// actTree lists files: /api/models/{id}/tree/{revision}[/{folder}].
	actTree action = "tree"
	// actPaths tells of some paths: POST /api/models/{id}/paths-info/{revision}.
	actPaths action = "paths-info"
	// actRefs lists branches and tags: /api/models/{id}/refs.
	actRefs action = "refs"
	// actURL gives a file by its digest and its URL: /sha256/{digest}/{scheme}/{host}/{path}.
	actURL action = "url"
	// actHarnesses gives what huggingface_hub asks for once a day wherever it runs: /api/agent-harnesses.
	actHarnesses action = "agent-harnesses"
	// actTelemetry counts what the clients do. It is answered here, because it must never make a client wait.
	actTelemetry action = "telemetry"
)

// repo is a repository of the hub.
type repo struct {
	kind string // "models", "datasets", "spaces" or "kernels"
	id   string // "org/name", or "name" for the few that have no owner
}

var kinds = []string{"models", "datasets", "spaces", "kernels"}

// api is the escaped path of what the hub tells of the repository.
func (r repo) api() string { return "/api/" + r.kind + "/" + escape(r.id) }

// file is the escaped path of a file at a revision.
func (r repo) file(revision, path string) string {
	return "/" + escape(r.name()) + "/resolve/" + url.PathEscape(revision) + "/" + escape(path)
}

// name is how URLs of the hub, and policies here, spell the repository: that of a model has no prefix.
func (r repo) name() string {
	if r.kind == "models" {
		return r.id
	}
	return r.kind + "/" + r.id
}

// source is the repository as the rest of the agent knows it.
func (r repo) source(hub string) content.Repository {
	return content.Repository{Registry: hub, Name: r.name()}
}

// escape escapes each part of a path.
func escape(path string) string {
	parts := strings.Split(path, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return strings.Join(parts, "/")
}

// route is what a request asks for. revision and path are not escaped.
type route struct {
	action   action
	repo     repo
	revision string
	path     string
	// of actURL, whose path is escaped
	digest digest.Digest
	from   *url.URL // scheme and host
}

// mainRevision is the branch that is meant where none is named.
const mainRevision = "main"

// parseRoute reads a request's method and its path as it was sent. A revision may hold an escaped slash, so the path is
// split before it is unescaped. What the front does not know is actPass; ok is false for a path that the hub cannot
// mean either.
func parseRoute(method, escapedPath string) (r route, ok bool) {
	r.action = actPass
	parts := strings.Split(strings.TrimPrefix(escapedPath, "/"), "/")
	for i, p := range parts {
		plain, err := url.PathUnescape(p)
		if err != nil || strings.Contains(plain, "\x00") || leadsUp(plain) {
			return r, false
		}
		parts[i] = plain
	}
	reads := method == http.MethodGet || method == http.MethodHead
	switch {
	case parts[0] == "sha256" && reads && len(parts) > 4:
		parseURL(&r, parts, escapedPath)
	case parts[0] != "api":
		if reads {
			parseFile(&r, parts)
		}
	case len(parts) > 1 && parts[1] == "telemetry":
		r.action = actTelemetry
	case len(parts) == 2 && parts[1] == "agent-harnesses" && method == http.MethodGet:
		r.action = actHarnesses
	case len(parts) > 2 && slices.Contains(kinds, parts[1]):
		parseAPI(&r, method, parts[1], parts[2:])
	}
	return r, true
}

// leadsUp reports whether a part of a path is none of its own.
func leadsUp(plain string) bool {
	return slices.ContainsFunc(strings.Split(plain, "/"), func(s string) bool { return s == "." || s == ".." })
}

// mentioned are the repositories that the path of a request may be about which is passed on: that of the first name,
// and that of the first two.
func mentioned(path string) (out []repo) {
	parts := strings.FieldsFunc(path, func(c rune) bool { return c == '/' })
	api := len(parts) > 0 && parts[0] == "api"
	if api {
		parts = parts[1:]
		if len(parts) > 0 && parts[0] == "resolve-cache" {
			parts = parts[1:]
		}
	}
	kind := kinds[0]
	switch i := slices.Index(kinds, append(parts, "")[0]); {
	case i > 0, i == 0 && api:
		kind, parts = parts[0], parts[1:]
	case api:
		return nil
	}
	for n := range min(2, len(parts)) {
		out = append(out, repo{kind, strings.TrimSuffix(strings.Join(parts[:n+1], "/"), ".git")})
	}
	return out
}

// parseFile reads [kind/]id/resolve/revision/path.
func parseFile(r *route, parts []string) {
	kind := "models"
	if len(parts) > 0 && slices.Contains(kinds[1:], parts[0]) {
		kind, parts = parts[0], parts[1:]
	}
	owned := len(parts) > 4 && parts[2] == "resolve"
	n := 1
	if owned {
		n = 2
	}
	if len(parts) < n+3 || parts[n] != "resolve" || slices.Contains(parts[:n], "") {
		return
	}
	revision, rest := revisionOf(parts[n+1:])
	path := strings.Join(rest, "/")
	if revision == "" || path == "" {
		return
	}
	*r = route{action: actFile, repo: repo{kind, strings.Join(parts[:n], "/")}, revision: revision, path: path}
}

// parseAPI reads what follows /api/kind/: id, and what is asked of it.
func parseAPI(r *route, method, kind string, parts []string) {
	verbs := []string{"revision", "tree", "paths-info", "refs"}
	n := min(2, len(parts))
	if len(parts) > 1 && slices.Contains(verbs, parts[1]) {
		n = 1
	}
	id, rest := strings.Join(parts[:n], "/"), parts[n:]
	if slices.Contains(parts[:n], "") || n == 1 && !ownerless(kind) {
		return
	}
	out := route{action: actPass, repo: repo{kind, id}}
	get := method == http.MethodGet
	switch {
	case len(rest) == 0 && get:
		out.action = actInfo
	case len(rest) == 1 && rest[0] == "refs" && get:
		out.action = actRefs
	case len(rest) < 2 || rest[1] == "":
	case rest[0] == "revision" && get:
		out.action, out.revision = actInfo, strings.Join(rest[1:], "/")
	case rest[0] == "tree" && get:
		out.action = actTree
		var folder []string
		out.revision, folder = revisionOf(rest[1:])
		out.path = strings.Trim(strings.Join(folder, "/"), "/")
	case rest[0] == "paths-info" && method == http.MethodPost:
		out.action, out.revision = actPaths, strings.Join(rest[1:], "/")
	}
	if out.action != actPass {
		*r = out
	}
}

// ownerless reports whether repositories of a kind may have no owner: /api/spaces/hardware is none.
func ownerless(kind string) bool { return kind == "models" || kind == "datasets" }

// revisionOf takes the revision off the front of a path. Some clients do not escape the slashes of the hub's own refs.
func revisionOf(parts []string) (revision string, rest []string) {
	if len(parts) > 2 && parts[0] == "refs" && (parts[1] == "pr" || parts[1] == "convert") {
		return strings.Join(parts[:3], "/"), parts[3:]
	}
	return parts[0], parts[1:]
}

// isCommit reports whether a revision is a commit's own name, which never means another.
func isCommit(revision string) bool {
	return len(revision) == 40 && strings.Trim(revision, "0123456789abcdef") == ""
}
