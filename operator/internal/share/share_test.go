package share_test

import (
	"cmp"
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/operator/internal/share"
)

func TestPlaces_NamespacesThatTakeAllTheyGetComeToEqualParts(t *testing.T) {
	t.Parallel()
	for namespaces, each := range map[int][2]int{1: {12, 12}, 2: {8, 8}, 3: {6, 6}, 5: {4, 4}, 11: {2, 2}, 23: {1, 1}, 30: {0, 1}} {
		t.Run(fmt.Sprint(namespaces, " namespaces"), func(t *testing.T) {
			t.Parallel()
			p := share.New(24)
			var all []string
			for i := range namespaces {
				all = append(all, fmt.Sprint(i))
			}
			take := func() { // who has the fewest goes first
				for p.Take(slices.MinFunc(all, func(a, b string) int { return cmp.Compare(p.Of(a), p.Of(b)) })) {
				}
			}
			for p.Take(all[0]) { // the first was there before the others
			}
			for range 24 {
				for _, namespace := range all {
					if p.Of(namespace) > 0 {
						p.Give(namespace)
						take()
					}
				}
			}
			for _, namespace := range all {
				require.GreaterOrEqual(t, p.Of(namespace), each[0])
				require.LessOrEqual(t, p.Of(namespace), each[1])
			}
			require.Equal(t, namespaces < 24, p.Take("newcomer"))
		})
	}
}
