package contender

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSpegelIsSkippedOverAContainerdThatTellsItOfNoLayer(t *testing.T) { //nolint:paralleltest // it sets PATH
	for version, skipped := range map[string]bool{
		"containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3": true,
		"containerd github.com/containerd/containerd/v2 v2.0.5 fb4c30d4":              true,
		"containerd github.com/containerd/containerd/v2 v2.1.0 061792f0":              false,
		"containerd github.com/containerd/containerd/v2 2.2.6+unknown":                false,
		"containerd github.com/containerd/containerd/v2 v10.0.0 0123abcd":             false,
		"containerd of an unknown age":                                                true,
	} {
		programs := t.TempDir()
		t.Setenv("PATH", programs)
		script := "#!/bin/sh\necho '" + version + "'\n"
		for _, name := range []string{"containerd", "ctr", "spegel"} {
			require.NoError(t, os.WriteFile(filepath.Join(programs, name), []byte(script), 0o755))
		}
		require.Equal(t, skipped, Spegel{Binary: "spegel"}.Missing() != "", version)
	}
}
