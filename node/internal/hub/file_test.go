package hub

import (
	"testing"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/content/contenttest"
)

func TestLater_IsAReader(t *testing.T) {
	t.Parallel()
	data := []byte("0123456789")
	contenttest.Reader(t, data, func(*testing.T) content.Reader {
		return newLater(int64(len(data)), func() ([]byte, error) { return data, nil })
	})
}
