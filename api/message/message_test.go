package message_test

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/api/message"
)

func TestPlain_SaysItOnceAndWithoutGo(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"GET https://a.example/v2/b/manifests/1: MANIFEST_UNKNOWN: manifest unknown; map[Tag:1]":             "GET https://a.example/v2/b/manifests/1: MANIFEST_UNKNOWN: manifest unknown",
		"UNAUTHORIZED: authentication required; [map[Action:pull Class: Name:b Type:repository]]":            "UNAUTHORIZED: authentication required",
		"DENIED: no; [map[Action:pull] map[Action:push]]":                                                    "DENIED: no",
		"resolve: unavailable: HEAD https://a.example: context deadline exceeded: context deadline exceeded": "resolve: unavailable: HEAD https://a.example: context deadline exceeded",
		"context deadline exceeded: GET https://a.example: context deadline exceeded":                        "GET https://a.example: context deadline exceeded",
		errors.Join(errors.New("one"), errors.New("two"),
			errors.New("one")).Error(): "one; two",
		"dial tcp [::1]:5000: connect: connection refused": "dial tcp [::1]:5000: connect: connection refused",
		"": "",
	} {
		require.Equal(t, want, message.Plain(text))
	}
}
