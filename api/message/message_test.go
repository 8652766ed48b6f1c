package message_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/api/message"
)

func TestPlain_SaysItOnceAndWithoutGo(t *testing.T) {
	t.Parallel()
	digest, other := strings.Repeat("a", 64), strings.Repeat("b", 64)
	for text, want := range map[string]string{
		"GET https://a.example/v2/b/manifests/1: MANIFEST_UNKNOWN: manifest unknown; map[Tag:1]":             "GET https://a.example/v2/b/manifests/1: MANIFEST_UNKNOWN: manifest unknown",
		"UNAUTHORIZED: authentication required; [map[Action:pull Class: Name:b Type:repository]]":            "UNAUTHORIZED: authentication required",
		"DENIED: no; [map[Action:pull] map[Action:push]]":                                                    "DENIED: no",
		"resolve: unavailable: HEAD https://a.example: context deadline exceeded: context deadline exceeded": "resolve: unavailable: HEAD https://a.example: context deadline exceeded",
		"context deadline exceeded: GET https://a.example: context deadline exceeded":                        "GET https://a.example: context deadline exceeded",
		errors.Join(errors.New("one"), errors.New("two"),
			errors.New("one")).Error(): "one; two",
		`key: Invalid value: "no key!": name part is so (e.g. 'MyName',  or '123-abc', regex used for validation is '([A-Z])?')`: `key: Invalid value: "no key!": name part is so (e.g. 'MyName', or '123-abc')`,
		"dial tcp [::1]:5000: connect: connection refused":                                                                       "dial tcp [::1]:5000: connect: connection refused",
		"fetch manifest sha256:" + digest + ": fetch sha256:" + digest + ": ingest sha256:" + digest + ": chunk 0: disk":         "fetch manifest sha256:" + digest + ": chunk 0: disk",
		"fetch sha256:" + digest + ": ingest sha256:" + other + ": no":                                                           "fetch sha256:" + digest + ": ingest sha256:" + other + ": no",
		"": "",
	} {
		require.Equal(t, want, message.Plain(text))
	}
}

// A registry chooses how long its answer is, and how many parts that has.
func TestPlain_OfALongTextTakesTheBeginning(t *testing.T) {
	t.Parallel()
	var long strings.Builder
	for i := range 1 << 14 {
		fmt.Fprintf(&long, "%d: ü%d\n", i, i)
	}
	got := message.Plain("GET https://a.example: 500: " + long.String())
	require.True(t, strings.HasPrefix(got, "GET https://a.example: 500: 0: ü0; 1: ü1"), got[:60])
	require.True(t, strings.HasSuffix(got, "…"), got[len(got)-60:])
	require.Less(t, len(got), 16<<10)
	require.True(t, utf8.ValidString(got))
}
