package registry

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

func TestQuestionKey_IsShortAndToldApartByAllThatIsAsked(t *testing.T) {
	t.Parallel()
	repo := content.Repository{Registry: "images.test", Name: "a"}
	seen := map[string]bool{}
	for _, key := range []string{
		questionKey(repo, "v1", nil), questionKey(repo, "v2", nil), questionKey(content.Repository{}, "v1", nil),
		questionKey(repo, "v1", []string{"a", "b"}), questionKey(repo, "v1", []string{"a b"}),
		questionKey(repo, "v1", []string{strings.Repeat("a", 1<<20)}),
	} {
		require.LessOrEqual(t, len(key), 64)
		require.False(t, seen[key])
		seen[key] = true
	}
	require.True(t, seen[questionKey(repo, "v1", nil)])
}

func TestHostname_IsNoLongerThanANameMayBe(t *testing.T) {
	t.Parallel()
	long := strings.Repeat(strings.Repeat("a", 62)+".", 3) + strings.Repeat("a", 64)
	_, err := hostname(long + ":65535")
	require.NoError(t, err)
	_, err = hostname(long + "a:65535")
	require.ErrorContains(t, err, "malformed")
}
