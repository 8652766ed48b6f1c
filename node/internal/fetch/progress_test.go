package fetch

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// A front looks at it each second, and refuses a small layer where it sees nothing move.
func TestProgress_OfAPullIsSeenWhateverNamesAreMadeUpMeanwhile(t *testing.T) {
	t.Parallel()
	running := content.Request{Repository: content.Repository{Registry: "registry.test", Name: "team/app"}}
	for name, ask := range map[string]func(fr *Fetcher, i int){
		"of which nothing is fetched": func(fr *Fetcher, i int) {
			fr.Progress(content.Request{Repository: content.Repository{Registry: "registry.test", Name: fmt.Sprint(i)}})
		},
		"at another registry, which gives something of each": func(fr *Fetcher, i int) {
			fr.pulls.of(content.Repository{Registry: fmt.Sprint(i, ".evil.test"), Name: "a"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fr := &Fetcher{pulls: newPulls()}
			pull := fr.pulls.of(running.Repository)
			for i := range 2 * knownPulls {
				ask(fr, i)
			}
			pull.add(7)
			_, bytes := fr.Progress(running)
			require.EqualValues(t, 7, bytes)
		})
	}
}
