package main

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/registry"
)

func TestCounters_OfTheFrontAreAnswersAndNoRefusals(t *testing.T) {
	t.Parallel()
	c := newCached(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	manifest, layer := c.push()
	require.Equal(t, http.StatusUnauthorized, c.get("manifests", manifest, ""))
	require.Equal(t, registry.Counters{}, c.front.Counters())
	require.Equal(t, http.StatusOK, c.get("manifests", manifest, "Basic dTpwYXNz"))
	require.Equal(t, http.StatusOK, c.get("blobs", layer, "Basic dTpwYXNz"))
	require.Equal(t, registry.Counters{Answered: 2}, c.front.Counters())
}
