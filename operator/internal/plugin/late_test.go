package plugin

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"github.com/shoal-cache/shoal/api/view"
)

// hanging is an agent that answers what it is, then some looks at its blobs, and then nothing more.
type hanging struct {
	agents
	looks [][]view.Blob
	// silent is called once nothing more comes.
	silent func()
}

func (h *hanging) Open(context.Context, *corev1.Pod, string) (*view.Client, func(), error) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == view.NodePath:
			_ = json.NewEncoder(w).Encode(view.Node{PeerID: "peer"})
		case len(h.looks) > 0:
			_ = json.NewEncoder(w).Encode(h.looks[0])
			h.looks = h.looks[1:]
		default:
			h.silent()
			<-r.Context().Done()
		}
	}))
	return &view.Client{HTTP: server.Client(), Base: server.URL}, server.Close, nil
}

func TestArrives_TimeThatEndsInTheMiddleOfALookIsNotTheAgentsSilence(t *testing.T) {
	t.Parallel()
	d := digest.FromString("content")
	there := view.Blob{Digest: d.String(), Size: 7}
	for name, c := range map[string]struct {
		looks   [][]view.Blob
		problem string
	}{
		"it has not come":                     {looks: [][]view.Blob{{}}, problem: "it did not come in time"},
		"it is there, from where is not told": {looks: [][]view.Blob{{there}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, end := context.WithCancel(t.Context())
			p := &plugin{agents: &hanging{looks: c.looks, silent: end}}
			var got tested
			err := p.arrives(ctx, &corev1.Pod{}, d, time.Now(), false, &got)
			if c.problem != "" {
				require.EqualError(t, err, c.problem)
				return
			}
			require.NoError(t, err)
			require.Equal(t, int64(7), got.Bytes)
		})
	}
}
