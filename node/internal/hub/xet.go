package hub

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/shoal-cache/shoal/node/internal/content"
)

const (
	// plainLimit is the size in bytes above which huggingface_hub takes no file by plain HTTP.
	plainLimit = 50_000_000_000
	// maxDigits is more than any size has.
	maxDigits = 20
)

// withoutXet takes xetHash out of a JSON document wherever it stands, so that clients come for the bytes instead of
// going around the cache. Files larger than keepAbove keep it, if that is not 0: their clients would take them no other
// way.
func withoutXet(doc []byte, keepAbove int64) ([]byte, error) {
	if !bytes.Contains(doc, []byte(`"xet`)) {
		return doc, nil
	}
	var compact bytes.Buffer
	compact.Grow(len(doc))
	if err := json.Compact(&compact, doc); err != nil {
		return nil, fmt.Errorf("the hub's JSON: %w: %w", content.ErrUnavailable, err)
	}
	s := stripper{in: compact.Bytes(), out: make([]byte, 0, compact.Len()), keepAbove: keepAbove}
	s.value()
	return s.out, nil
}

// stripper copies a valid JSON document without spaces. It is not parsed into values, which would take many times the
// memory.
type stripper struct {
	in, out   []byte // what is left, and what was copied
	keepAbove int64
}

func (s *stripper) value() {
	switch s.in[0] {
	case '{':
		s.object()
	case '[':
		s.copy(1)
		for s.in[0] != ']' {
			if s.in[0] == ',' {
				s.copy(1)
			}
			s.value()
		}
		s.copy(1)
	default:
		s.copy(scalar(s.in))
	}
}

func (s *stripper) copy(n int) { s.out, s.in = append(s.out, s.in[:n]...), s.in[n:] }

// object copies an object but for its members that name Xet. The hash comes last where the object turns out to be
// large.
func (s *stripper) object() {
	s.copy(1)
	size, hash := int64(0), []byte(nil)
	for s.in[0] != '}' {
		s.in = bytes.TrimPrefix(s.in, []byte(","))
		start, member := len(s.out), s.in
		s.comma()
		name := scalar(s.in)
		s.copy(name + len(":"))
		s.value()
		member = member[:len(member)-len(s.in)]
		switch value := member[name+len(":"):]; string(member[:name]) {
		case `"size"`:
			size = 0
			if len(value) <= maxDigits {
				size, _ = strconv.ParseInt(string(value), 10, 64) // what is no whole number is no size
			}
		case `"xetHash"`:
			s.out, hash = s.out[:start], nil
			if value[0] == '"' {
				hash = member
			}
		case `"xetEnabled"`:
			s.out = s.out[:start]
		}
	}
	if hash != nil && s.keepAbove > 0 && size > s.keepAbove {
		s.comma()
		s.out = append(s.out, hash...)
	}
	s.copy(1)
}

// comma goes before each member of an object but the first.
func (s *stripper) comma() {
	if s.out[len(s.out)-1] != '{' {
		s.out = append(s.out, ',')
	}
}

// scalar is the length of the string, number or word that a document without spaces begins with.
func scalar(in []byte) int {
	if in[0] != '"' {
		if end := bytes.IndexAny(in, ",]}"); end >= 0 {
			return end
		}
		return len(in)
	}
	for i := 1; ; i++ {
		switch in[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
}
