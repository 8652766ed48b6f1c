package upstream

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

func TestThrottling_IsRememberedWhateverIsMadeUpMeanwhile(t *testing.T) {
	t.Parallel()
	for name, made := range map[string]func(i int) (host, authorization string){
		"tokens":                       func(i int) (string, string) { return "registry.test", fmt.Sprint("Bearer ", i) },
		"hosts of a domain":            func(i int) (string, string) { return fmt.Sprint(i, ".evil.test"), "" },
		"passwords at one's own host":  func(i int) (string, string) { return "evil.test", fmt.Sprint("Basic ", i) },
		"tokens at a host of the same": func(i int) (string, string) { return "evil.registry.test", fmt.Sprint("Bearer ", i) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := New(Options{})
			require.NoError(t, err)
			t.Cleanup(c.Close)
			throttle := func(host, authorization string) (*registry, call) {
				reg, err := c.registry(host)
				require.NoError(t, err)
				asks := call{repo: content.Repository{Registry: host, Name: "a"}, authorization: authorization}
				c.throttle(reg, asks, failure{
					err: &content.UpstreamError{Status: http.StatusTooManyRequests}, retryAfter: time.Minute,
				})
				return reg, asks
			}
			reg, password := throttle("registry.test", "Basic eDp5")
			_, nobody := throttle("registry.test", "")
			for i := range 2 * maxThrottles {
				throttle(made(i))
			}
			require.Error(t, c.throttled(t.Context(), reg, password))
			require.Error(t, c.throttled(t.Context(), reg, nobody))
		})
	}
}

func TestRegistries_ThoseThatAreAskedAreRememberedWhateverIsMadeUpMeanwhile(t *testing.T) {
	t.Parallel()
	c, err := New(Options{})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	hole, err := c.registry("hole.test")
	require.NoError(t, err)
	for i := range 2 * maxUnlisted {
		_, err := c.registry(fmt.Sprint(i, ".evil.test"))
		require.NoError(t, err)
	}
	again, err := c.registry("hole.test")
	require.NoError(t, err)
	require.Same(t, hole, again, "so that it is known to be away")
}
