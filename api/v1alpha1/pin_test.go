package v1alpha1_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/api/v1alpha1"
)

func TestMatchesFiles_PatternsAreThoseOfTheHubsClients(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		patterns []string
		path     string
		want     bool
	}{
		{nil, "any/thing", true},
		{[]string{"*.safetensors"}, "model.safetensors", true},
		{[]string{"*.safetensors"}, "deep/er/model.safetensors", true},
		{[]string{"*.safetensors"}, "model.safetensors.index.json", false},
		{[]string{"onnx/"}, "onnx/model.onnx", true},
		{[]string{"onnx/"}, "onnx", false},
		{[]string{"model-0000?-of-*"}, "model-00001-of-00002.bin", true},
		{[]string{"config.json", "*.txt"}, "a.txt", true},
		{[]string{"config.json"}, "Config.json", false},
		{[]string{"**"}, "", true},
		{[]string{"a"}, "", false},
		{[]string{strings.Repeat("*a", 60) + "b"}, strings.Repeat("a", 4000), false}, // and quickly
	} {
		require.Equal(t, tc.want, v1alpha1.MatchesFiles(tc.patterns, tc.path), "%v of %.20s", tc.patterns, tc.path)
	}
}

func TestSource_TellsArtifactsOfAPinApartAndFits(t *testing.T) {
	t.Parallel()
	long := func(last string) v1alpha1.Artifact {
		files := []string{}
		for range 15 {
			files = append(files, strings.Repeat("x", 128))
		}
		return v1alpha1.Artifact{Hub: &v1alpha1.HubArtifact{Repository: "org/m", Revision: "main",
			Files: append(files, last)}}
	}
	require.NotEqual(t, long("a").Source(), long("b").Source())
	require.LessOrEqual(t, len(long("a").Source()), 512)
	require.Equal(t, "hub:org/m@main *.bin", v1alpha1.Artifact{Hub: &v1alpha1.HubArtifact{Repository: "org/m",
		Revision: "main", Files: []string{"*.bin"}}}.Source())
}
