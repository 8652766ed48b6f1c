package registry_test

import (
	"testing"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/content/contenttest"
)

func TestFakes_OfReadersPassTheSuite(t *testing.T) {
	t.Parallel()
	const data = "0123456789"
	for name, open := range map[string]func(*testing.T) content.Reader{
		"held":     func(*testing.T) content.Reader { return held(data) },
		"filelike": func(*testing.T) content.Reader { return filelike{held(data)} },
		"arriving": func(*testing.T) content.Reader {
			a := newArriving(int64(len(data)))
			a.send(data[:4], nil)
			go a.send(data[4:], nil)
			return a
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			contenttest.Reader(t, []byte(data), open)
		})
	}
}
