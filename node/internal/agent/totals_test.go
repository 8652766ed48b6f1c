package agent

import (
	"bytes"
	"log/slog"
	"testing"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
)

// kept is a Memory.
type kept map[string][]byte

func (k kept) Get(key string) ([]byte, bool)  { v, ok := k[key]; return v, ok }
func (k kept) Put(key string, v []byte) error { k[key] = v; return nil }

func TestTotals_SurviveRestarts(t *testing.T) {
	t.Parallel()
	disk := kept{}
	log := slog.New(slog.DiscardHandler)
	first := newTotals(disk, log)
	require.Equal(t, Counters{}, first.sum(Counters{}))
	require.EqualValues(t, 7, first.sum(Counters{Hits: 7, SavedBytes: 1 << 30}).Hits)
	second := newTotals(disk, log)
	require.EqualValues(t, 7, second.sum(Counters{}).Hits, "a restarted agent begins where the last one was")
	require.Equal(t, Counters{Hits: 9, Misses: 1, SavedBytes: 1 << 30}, second.sum(Counters{Hits: 2, Misses: 1}))
	require.Equal(t, Counters{Hits: 10, Misses: 1, SavedBytes: 1 << 30}, second.sum(Counters{Hits: 3, Misses: 1}),
		"not counted twice")
	require.EqualValues(t, 10, newTotals(disk, log).sum(Counters{}).Hits)
}

func TestClientGo_IsQuietAtDebug(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	h := slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug - 10})
	log := logr.FromSlogHandler(calm{h})
	log.V(4).Info("watch closed")
	log.WithValues("a", 1).V(1).Info("and so on")
	require.Empty(t, out.String())
	log.Info("worth it")
	log.WithName("x").Error(nil, "worth it too")
	require.Contains(t, out.String(), "worth it")
	require.Contains(t, out.String(), "worth it too")
}
