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
	return rand.New(rand.NewChaCha8([sha256.Size]byte(mac.Sum(nil))))
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
