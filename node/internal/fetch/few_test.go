package fetch

import (
	"bytes"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// few is an origin that gives few answers at one time, and refuses the rest at once.
type few struct {
	most    int
	own     bool // it counts each caller's credentials by themselves
	status  int
	wish    string // Retry-After
	mu      sync.Mutex
	flowing map[string]int
	refused int
}

func (f *few) serve(w http.ResponseWriter, r *http.Request, data []byte) bool {
	who := ""
	if f.own {
		who = r.Header.Get("Authorization")
	}
	f.mu.Lock()
	full := f.flowing[who] >= f.most
	if full {
		f.refused++
	} else {
		f.flowing[who]++
	}
	f.mu.Unlock()
	if full {
		if f.wish != "" {
			w.Header().Set("Retry-After", f.wish)
		}
		w.WriteHeader(f.status)
		return true
	}
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.flowing[who]--
	}()
	slow := hooked{w, func() { <-time.After(4 * time.Millisecond) }} // or none would be beside another
	http.ServeContent(slow, r, "", time.Time{}, bytes.NewReader(data))
	return true
}

func TestFew_OfARegistryThatGivesFewAnswersAtOneTimeABlobComesWhole(t *testing.T) {
	t.Parallel()
	const size = 20*chunk1 + 5
	const many, unavailable = http.StatusTooManyRequests, http.StatusServiceUnavailable
	for name, tc := range map[string]struct {
		nodes int
		few   *few
	}{
		"one, alone":                        {1, &few{most: 1, status: many}},
		"one, alone, and 503 for others":    {1, &few{most: 1, status: unavailable}},
		"three, alone":                      {1, &few{most: 3, status: many}},
		"one to each of three":              {3, &few{most: 1, own: true, status: many}},
		"one to all of three":               {3, &few{most: 1, status: many}},
		"one to all of three, and a second": {3, &few{most: 1, status: many, wish: "1"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t)
			d := o.add(t, size)
			f := tc.few
			f.flowing = map[string]int{}
			o.Spoil(f.serve)
			var pulls []*pull
			for i, n := range newSwarm(t, o, tc.nodes) {
				req := o.request(d)
				req.Size = size // as the manifest has told
				if f.own {
					req.Authorization = fmt.Sprint("Bearer ", i)
				}
				pulls = append(pulls, n.pull(t.Context(), req))
			}
			for _, p := range pulls {
				p.requireRight(t, d)
			}
			t.Logf("%.2f copies in %d requests, %d of them refused", float64(o.Bytes.Load())/size, o.Gets.Load(),
				f.refused)
			require.LessOrEqual(t, float64(o.Bytes.Load())/size, 1.05)
			require.LessOrEqual(t, f.refused, 5*size/chunk1, "for each chunk that comes it may be asked for more")
		})
	}
}
