package view_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/api/view"
)

func TestNamed_IsWhatAPersonMeans(t *testing.T) {
	t.Parallel()
	whole := "sha256:" + strings.Repeat("ab", 32)
	for text, want := range map[string]struct{ named, refused, digest string }{
		"nginx":             {named: "docker.io/library/nginx:latest", digest: "kubectl shoal where docker.io/library/nginx:latest prints it"},
		"nginx:1.29":        {named: "docker.io/library/nginx:1.29", digest: "is an image, and a digest is wanted"},
		"registry.test/a:1": {named: "registry.test/a:1", digest: "is an image, and a digest is wanted"},
		"nginx@" + whole:    {named: "docker.io/library/nginx@" + whole, digest: "is an image, and a digest is wanted"},
		// A pin remembers the tag of what it keeps.
		"nginx:1.29@" + whole:  {named: "docker.io/library/nginx:1.29@" + whole, digest: "is an image, and a digest is wanted"},
		whole:                  {named: whole},
		"sha256:abab":          {refused: `"sha256:abab" is no whole digest; kubectl shoal ls lists whole ones`},
		"sha512:" + whole[7:]:  {refused: "is no whole digest"},
		"nginx@sha256:abab":    {refused: `"nginx@sha256:abab" is no whole digest`},
		"nginx:1@sha256:":      {refused: "is no whole digest"},
		"registry.test/sha256": {named: "registry.test/sha256:latest", digest: "is an image, and a digest is wanted"},
		"https://nginx":        {refused: "names no image"},
		"":                     {refused: "names no image"},
	} {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			named, err := view.Named("kubectl shoal", text)
			d, noDigest := view.DigestNamed("kubectl shoal", text)
			if want.refused != "" {
				require.ErrorContains(t, err, want.refused)
				require.Equal(t, err, noDigest)
				return
			}
			require.NoError(t, err)
			require.Equal(t, want.named, named)
			if want.digest != "" {
				require.ErrorContains(t, noDigest, want.digest)
				return
			}
			require.NoError(t, noDigest)
			require.Equal(t, text, d.String())
		})
	}
}
