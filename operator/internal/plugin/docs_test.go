package plugin

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
)

// TestDocuments_EveryCommandInThemIsOne reads the commands of the documents as the plugin would.
func TestDocuments_EveryCommandInThemIsOne(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob("../../../charts/shoal/*.md")
	require.NoError(t, err)
	pages = append(pages, "../../../README.md", "../../README.md", "../../../charts/shoal/templates/NOTES.txt")
	line := regexp.MustCompile(`(?m)^\s*kubectl shoal ([^#\n]*)`)
	seen := 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		for _, m := range line.FindAllStringSubmatch(string(text), -1) {
			seen++
			args := strings.Fields(m[1])
			streams, _, _, _ := genericiooptions.NewTestIOStreams()
			p := &plugin{IOStreams: streams, flags: genericclioptions.NewConfigFlags(true)}
			cmd, rest, err := p.command().Find(args)
			require.NoError(t, err, "%s: %s", page, m[0])
			require.NotEqual(t, "kubectl-shoal", cmd.Name(), "%s: %s names no verb", page, m[0])
			require.NoError(t, cmd.ParseFlags(rest), "%s: %s", page, m[0])
			require.NoError(t, cmd.ValidateArgs(cmd.Flags().Args()), "%s: %s", page, m[0])
		}
	}
	require.Greater(t, seen, 10)
}
