package pullsecret_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"github.com/shoal-cache/shoal/api/pullsecret"
)

func TestRefused_TellsNoSecretAWrongOneAndThatOfAnotherRegistryApart(t *testing.T) {
	t.Parallel()
	login := func(host string) pullsecret.Credentials {
		c, err := pullsecret.Parse(&corev1.Secret{Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{
			corev1.DockerConfigJsonKey: []byte(`{"auths":{"` + host + `":{"username":"me","password":"hunter2"}}}`)}})
		require.NoError(t, err)
		return c
	}
	for what, c := range map[string]struct {
		credentials pullsecret.Credentials
		secrets     int
		says        string
	}{
		"no secret":              {nil, 0, "spec.pullSecrets"},
		"a secret that is wrong": {login("a.example"), 1, "refuses the credentials of the pull secret"},
		"that of another registry": {login("b.example"), 1,
			"have credentials for b.example, and none for a.example/team/app"},
		"a secret that can't be read": {nil, 1, "could not be read"},
	} {
		said := c.credentials.Refused("a.example/team/app", c.secrets)
		require.Contains(t, said, c.says, what)
		require.NotContains(t, said, "hunter2", what)
	}
}

func TestRefused_SaysThatPinsHaveNoCredentialProvider(t *testing.T) {
	t.Parallel()
	for host, provided := range map[string]bool{
		"123456789012.dkr.ecr.eu-west-1.amazonaws.com": true, "123456789012.dkr.ecr-fips.us-east-1.amazonaws.com": true,
		"europe-docker.pkg.dev": true, "eu.gcr.io": true, "gcr.io": true, "team.azurecr.io": true,
		"docker.io": false, "ghcr.io": false, "quay.io": false, "notgcr.io": false, "pkg.dev.example": false,
	} {
		said := pullsecret.Credentials{}.Refused(host+"/team/app", 0)
		require.Contains(t, said, "spec.pullSecrets")
		require.Equal(t, provided, strings.Contains(said, "credential provider"), host)
	}
}
