package content

import (
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
)

// NewVerifier wraps r so that reading it ends with io.EOF only when it gave exactly size bytes whose digest is d, and
// with ErrDigestMismatch otherwise. It passes on fewer than size bytes when their digest is not d, so that an answer of
// known length stays short, and never more than size. d must be valid.
func NewVerifier(r io.Reader, d digest.Digest, size int64) io.Reader {
	return &verifier{r: r, digest: d, left: size, sum: d.Verifier()}
}

type verifier struct {
	r      io.Reader
	digest digest.Digest
	left   int64
	sum    digest.Verifier
}

func (v *verifier) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := v.r.Read(p)
	if int64(n) > v.left {
		return 0, fmt.Errorf("%s: more bytes than its size: %w", v.digest, ErrDigestMismatch)
	}
	v.left -= int64(n)
	_, _ = v.sum.Write(p[:n]) // a hash never fails
	switch {
	case v.left == 0 && !v.sum.Verified():
		return 0, fmt.Errorf("%s: %w", v.digest, ErrDigestMismatch)
	case v.left > 0 && err == io.EOF:
		return n, fmt.Errorf("%s: ended %d bytes early: %w", v.digest, v.left, ErrDigestMismatch)
	}
	return n, err
}
