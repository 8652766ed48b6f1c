package mirror

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
)

// What containerd would ask without the agent, the agent asks in its place.
func TestHosts_AreThoseThatContainerdAsksWithoutTheAgent(t *testing.T) {
	t.Parallel()
	const mirrors = `server = "https://up.example/v2/"
[host."https://m.example/prefix"]
  capabilities = ["pull"]
  ca = "m.crt"
  client = [["m.cert", "m.key"]]
  skip_verify = true
[host."https://m.example/prefix".header]
  authorization = "Basic eA=="
[host."http://n.example/root"]
  override_path = true
`
	// in is a directory with those mirrors and their files.
	in := func(dir string) tree {
		return tree{certs + dir + "/hosts.toml": mirrors, certs + dir + "/m.crt": "m.crt",
			certs + dir + "/m.cert": "m.cert", certs + dir + "/m.key": "m.key"}
	}
	both := in("_default")
	both[certs+"a.example:5000/hosts.toml"] = "[host.\"https://o.example\"]\n"
	for name, c := range map[string]struct {
		before tree
		want   []string
	}{
		"nothing": {tree{}, nil},
		"mirrors of its own": {in("a.example_5000_"),
			[]string{"https://m.example/prefix/v2", "http://n.example/root", "https://up.example/v2"}},
		"those of _default": {in("_default"), []string{"https://m.example/prefix/v2", "http://n.example/root",
			"https://up.example/v2"}},
		"its own, not those of _default": {
			both, []string{"https://o.example/v2", ""},
		},
		"a certificate only": {tree{certs + "a.example:5000/ca.crt": "PEM"}, []string{""}},
		"a file that is no TOML": {tree{certs + "a.example:5000/hosts.toml": "x",
			certs + "a.example:5000/ca.crt": "PEM"}, []string{""}},
		"in a later directory":     {tree{"/etc/docker/certs.d/a.example:5000/ca.crt": "PEM"}, []string{""}},
		"another registry's alone": {in("b.example"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.before[config] = v2with("/etc/containerd/certs.d:/etc/docker/certs.d")
			o := node(t, Containerd, c.before)
			o.Release = "2.0.0"
			ask := func() []Host {
				hosts, err := Hosts(o, "a.example:5000")
				require.NoError(t, err)
				return hosts
			}
			before := ask()
			var got []string
			for _, h := range before {
				url := ""
				if h.URL != nil {
					url = h.URL.String()
				}
				got = append(got, url)
			}
			require.Equal(t, c.want, got)
			if len(before) > 0 {
				require.True(t, before[len(before)-1].Self)
			}
			if len(before) == 3 {
				m := before[0]
				require.Equal(t, []bool{true, false, true, false}, []bool{m.Pull, m.Resolve, m.SkipVerify, m.Self})
				require.Equal(t, [][]byte{[]byte("m.crt")}, m.CAs)
				require.Equal(t, [][2][]byte{{[]byte("m.cert"), []byte("m.key")}}, m.Pairs)
				require.Equal(t, http.Header{"Authorization": {"Basic eA=="}}, m.Header)
			}
			if name == "a certificate only" || name == "in a later directory" {
				require.Equal(t, [][]byte{[]byte("PEM")}, before[0].CAs)
			}
			for _, registries := range [][]string{nil, {"a.example:5000"}} {
				o.Registries = registries
				_, err := Install(o)
				require.NoError(t, err)
				require.Equal(t, before, ask(), "the agent itself is none of them")
			}
		})
	}
}
