package hub

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

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
