package plugin

import (
	"bytes"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// removed is in the place of a secret.
const removed = "REMOVED"

// A rule takes one kind of secret out of a text. to is what replaces it, in the words of regexp.Expand. keep reports
// that a match, given by its submatches, is none.
type rule struct {
	from *regexp.Regexp
	to   string
	keep func(groups [][]byte) bool
}

// value is a value after a name: in quotes, in quotes that are escaped, or a word.
const value = `(?:\\"(?:[^"\\]|\\[^"])*\\"|"(?:[^"\\]|\\.)*"|'[^'\n]*'|[^\s"'\\,;{}\[\]]+)`

// keyNames are names that nothing but a secret has, whatever stands before them.
const keyNames = `pass(?:wor)?d|passwd|passphrase|pwd|` +
	`(?:secret|access|api|account|private|signing|encryption|master)[_-]?key|client-key-data`

// secretNames are names of what is secret, at the end of a longer name or alone.
const secretNames = `(?:` + keyNames + `|secret|token|access[_-]?key[_-]?id|credentials?|` +
	`auth|creds|pass|jwt|\.?dockerconfigjson|\.?dockercfg|cookie)`

// rules are applied one after the other: what is known by its own form first.
var rules = []rule{
	{from: regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----.*?` +
		`(?:-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----|$)`),
		to: removed},
	// Tokens of well-known services, and whatever is JSON or PEM in base64, as JWTs and Docker's configuration are.
	{from: regexp.MustCompile(`\b(?:hf_\w{16,}|gh[pousr]_\w{16,}|github_pat_\w{16,}|` +
		`gl(?:pat|dt|rt|ft|ptt|cbt|soat|oas|imt|agent)-[\w-]{16,}|npm_\w{16,}|` +
		`sk-(?:proj-|or-v\d-|ant-[a-z0-9]+-|svcacct-)?\w{20,}|AIza[\w-]{30,}|ya29\.[\w-]{16,}|hv[sbr]\.[\w-]{20,}|` +
		`(?:nvapi|pypi)-[\w-]{16,}|(?:api_org|dop_v1|gsk|r8)_\w{16,}|AKCp\w{20,}|cmVmdGtu\w{16,}|` +
		`dckr_[a-z]+_[\w-]{16,}|xox[a-z]-[\w-]{10,}|(?:AKIA|ASIA)[A-Z0-9]{12,}|eyJ[\w+/=.-]{16,}|` +
		`LS0tLS1CRUdJTi[\w+/=]{16,})`), to: removed},
	{from: regexp.MustCompile(`(?i)\b((?:bearer|basic|negotiate)(?:\s+|%20|\+))[a-z0-9._~+/=-]{8,}`),
		to: "${1}" + removed},
	// Credentials in addresses, and those with a slash in a password. A digest after an @ belongs to a reference.
	{from: regexp.MustCompile(`(:(?:\\?/){2})[^\s/"'<>]*@`), to: "${1}" + removed + "@"},
	{from: regexp.MustCompile(`(://)([^\s"'<>@]+)@(sha256:|sha512:)?`), to: "${1}" + removed + "@${3}",
		keep: func(g [][]byte) bool { return len(g[3]) > 0 && bytes.ContainsRune(g[2], '/') }},
	{from: regexp.MustCompile(`(\b[\w.%+-]+:)([^\s/"'<>@]+)@(sha256:|sha512:)?`), to: "${1}" + removed + "@",
		keep: func(g [][]byte) bool { return len(g[3]) > 0 }},
	{from: regexp.MustCompile(`(?i)(%3A%2F%2F)[^\s"'<>@&]+?%40`), to: "${1}" + removed + "%40"},
	// Signatures in addresses of storage. An & is often written in another way.
	{from: regexp.MustCompile(`(?i)((?:[?&]|\\u0026|&amp;|%26)(?:x-(?:amz|goog)-(?:credential|security-token)|` +
		`[\w-]*signature|sig|policy|key-pair-id|awsaccesskeyid|googleaccessid|se|sp|sv|[\w-]*` + secretNames +
		`)(?:=|%3D))[^&\s"'\\<>]+`), to: "${1}" + removed},
	// Headers. Of some the rest of the line is the secret.
	{from: regexp.MustCompile(`(?i)(authorization\\?["']?[ \t]*[:=][ \t]*[\[\\"']*)(?:digest|aws4-hmac-sha256)[ \t][^\n]*`),
		to: "${1}" + removed},
	{from: regexp.MustCompile(`(?i)(\bcookie[ \t]*[:=][ \t]*)[^\n"'\\\]]+`), to: "${1}" + removed},
	{from: regexp.MustCompile(`(?i)((?:proxy-)?authorization|x-registry-auth|x-auth(?:-token)?|x-jfrog-art-api|` +
		`x-amz-security-token|(?:set-)?cookie)(\\?["']?[ \t]*[:=][ \t]*)([\[\\"']*)` +
		`(?:(?:bearer|basic|negotiate|token|api-?key)[ \t]+)?[^\s"'\\,;{}\[\]]+`),
		to: "${1}${2}${3}" + removed},
	// A name and its value, as in JSON, as in a log, and as a line of YAML.
	{from: regexp.MustCompile(`(?i)([\w.-]*` + secretNames + `(?:\\?["'][ \t]*:|[ \t]*:?=>?)[ \t]*)(` + value + `)`),
		to: "${1}" + removed, keep: harmless},
	{from: regexp.MustCompile(`(?im)(^[ \t-]*[\w.-]*` + secretNames + `[ \t]*:[ \t]+)` +
		`("(?:[^"\\]|\\.)*"|'[^'\n]*'|[^\s{\[|>#][^\n]*)`),
		to: "${1}" + removed, keep: harmless},
	// A block of YAML, and what else is indented below it.
	{from: regexp.MustCompile(`(?im)(^[ \t-]*[\w.-]*` + secretNames + `:[ \t]+)[|>][^\n]*(?:\n[ \t]+[^\n]*)+`),
		to: "${1}" + removed},
	{from: regexp.MustCompile(`(?i)((?:` + keyNames + `):[ \t]*)(` + value + `)`),
		to: "${1}" + removed, keep: harmless},
	// Arguments of commands, and .netrc.
	{from: regexp.MustCompile(`(?i)((?:--(?:[\w-]*-)?(?:token|` + keyNames + `)|login[ \t]+\S+[ \t]+password)[ \t]+)(` +
		value + `)`), to: "${1}" + removed},
	{from: regexp.MustCompile(`(--(?:[\w-]*-)?(?:creds|user)[ \t=]+[^\s:]+:)[^\s"'\\]+`), to: "${1}" + removed},
	{from: regexp.MustCompile(`(\b(?:curl|login)\b[^\n]*?[ \t](?:-\w*u[ \t]*[^\s:]+:|-p[ \t]+))[^\s"'\\]+`),
		to: "${1}" + removed},
}

// harmless are values that are no secrets, whatever they are called.
func harmless(groups [][]byte) bool {
	switch text := strings.Trim(string(groups[2]), `\"' `); text {
	case "", "true", "false", "null", removed:
		return true
	}
	return false
}

// redact takes out of a text what looks like a secret: passwords, tokens, headers, credentials in addresses.
func redact(text []byte) []byte {
	for _, r := range rules {
		text = r.apply(text)
	}
	return text
}

func (r rule) apply(text []byte) []byte {
	var out []byte
	end := 0
	for _, at := range r.from.FindAllSubmatchIndex(text, -1) {
		if r.keep != nil {
			groups := make([][]byte, len(at)/2)
			for i := range groups {
				if at[2*i] >= 0 {
					groups[i] = text[at[2*i]:at[2*i+1]]
				}
			}
			if r.keep(groups) {
				continue
			}
		}
		out = append(out, text[end:at[0]]...)
		out = r.from.Expand(out, []byte(r.to), text, at)
		end = at[1]
	}
	return append(out, text[end:]...)
}

// ownVariables are the environment variables whose values a report shows: those of the chart, of Go, and of proxies,
// whose credentials redact takes out. Any other may be a secret.
var ownVariables = regexp.MustCompile(`^(?:SHOAL_KUBERNETES_\w+|SHOAL_\w+_LISTEN|GOMEMLIMIT|GOGC|GOMAXPROCS|` +
	`(?i:https?_proxy|no_proxy|all_proxy))$`)

// withoutSecrets takes values of variables out of containers.
func withoutSecrets(spec *corev1.PodSpec) {
	for _, containers := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for _, c := range containers {
			withoutValues(c.Env)
		}
	}
	for _, c := range spec.EphemeralContainers {
		withoutValues(c.Env)
	}
}

func withoutValues(env []corev1.EnvVar) {
	for i := range env {
		v := &env[i]
		switch at := strings.LastIndexByte(v.Value, '@'); {
		case v.Value == "":
		case !ownVariables.MatchString(v.Name):
			v.Value = removed
		case at >= 0: // credentials of a proxy, with a scheme before them or without
			scheme, _, ok := strings.Cut(v.Value[:at], "://")
			if v.Value = removed + v.Value[at:]; ok {
				v.Value = scheme + "://" + v.Value
			}
		}
	}
}

// plainMeta leaves out what only the API server wants to know, and the copy of the object that kubectl apply keeps in
// an annotation.
func plainMeta(o metav1.Object) {
	o.SetManagedFields(nil)
	annotations := o.GetAnnotations()
	delete(annotations, corev1.LastAppliedConfigAnnotation)
	o.SetAnnotations(annotations)
}
