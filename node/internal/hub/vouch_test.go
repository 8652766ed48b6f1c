package hub

import (
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/room"
)

// Who had a clock that was ahead would else be taken for one who has asked lately, for as long.
func TestVouched_TheWordOfATimeToComeIsNone(t *testing.T) {
	t.Parallel()
	m := newMemo(nil, room.New(1<<20), slog.New(slog.DiscardHandler))
	m.shared = teller{}
	for sentence, tc := range map[string]struct {
		ahead, maxAge time.Duration
		counts        bool
	}{
		"one of now":                         {0, time.Hour, true},
		"one by a clock that is a bit ahead": {clockSlack / 2, time.Hour, true},
		"one of tomorrow":                    {24 * time.Hour, time.Hour, false},
		"one of before":                      {-time.Hour / 2, time.Hour, true},
		"one of long before":                 {-24 * time.Hour, time.Hour, false},
		"any of what never changes":          {24 * time.Hour, forever, true},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			word := voucher{Unix: time.Now().Add(tc.ahead).Unix(), By: []byte("one")}
			require.Equal(t, tc.counts, len(m.vouched("k", record{Vouched: vouchers{word}}, tc.maxAge)) == 1)
		})
	}
}

func TestVouchers_AListOfManyIsRefusedBeforeItTakesMemory(t *testing.T) {
	t.Parallel()
	list := func(n int) []byte {
		return []byte(`{"yes":true,"vouched":[` + strings.TrimSuffix(strings.Repeat(`{},`, n), ",") + `]}`)
	}
	for sentence, c := range map[string]struct {
		value string
		want  int
		err   error
	}{
		"none":                       {`{"yes":true}`, 0, nil},
		"none by another word":       {`{"vouched":null}`, 0, nil},
		"as many as are looked at":   {string(list(2 * maxVouched)), 2 * maxVouched, nil},
		"as many as a message holds": {string(list(170_000)), 2 * maxVouched, errVouchers},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			var r record
			require.ErrorIs(t, json.Unmarshal([]byte(c.value), &r), c.err)
			require.LessOrEqual(t, cap(r.Vouched), 2*maxVouched)
			require.Len(t, r.Vouched, c.want)
		})
	}
	require.Error(t, json.Unmarshal([]byte(`{"vouched":7}`), new(record)))
	require.Greater(t, bytesOf(record{Vouched: make(vouchers, 2*maxVouched)}), 2*maxVouched, "an empty one takes memory too")
}
