package registry

import (
	"errors"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
)

// errUnsatisfiable: no byte of the blob lies in the range that was asked for.
var errUnsatisfiable = errors.New("range lies outside the blob")

// span is a run of bytes of a blob.
type span struct{ off, n int64 }

// parseRange reads a Range header against a blob of size bytes. ok tells whether one range is to be answered with 206. A
// header that is malformed, of another unit, or of several ranges is ignored, as RFC 9110, section 14.2 allows, and so
// is any range of an empty blob.
func parseRange(header string, size int64) (s span, ok bool, err error) {
	whole := span{0, size}
	spec, found := strings.CutPrefix(header, "bytes=")
	if !found || size == 0 {
		return whole, false, nil
	}
	first, last, found := strings.Cut(textproto.TrimString(spec), "-")
	if !found {
		return whole, false, nil
	}
	if first == "" {
		n, valid := number(last)
		switch {
		case !valid:
			return whole, false, nil
		case n == 0:
			return whole, false, errUnsatisfiable
		}
		n = min(n, size)
		return span{size - n, n}, true, nil
	}
	off, valid := number(first)
	if !valid {
		return whole, false, nil
	}
	end := size - 1
	if last != "" {
		if end, valid = number(last); !valid || end < off {
			return whole, false, nil
		}
		end = min(end, size-1)
	}
	if off >= size {
		return whole, false, errUnsatisfiable
	}
	return span{off, end - off + 1}, true, nil
}

// wantsPart reports whether a Range header asks for less than the rest of the blob. A download that goes on where it broke off asks
// for all that follows ("bytes=N-"), and its end has to wait for the digest as the end of the whole does.
func wantsPart(header string) bool {
	return header != "" && !strings.HasSuffix(strings.TrimSpace(header), "-")
}

// number reads 1*DIGIT. Numbers too large for an int64 are all the same here.
func number(s string) (int64, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, _ := strconv.ParseInt(s, 10, 64) // saturates
	return n, true
}

// rangeHeader is the Range header that counts: there is none on HEAD, for which ranges are not defined, and none where
// If-Range names other content.
func rangeHeader(r *http.Request, etag string) string {
	if r.Method != http.MethodGet {
		return ""
	}
	if cond := r.Header.Get("If-Range"); cond != "" && cond != etag {
		return ""
	}
	return r.Header.Get("Range")
}

// unchanged tells whether If-None-Match names the content.
func unchanged(r *http.Request, etag string) bool {
	for _, line := range r.Header.Values("If-None-Match") {
		for tag := range strings.SplitSeq(line, ",") {
			tag = strings.TrimPrefix(textproto.TrimString(tag), "W/")
			if tag == etag || tag == "*" {
				return true
			}
		}
	}
	return false
}
