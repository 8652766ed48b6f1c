package mirror

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// endpoints are those of each registry, as k3s reads them.
func endpoints(t *testing.T, content string) map[string][]string {
	t.Helper()
	var c struct {
		Mirrors map[string]struct {
			Endpoint []string `yaml:"endpoint"`
		} `yaml:"mirrors"`
	}
	require.NoError(t, yaml.Unmarshal([]byte(content), &c), content)
	all := map[string][]string{}
	for registry, m := range c.Mirrors {
		all[registry] = m.Endpoint
	}
	return all
}

// Anchors, aliases and merges are how people write registries.yaml where many registries have one mirror.
func TestK3s_KeepsTheMirrorsThatComeByAnchorsAndMerges(t *testing.T) {
	t.Parallel()
	const (
		path   = "/etc/rancher/k3s/registries.yaml"
		common = "x-common: &m\n  endpoint: [\"https://m.example\"] # near\n"
	)
	for name, c := range map[string]struct {
		before     string
		registries []string
		want       map[string][]string
	}{
		"a merge": {common + "mirrors:\n  docker.io:\n    <<: *m\n  quay.io:\n    <<: *m\n", []string{"docker.io"},
			map[string][]string{"docker.io": {front, "https://m.example"}, "quay.io": {"https://m.example"}}},
		"an alias": {common + "mirrors:\n  docker.io: *m\n  quay.io: *m\n", []string{"docker.io"},
			map[string][]string{"docker.io": {front, "https://m.example"}, "quay.io": {"https://m.example"}}},
		"an alias of a list": {"x-list: &l [\"https://m.example\"]\nmirrors:\n  docker.io:\n    endpoint: *l\n",
			[]string{"docker.io"}, map[string][]string{"docker.io": {front, "https://m.example"}}},
		"an alias, all registries": {common + "mirrors:\n  docker.io: *m\n  quay.io: *m\n", nil,
			map[string][]string{"docker.io": {front, "https://m.example"}, "quay.io": {front, "https://m.example"},
				"*": {front}}},
		"a registry's own anchor, all registries": {
			"mirrors:\n  docker.io: &m\n    endpoint: [\"https://m.example\"]\n  quay.io: *m\n", nil,
			map[string][]string{"docker.io": {front, "https://m.example"}, "quay.io": {front, "https://m.example"},
				"*": {front}}},
		"a merge of all mirrors": {
			"x: &all\n  quay.io: {endpoint: [\"https://q\"]}\nmirrors:\n  <<: *all\n  docker.io: {endpoint: [\"https://d\"]}\n",
			nil, map[string][]string{"docker.io": {front, "https://d"}, "quay.io": {front, "https://q"}, "*": {front}}},
		"an alias of all mirrors": {"x: &all\n  quay.io: {endpoint: [\"https://q\"]}\nmirrors: *all\n", []string{"quay.io"},
			map[string][]string{"quay.io": {front, "https://q"}}},
		"a merge of two": {"a: &a {endpoint: [\"https://a\"]}\nb: &b {endpoint: [\"https://b\"]}\n" +
			"mirrors:\n  docker.io:\n    <<: [*a, *b]\n", []string{"docker.io"},
			map[string][]string{"docker.io": {front, "https://a"}}},
		"what is merged is overruled": {common + "mirrors:\n  docker.io:\n    <<: *m\n    endpoint: [\"https://o\"]\n",
			[]string{"docker.io"}, map[string][]string{"docker.io": {front, "https://o"}}},
		"all is merged": {common + "mirrors:\n  \"*\":\n    <<: *m\n", []string{"docker.io"},
			map[string][]string{"docker.io": {front, "https://m.example"}, "*": {"https://m.example"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := node(t, K3s, tree{path: c.before})
			o.Registries = c.registries
			before := read(t, o.Root)
			result, err := Install(o)
			require.NoError(t, err)
			require.Equal(t, []FindingKind{RestartNeeded}, kinds(result), result.Findings)
			require.Equal(t, c.want, endpoints(t, content(t, o, path)), content(t, o, path))
			require.NotContains(t, content(t, o, path), "!!")
			status, err := Status(o)
			require.NoError(t, err)
			require.True(t, status.InForce(), status.Findings)
			again, err := Install(o)
			require.NoError(t, err)
			require.Empty(t, again.Changed)

			edited := content(t, o, path) + "configs: {}\n"
			require.NoError(t, os.WriteFile(filepath.Join(o.Root, path), []byte(edited), 0o640))
			status, err = Status(o)
			require.NoError(t, err)
			require.True(t, status.InForce(), status.Findings)
			_, err = Remove(o)
			require.NoError(t, err)
			require.Equal(t, endpoints(t, c.before), endpoints(t, content(t, o, path)), content(t, o, path))

			require.NoError(t, os.WriteFile(filepath.Join(o.Root, path), []byte(c.before), 0o640))
			_, err = Install(o)
			require.NoError(t, err)
			requireUndone(t, o, before)
		})
	}
}

// One registry's endpoints are another's as well, and only one is to be mirrored.
func TestK3s_LeavesEndpointsThatAnotherRegistryShares(t *testing.T) {
	t.Parallel()
	const path = "/etc/rancher/k3s/registries.yaml"
	const before = "mirrors:\n  docker.io: &m\n    endpoint: [\"https://m.example\"]\n  quay.io: *m\n"
	o := node(t, K3s, tree{path: before})
	o.Registries = []string{"docker.io"}
	result, err := Install(o)
	require.NoError(t, err)
	require.Equal(t, []FindingKind{NotMirrored}, kinds(result))
	require.Contains(t, result.Findings[0].Message, "anchors")
	require.Equal(t, before, content(t, o, path))
}

func TestK3s_RefusesWhatNoReaderTakes(t *testing.T) {
	t.Parallel()
	const path = "/etc/rancher/k3s/registries.yaml"
	for name, c := range map[string]struct{ before, want string }{
		"an anchor within itself":   {"mirrors: &m\n  docker.io:\n    <<: *m\n", "contains itself"},
		"a key twice":               {"mirrors:\n  a.example: {}\n  a.example: {}\n", "already defined"},
		"a second document":         {"mirrors: {}\n---\nmirrors: {}\n", "second document"},
		"a merge of what is no map": {"mirrors:\n  docker.io:\n    <<: 5\n", "merge"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := node(t, K3s, tree{path: c.before})
			_, err := Install(o)
			require.ErrorContains(t, err, c.want)
			require.Equal(t, c.before, content(t, o, path))
		})
	}
}

func TestK3s_ReadsAFileWithAByteOrderMarkAndOtherLineEnds(t *testing.T) {
	t.Parallel()
	const path = "/etc/rancher/k3s/registries.yaml"
	const plain = "mirrors:\n  docker.io:\n    endpoint: [\"https://m.example\"]\n"
	for name, before := range map[string]string{
		"a byte order mark": byteOrderMark + plain,
		"CR LF":             strings.ReplaceAll(plain, "\n", "\r\n"),
		"CR alone":          strings.ReplaceAll(plain, "\n", "\r"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := node(t, K3s, tree{path: before})
			o.Registries = []string{"docker.io"}
			was := read(t, o.Root)
			_, err := Install(o)
			require.NoError(t, err)
			require.Equal(t, []string{front, "https://m.example"}, endpoints(t, content(t, o, path))["docker.io"])
			status, err := Status(o)
			require.NoError(t, err)
			require.True(t, status.InForce(), status.Findings)
			requireUndone(t, o, was)
		})
	}
}
