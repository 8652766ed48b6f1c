package reply

import (
	"errors"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
)

// ErrUnsatisfiable: no byte of the content lies in the range that was asked for.
var ErrUnsatisfiable = errors.New("range lies outside the content")

// Span is a run of bytes of some content.
type Span struct{ Off, N int64 }

// ParseRange reads a Range header against content of size bytes. ok reports whether one range is to be answered with
// 206. A header that is malformed, of another unit, or of several ranges is ignored, as RFC 9110, section 14.2 allows,
// and so is any range of empty content.
func ParseRange(header string, size int64) (s Span, ok bool, err error) {
	whole := Span{0, size}
	spec, found := strings.CutPrefix(header, "bytes=")
	if !found || size == 0 {
		return whole, false, nil
	}
	first, last, found := strings.Cut(textproto.TrimString(spec), "-")
	if !found {
		return whole, false, nil
	}
	if first == "" {
		n, valid := Number(last)
		switch {
		case !valid:
			return whole, false, nil
		case n == 0:
			return whole, false, ErrUnsatisfiable
		}
		n = min(n, size)
		return Span{size - n, n}, true, nil
	}
	off, valid := Number(first)
	if !valid {
		return whole, false, nil
	}
	end := size - 1
	if last != "" {
		if end, valid = Number(last); !valid || end < off {
			return whole, false, nil
		}
		end = min(end, size-1)
	}
	if off >= size {
		return whole, false, ErrUnsatisfiable
	}
	return Span{off, end - off + 1}, true, nil
}

// Checks says who checks the bytes that a caller puts together out of several answers.
type Checks bool

const (
	// CallerChecks: the caller knows the digest of the whole, as container runtimes do, or that of each part, as lazy
	// snapshotters do.
	CallerChecks Checks = true
	// NobodyChecks: no range that may be one of a parallel download's, or go on with one, ends before the digest
	// matches.
	NobodyChecks Checks = false
)

// WantsPart reports whether a request is for a part of the content alone, so that its end need not wait for the digest
// of the whole.
//
//	request                        | the caller checks | nobody checks
//	HEAD                           | part              | part
//	no Range                       | whole             | whole
//	bytes=N-   what is left        | whole             | whole
//	bytes=-N   the end, a footer   | part              | part
//	bytes=N-M  of many in parallel | part              | whole, where it holds the last byte
func WantsPart(r *http.Request, by Checks) bool {
	if r.Method == http.MethodHead {
		return true
	}
	spec := textproto.TrimString(r.Header.Get("Range"))
	switch {
	case spec == "" || strings.HasSuffix(spec, "-"):
		return false
	case strings.HasPrefix(spec, "bytes=-"):
		return true
	}
	return bool(by)
}

// Number reads 1*DIGIT. Numbers too large for an int64 are all the same here.
func Number(s string) (int64, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, _ := strconv.ParseInt(s, 10, 64) // saturates
	return n, true
}

// RangeHeader is the Range header that counts: there is none on HEAD, for which ranges are not defined, and none where
// If-Range names other content.
func RangeHeader(r *http.Request, etag string) string {
	if r.Method != http.MethodGet {
		return ""
	}
	if cond := r.Header.Get("If-Range"); cond != "" && cond != etag {
		return ""
	}
	return r.Header.Get("Range")
}

// Unchanged reports whether If-None-Match names the content.
func Unchanged(r *http.Request, etag string) bool {
	return names(r.Header.Values("If-None-Match"), func(tag string) bool {
		return strings.TrimPrefix(tag, "W/") == etag
	})
}

// Replaced reports whether If-Match names other content, and not this. Who reads a file of a branch in parts says by it
// which file he has begun with.
func Replaced(r *http.Request, etag string) bool {
	conditions := r.Header.Values("If-Match")
	return len(conditions) > 0 && !names(conditions, func(tag string) bool { return tag == etag })
}

// names reports whether one of the ETags of a condition is the content's, as "*" is of any.
func names(condition []string, is func(tag string) bool) bool {
	for _, line := range condition {
		for tag := range strings.SplitSeq(line, ",") {
			if tag = textproto.TrimString(tag); tag == "*" || is(tag) {
				return true
			}
		}
	}
	return false
}
