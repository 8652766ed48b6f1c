package view

import (
	"fmt"
	"regexp"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// cutDigest is what was meant to be a digest, alone or after an image, and is none.
var cutDigest = regexp.MustCompile(`(^|@)sha(256|512):`)

// Named is what a person means by the name of an image or by a digest: the image with its registry and tag, the digest
// as it is. program is what it is said to, and has a verb ls.
func Named(program, text string) (string, error) {
	if digest.Digest(text).Validate() == nil {
		return text, nil
	}
	ref, err := reference.ParseNormalizedNamed(text)
	// As an image a cut digest may be the tag of a repository of that name, which nobody means.
	if _, ok := ref.(reference.Digested); !ok && cutDigest.MatchString(text) {
		return "", fmt.Errorf("%q is no whole digest; %s ls lists whole ones", text, program)
	}
	if err != nil {
		return "", fmt.Errorf("%q names no image: %w; write registry.example/team/app:1.2, or a digest", text, err)
	}
	return reference.TagNameOnly(ref).String(), nil
}

// DigestNamed is the digest that a person wrote, where nothing else will do.
func DigestNamed(program, text string) (digest.Digest, error) {
	d := digest.Digest(text)
	if d.Validate() == nil {
		return d, nil
	}
	image, err := Named(program, text)
	if err != nil {
		return "", err
	}
	return "", fmt.Errorf("%q is an image, and a digest is wanted here: %s where %s prints it", text, program, image)
}
