package upstream

import (
	"fmt"
	"testing"
)

func FuzzParseContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-9/10", "bytes 5-5/*", "bytes */10", "bytes 9-0/10", "bytes -1-2/3",
		"bytes 0-99999999999999999999/1", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		first, last, total, err := parseContentRange(s)
		if err != nil {
			return
		}
		if first < 0 || last < first || total >= 0 && last >= total {
			t.Fatalf("%q: %d to %d of %d", s, first, last, total)
		}
		again := fmt.Sprintf("bytes %d-%d/%d", first, last, total)
		if total < 0 {
			again = fmt.Sprintf("bytes %d-%d/*", first, last)
		}
		if a, b, c, err := parseContentRange(again); err != nil || a != first || b != last || c != total {
			t.Fatalf("%q reads as %q, which does not read the same", s, again)
		}
	})
}
