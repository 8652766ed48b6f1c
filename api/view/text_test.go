package view_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/api/view"
)

func TestDuration_IsWrittenAsPeopleDo(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0:                       "0s",
		time.Microsecond:        "<1ms",
		340 * time.Millisecond:  "340ms",
		1200 * time.Millisecond: "1.2s",
		9 * time.Second:         "9s",
		30 * time.Second:        "30s",
		time.Minute:             "1m",
		90 * time.Second:        "1m30s",
		20 * time.Minute:        "20m",
		time.Hour:               "1h",
		100 * time.Minute:       "1h40m",
		30 * time.Hour:          "30h",
		72 * time.Hour:          "3d",
		-90 * time.Second:       "-1m30s",
	} {
		require.Equal(t, want, view.Duration(d), "%v", d)
	}
}

func TestPull_IsFoundByAllThatItsImageIsCalled(t *testing.T) {
	t.Parallel()
	index, layer := "sha256:"+strings.Repeat("ab", 32), "sha256:"+strings.Repeat("cd", 32)
	pull := view.Pull{Repository: "docker.io/library/nginx", Reference: "1.29",
		Parts: []view.PullPart{{Digest: index}, {Digest: layer}}}
	for name, want := range map[string]bool{
		"": true, "nginx:1.29": true, "nginx": true, "docker.io/library/nginx": true, index: true, layer: true,
		"nginx@" + index: true, "nginx:1.29@" + index: true, "docker.io/library/nginx@" + layer: true,
		"nginx:1.28": false, "redis": false, "redis@" + index: false, "nginx@sha256:" + strings.Repeat("ef", 32): false,
	} {
		require.Equal(t, want, pull.Matches(name), name)
	}
}

func TestCount_AgreesWithItsNoun(t *testing.T) {
	t.Parallel()
	for want, got := range map[string]string{
		"0 pins": view.Count(0, "pin"), "1 pin": view.Count(1, "pin"), "2 pins": view.Count(2, "pin"),
		"1 copy": view.Count(1, "copy"), "3 copies": view.Count(3, "copy"), "2 days": view.Count(2, "day"),
		"1 copy is": view.Are(1, "copy"), "2 copies are": view.Are(2, "copy"), "0 nodes are": view.Are(0, "node"),
	} {
		require.Equal(t, want, got)
	}
}
