package content

import (
	"crypto/hmac"
	"crypto/sha256"
	"math/rand/v2"

	"github.com/opencontainers/go-digest"
)

// Places draws the places of a content that a source must give to prove that it has it. Who does not know the secret
// foretells none of them. They are the same each time, so that who knows a part of the content has one draw, and not as
// many as it asks for.
func Places(secret []byte, d digest.Digest) *rand.Rand {
	mac := hmac.New(sha256.New, secret)
	_, _ = mac.Write([]byte(d)) // a hash never fails

	//nolint:gosec // a cipher, with a secret key
	return rand.New(rand.NewChaCha8([sha256.Size]byte(mac.Sum(nil))))
}

// SampleSize is how many bytes a source must give of what is sampled in parts: the most varied of SampleWindow bytes,
// for the first bytes of an archive are known to everyone.
const (
	SampleSize   = 1 << 10
	SampleWindow = 64 << 10
	// maxWindows bounds the search for such a part.
	maxWindows = 16
)

// Sample picks what a source must give of the windows of a content that it is shown: the most varied part. It looks at
// others for as long as there is none that is hard to guess. nil: there was no window.
func Sample(window func(try int) (off int64, data []byte, err error)) (off int64, part []byte, err error) {
	most := -1
	for try := 0; most < Varied && try < maxWindows; try++ {
		start, data, err := window(try)
		if err != nil {
			return 0, nil, err
		}
		for i := 0; i+SampleSize <= len(data); i += SampleSize {
			if v := Variety(data[i : i+SampleSize]); v > most {
				off, part, most = start+int64(i), data[i:i+SampleSize], v
			}
		}
	}
	return off, part, nil
}

// Varied is how many different bytes a part has at least that nobody guesses: not zeros, nor the header of a file.
const Varied = 48

// Variety is how many different bytes there are: few where they are easy to guess.
func Variety(data []byte) (n int) {
	var seen [256]bool
	for _, b := range data {
		if !seen[b] {
			seen[b] = true
			n++
		}
	}
	return n
}
