package survey

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/api/v1alpha1"
)

const repository = "../../../"

// headings are the anchors of a page, as GitHub makes them.
func headings(t *testing.T, page string) []string {
	t.Helper()
	text, err := os.ReadFile(repository + page)
	require.NoError(t, err)
	var anchors []string
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(string(text), -1) {
		anchor := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(m[1]), "")
		anchors = append(anchors, strings.ReplaceAll(anchor, " ", "-"))
	}
	return anchors
}

// reasonsOfPre are the reasons that check --pre gives.
func reasonsOfPre(t *testing.T) (reasons []string) {
	t.Helper()
	text, err := os.ReadFile(repository + "operator/internal/plugin/check.go")
	require.NoError(t, err)
	for _, m := range regexp.MustCompile(`\.before\((?:true|false), "(\w+)"`).FindAllStringSubmatch(string(text), -1) {
		reasons = append(reasons, m[1])
	}
	require.Greater(t, len(reasons), 5)
	return reasons
}

// TestLinks_EachLeadsToASectionThatExists reads what the plugin, the status page, the chart's notes and its alerts may
// print.
func TestLinks_EachLeadsToASectionThatExists(t *testing.T) {
	t.Parallel()
	links := map[string]string{RightsLink: "the plugin"}
	for reason := range mends {
		links[Link(reason)] = reason
	}
	for _, reason := range reasonsOfPre(t) {
		links[Link(reason)] = "check --pre"
	}
	var sources []string
	for _, pattern := range []string{"operator/internal/*/*.go", "operator/internal/page/assets/*", "operator/main.go",
		"charts/shoal/templates/NOTES.txt", "charts/shoal/templates/*/_helpers.tpl", "charts/shoal/files/*"} {
		found, err := filepath.Glob(repository + pattern)
		require.NoError(t, err)
		require.NotEmpty(t, found, pattern)
		sources = append(sources, found...)
	}
	printed := regexp.MustCompile(`(?:https://github\.com/shoal-cache/shoal/blob/main/|charts/)[\w./-]+\.md(?:#[\w-]+)?`)
	for _, source := range sources {
		text, err := os.ReadFile(source)
		require.NoError(t, err)
		for _, link := range printed.FindAllString(string(text), -1) {
			links[link] = source
		}
	}
	require.Greater(t, len(links), len(mends)+5)
	for link, by := range links {
		page, anchor, sectioned := strings.Cut(strings.TrimPrefix(link,
			"https://github.com/shoal-cache/shoal/blob/main/"), "#")
		require.FileExists(t, repository+page, "%s links to %s", by, link)
		if sectioned && anchor != "" {
			require.Contains(t, headings(t, page), anchor, "%s links to %s", by, link)
		}
	}
}

// TestMends_ThereIsOneOfEveryReasonThatAnAgentReports reads the reasons of the conditions that check passes on.
func TestMends_ThereIsOneOfEveryReasonThatAnAgentReports(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(repository + "api/v1alpha1/conditions.go")
	require.NoError(t, err)
	well := []string{v1alpha1.ReasonMirrorConfigured, v1alpha1.ReasonMirrorNotChecked, v1alpha1.ReasonDiskWorks,
		v1alpha1.ReasonModelsFit}
	reasons := []string{v1alpha1.ReasonPolicyRejected}
	for block := range strings.SplitSeq(string(text), "\n// Reasons of ") {
		if !strings.HasPrefix(block, "NodeCache's condition") {
			continue
		}
		for _, m := range regexp.MustCompile(`(?m)^\tReason\w+ = "(\w+)"`).FindAllStringSubmatch(block, -1) {
			if !slices.Contains(well, m[1]) {
				reasons = append(reasons, m[1])
			}
		}
	}
	require.Greater(t, len(reasons), 10)
	for _, reason := range reasons {
		require.Contains(t, mends, reason, "an agent may give it, and nobody says what to do")
	}
}
