package resolve

import (
	"fmt"
	"io"
	"net/http"
)

// maxAnswer is how many bytes of a registry's answer are read: as many as agents take of a manifest. The library takes
// 100 MiB, and several are read at one time.
const maxAnswer = 8 << 20

// bounded reads no more than maxAnswer of each answer.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(r)
	if err == nil && r.Method != http.MethodHead {
		resp.Body = &boundedBody{resp.Body, r.URL.Host, maxAnswer}
	}
	return resp, err
}

type boundedBody struct {
	io.ReadCloser
	host string
	left int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left+1)])
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("the answer of %s is longer than %d bytes, the most that is read of one", b.host,
			maxAnswer)
	}
	return n, err
}
