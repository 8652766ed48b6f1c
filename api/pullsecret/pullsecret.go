// Package pullsecret reads registry credentials from image pull secrets and finds those for a repository, by the rules
// of the kubelet (https://kubernetes.io/docs/concepts/containers/images/#config-json).
package pullsecret

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"unicode"

	corev1 "k8s.io/api/core/v1"

	"github.com/shoal-cache/shoal/api/registries"
)

// ErrInvalid is wrapped when a Secret holds no credentials that can be read.
var ErrInvalid = errors.New("secret holds no docker config")

// Credential is what one entry of a docker config holds. It must not be logged.
type Credential struct {
	Username, Password string
	// IdentityToken is an OAuth2 refresh token, used in place of the password.
	IdentityToken string
	// RegistryToken is a bearer token that is sent as it is.
	RegistryToken string
}

// HubToken is what a model hub is shown, which knows bearer tokens alone; "" for none.
func (c Credential) HubToken() (string, error) {
	return bearer(cmp.Or(c.RegistryToken, c.IdentityToken, c.Password))
}

// bearer is a token that a request can carry. One with another is not sent at all, which looks as if the registry, or
// the hub, were down.
func bearer(token string) (string, error) {
	if strings.ContainsFunc(token, unicode.IsControl) {
		return "", errors.New("the token holds a line break, or another character that no request can carry")
	}
	return token, nil
}

// Credentials are entries of one or more secrets, in the order of these.
type Credentials []login

// login is the credential for a host, or for what lies below a path there.
type login struct {
	host, path string
	credential Credential
}

// Parse reads a Secret of type kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg. It fails with ErrInvalid.
func Parse(s *corev1.Secret) (Credentials, error) {
	auths := map[string]authConfig{}
	name := s.Namespace + "/" + s.Name
	switch s.Type {
	case corev1.SecretTypeDockerConfigJson:
		var config struct {
			Auths map[string]authConfig `json:"auths"`
		}
		if err := json.Unmarshal(s.Data[corev1.DockerConfigJsonKey], &config); err != nil {
			return nil, fmt.Errorf("secret %s, key %s: %w: not JSON", name, corev1.DockerConfigJsonKey, ErrInvalid)
		}
		auths = config.Auths
	case corev1.SecretTypeDockercfg:
		if err := json.Unmarshal(s.Data[corev1.DockerConfigKey], &auths); err != nil {
			return nil, fmt.Errorf("secret %s, key %s: %w: not JSON", name, corev1.DockerConfigKey, ErrInvalid)
		}
	default:
		return nil, fmt.Errorf("secret %s: %w: its type is %q, make one of type %s", name, ErrInvalid, s.Type,
			corev1.SecretTypeDockerConfigJson)
	}
	var all Credentials
	// as the kubelet does, "a.example" before "*.example"
	for _, key := range slices.Backward(slices.Sorted(maps.Keys(auths))) {
		auth := auths[key]
		credential, err := auth.credential()
		if err != nil {
			return nil, fmt.Errorf("secret %s: %w: entry %q: %w", name, ErrInvalid, key, err)
		}
		host, rest := split(key)
		all = append(all, login{host, rest, credential})
	}
	return all, nil
}

type authConfig struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

func (a authConfig) credential() (Credential, error) {
	c := Credential{a.Username, a.Password, a.IdentityToken, a.RegistryToken}
	if a.Auth != "" {
		decoded, err := base64.StdEncoding.DecodeString(a.Auth)
		if err != nil {
			return c, errors.New("auth is not base64") // without the cause, which quotes what should be secret
		}
		user, password, ok := strings.Cut(string(decoded), ":")
		if !ok {
			return c, errors.New("auth is not user:password")
		}
		c.Username, c.Password = user, strings.TrimRight(password, "\x00")
	}
	// All else may hold line breaks, as the key of a Google service account does: it is sent in base64, or as a form.
	_, err := bearer(c.RegistryToken)
	return c, err
}

// split takes "https://index.docker.io/v1/" or "registry.example/team" apart. The names of Docker Hub are made one.
func split(key string) (host, rest string) {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	host, rest, _ = strings.Cut(strings.TrimSuffix(key, "/"), "/")
	if rest == "v1" || rest == "v2" {
		rest = ""
	}
	return registries.Canonical(host), rest
}

// For returns the credential for a repository, written host/path: of the entries whose host matches ("*" stands for one
// part of a host name) and whose path is a prefix, the one of the longest path, the earliest among equals.
func (all Credentials) For(repository string) (Credential, bool) {
	host, name := split(repository)
	best := -1
	for i, e := range all {
		if !matchHost(e.host, host) || e.path != "" && e.path != name && !strings.HasPrefix(name, e.path+"/") {
			continue
		}
		if best < 0 || len(e.path) > len(all[best].path) {
			best = i
		}
	}
	if best < 0 {
		return Credential{}, false
	}
	return all[best].credential, true
}

func matchHost(pattern, host string) bool {
	if !strings.Contains(pattern, "*") {
		return pattern == host
	}
	p, h := strings.Split(pattern, "."), strings.Split(host, ".")
	if len(p) != len(h) {
		return false
	}
	for i := range p {
		if ok, err := path.Match(p[i], h[i]); err != nil || !ok {
			return false
		}
	}
	return true
}
