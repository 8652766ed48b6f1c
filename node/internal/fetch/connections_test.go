package fetch

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
	"github.com/shoal-cache/shoal/node/internal/swarm"
	"github.com/shoal-cache/shoal/node/internal/upstream"
	"github.com/shoal-cache/shoal/test/registrytest"
)

func TestConnections_ManyBlobsAtOnceAreReadByAsManyRequestsAsThePolicyLets(t *testing.T) {
	t.Parallel()
	for _, most := range []int{1, 2, schedule.UpstreamStreams + 4} {
		t.Run(fmt.Sprint(most), func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t)
			crowd := registrytest.NewCrowd(o.Files, most)
			o.Handle(crowd)
			n := newNode(t, o, "n", nil, func(fo *Options, _ *swarm.Options) {
				bound := upstream.NewConnections(most)
				up, err := upstream.New(upstream.Options{
					Upstreams: []upstream.Upstream{{Registry: "images.test", Endpoints: []string{o.URL}}},
					Limits:    func(content.Repository) upstream.Limits { return upstream.Limits{Connections: bound} },
				})
				require.NoError(t, err)
				t.Cleanup(up.Close)
				fo.Upstream, fo.Connections = up, func(content.Repository) int { return most }
				fo.Patience = time.Hour // no relief takes the place of a turn
			})
			var pulls sync.WaitGroup
			for range max(6, most) {
				d := o.add(t, 2*chunk1+5)
				pulls.Go(func() {
					got, err := n.read(t.Context(), o.request(d))
					assert.NoError(t, err)
					assert.Equal(t, d, digest.FromBytes(got))
				})
			}
			pulls.Wait()
			require.Equal(t, most, crowd.Most())
		})
	}
}
