package mirror

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Containerd passes over a hosts.toml as a whole when it does not take a part of it, and asks no mirror. An agent that is
// put into such a file is not asked either.
func TestAccepted_AFileThatContainerdPassesOverIsNamed(t *testing.T) {
	t.Parallel()
	const host = "[host.\"https://m.example\"]\n"
	for name, c := range map[string]struct {
		before string
		// passedOver and taken are releases.
		passedOver, taken []string
	}{
		"capabilities of every release": {host + "capabilities = [\"pull\", \"Resolve\", \"push\"]\n", nil,
			[]string{"1.6.20", "2.4.2", ""}},
		"a capability of newer releases": {host + "capabilities = [\"pull\", \"referrers\"]\n",
			[]string{"1.7.35", "2.1.9"}, []string{"2.2.9", ""}},
		"a capability of none":           {"capabilities = [\"pul\"]\n", []string{"1.6.20", "2.4.2", ""}, nil},
		"capabilities that are one text": {host + "capabilities = \"pull\"\n", []string{"1.6.20", "2.4.2", ""}, nil},
		"a server that is a number":      {"server = 5\n", []string{"1.6.20", "2.4.2"}, nil},
		"a server that is no URL":        {"server = \"http://%zz\"\n", []string{"1.6.20", "2.4.2"}, nil},
		"a host that is no URL":          {"[host.\"http://a:b\"]\n", []string{"1.6.20", "2.4.2"}, nil},
		"a host that is an IPv6 address": {"[host.\"http://[::1]:5000\"]\n", []string{"1.6.20"},
			[]string{"2.4.2", ""}},
		"texts where switches belong":     {host + "skip_verify = \"yes\"\n", []string{"1.6.20", "2.4.2"}, nil},
		"a path's switch that is a text":  {host + "override_path = \"yes\"\n", []string{"1.6.20", "2.4.2"}, nil},
		"authorities in every form":       {"ca = \"a\"\n" + host + "ca = [\"b\", \"c\"]\n", nil, []string{"1.6.20", "2.4.2"}},
		"authorities that are no files":   {host + "ca = [1]\n", []string{"1.6.20", "2.4.2"}, nil},
		"clients in every form":           {"client = \"a\"\n" + host + "client = [\"b\", [\"c\", \"d\"]]\n", nil, []string{"2.4.2"}},
		"a client of three files":         {host + "client = [[\"a\", \"b\", \"c\"]]\n", []string{"1.6.20", "2.4.2"}, nil},
		"a client that is a number":       {host + "client = [1]\n", []string{"1.6.20", "2.4.2"}, nil},
		"headers in every form":           {host + "header = {a = \"b\", c = [\"d\"]}\n", nil, []string{"2.4.2"}},
		"a header that is a number":       {host + "header = {a = 5}\n", []string{"1.6.20", "2.4.2"}, nil},
		"a time to dial in no unit":       {host + "dial_timeout = \"5\"\n", []string{"2.4.2", ""}, []string{"1.7.35"}},
		"a time to dial that is a number": {host + "dial_timeout = 5\n", []string{"2.4.2"}, []string{"1.7.35"}},
		"a key that nobody knows":         {"mine = 5\n" + host, nil, []string{"1.6.20", "2.4.2"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for release, taken := range releasesOf(c.passedOver, c.taken) {
				o := node(t, Containerd, tree{config: v2with("/etc/containerd/certs.d"),
					certs + "a.example/hosts.toml": c.before})
				o.Release = release
				before := read(t, o.Root)
				_, err := Install(o)
				require.NoError(t, err)
				status, err := Status(o)
				require.NoError(t, err)
				require.Equal(t, taken, status.InForce(), "%s: %v", release, status.Findings)
				if !taken {
					require.Equal(t, []FindingKind{NotMirrored}, kinds(status))
					require.Equal(t, c.before, content(t, o, certs+"a.example/hosts.toml"))
				}
				requireUndone(t, o, before)
			}
		})
	}
}

func releasesOf(passedOver, taken []string) map[string]bool {
	all := map[string]bool{}
	for _, release := range passedOver {
		all[release] = false
	}
	for _, release := range taken {
		all[release] = true
	}
	return all
}
