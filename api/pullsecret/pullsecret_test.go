package pullsecret_test

import (
	"encoding/base64"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shoal-cache/shoal/api/pullsecret"
)

func secret(config string) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "pull"}, Type: corev1.SecretTypeDockerConfigJson,
		Data: map[string][]byte{corev1.DockerConfigJsonKey: []byte(config)},
	}
}

func TestFor(t *testing.T) {
	t.Parallel()
	all, err := pullsecret.Parse(secret(`{"auths": {
		"https://index.docker.io/v1/": {"auth": "aHViOnBhc3M="},
		"a.example": {"username": "whole"},
		"a.example/team": {"username": "team"},
		"*.b.example": {"username": "wild"}, "exact.b.example": {"username": "exact"},
		"c.example:5000": {"registrytoken": "token"}}}`))
	require.NoError(t, err)
	for repository, want := range map[string]string{
		"docker.io/library/redis":   "hub",
		"a.example/other/app":       "whole",
		"a.example/team":            "team",
		"a.example/team/app":        "team",
		"a.example/teams/app":       "whole",
		"x.b.example/app":           "wild",
		"exact.b.example/app":       "exact",
		"x.y.b.example/app":         "none",
		"c.example:5000/app":        "",
		"c.example/app":             "none",
		"evil.example/a.example/ap": "none",
	} {
		got, ok := all.For(repository)
		require.Equal(t, want != "none", ok, repository)
		if ok {
			require.Equal(t, want, got.Username, repository)
		}
	}
}

func TestTheFirstSecretGoesFirst(t *testing.T) {
	t.Parallel()
	a, err := pullsecret.Parse(secret(`{"auths": {"a.example": {"username": "first"}}}`))
	require.NoError(t, err)
	b, err := pullsecret.Parse(secret(`{"auths": {"a.example": {"username": "second"}}}`))
	require.NoError(t, err)
	got, ok := append(a, b...).For("a.example/app")
	require.True(t, ok)
	require.Equal(t, "first", got.Username)
}

func TestParseSaysWhatIsWrongAndNotWhatIsSecret(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		secret  *corev1.Secret
		message string
	}{
		"no JSON":     {secret("hello"), "not JSON"},
		"no base64":   {secret(`{"auths": {"a.example": {"auth": "hunter2!"}}}`), "auth is not base64"},
		"no password": {secret(`{"auths": {"a.example": {"auth": "aHVudGVyMg=="}}}`), "auth is not user:password"},
		"a token with the line's end": {secret(`{"auths": {"hub.example": {"registrytoken": "hunter2\n"}}}`),
			"entry \"hub.example\": the token holds a line break"},
		"another type": {&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "pull"},
			Type: corev1.SecretTypeTLS}, "make one of type kubernetes.io/dockerconfigjson"},
	} {
		_, err := pullsecret.Parse(tc.secret)
		require.ErrorIs(t, err, pullsecret.ErrInvalid, name)
		require.ErrorContains(t, err, "team/pull", name)
		require.ErrorContains(t, err, tc.message, name)
		require.NotContains(t, err.Error(), "hunter2", name)
	}
}

// https://cloud.google.com/artifact-registry/docs/docker/authentication#json-key
func TestParse_APasswordOfManyLinesIsTakenAsGooglesAre(t *testing.T) {
	t.Parallel()
	key := "{\n  \"type\": \"service_account\"\n}\n"
	for name, entry := range map[string]string{
		"as auth": `{"auth": "` + base64.StdEncoding.EncodeToString([]byte("_json_key:"+key)) + `"}`,
		"apart":   `{"username": "_json_key", "password": ` + strconv.Quote(key) + `}`,
	} {
		all, err := pullsecret.Parse(secret(`{"auths": {"gcr.io": ` + entry + `}}`))
		require.NoError(t, err, name)
		got, ok := all.For("gcr.io/project/app")
		require.True(t, ok, name)
		require.Equal(t, pullsecret.Credential{Username: "_json_key", Password: key}, got, name)
		_, err = got.HubToken()
		require.ErrorContains(t, err, "the token holds a line break", name)
		require.NotContains(t, err.Error(), "service_account", name)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`{"auths": {"a.example": {"auth": "aHViOnBhc3M="}}}`, "a.example/app")
	f.Fuzz(func(_ *testing.T, config, repository string) {
		if all, err := pullsecret.Parse(secret(config)); err == nil {
			all.For(repository)
		}
	})
}
