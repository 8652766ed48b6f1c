package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/api/view"
)

func TestLook_SaysWhatIsMissingAndHowItIsUsed(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"where":             "where takes an image or a digest, and was given nothing; for example:\n  shoal-node where",
		"where a b":         "where takes an image or a digest, and was given a b; for example:",
		"get":               "get takes a digest, and was given nothing",
		"add":               "add takes a file, and was given nothing",
		"status -o xml":     `--output "xml": want json or yaml`,
		"help nothing":      `unknown command "nothing" for "shoal-node"`,
		"status --admin :1": "no agent answers at http://:1",
	} {
		cmd := command()
		cmd.SetArgs(strings.Fields(args))
		require.ErrorContains(t, cmd.ExecuteContext(t.Context()), want, args)
	}
}

func TestLook_AFrozenAgentIsCalledFrozen(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		close(asked)
	}))
	defer server.Close()
	_, err := ask[view.Node](t.Context(), &view.Client{HTTP: &http.Client{Timeout: 50 * time.Millisecond},
		Base: server.URL}, view.NodePath, nil)
	require.ErrorContains(t, err, "gives no answer within 20s: it may be frozen, so start it anew")
	<-asked
}
