package policy

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Size is an amount of disk: a number of bytes, or a share of the disk that holds the store. At most one of the fields
// is set. The zero Size is "not set".
type Size struct {
	Bytes int64
	// Share is in (0, 1].
	Share float64
}

// units hold the suffixes of Kubernetes quantities; binary ones also with the B that many people write.
var units = map[string]float64{
	"": 1, "B": 1,
	"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
	"kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15,
	"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50,
	"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "PiB": 1 << 50,
}

// NoSize is the error about a text that is neither a size nor a share. It offers no share, which only sizes of the
// store may be.
type NoSize string

func (e NoSize) Error() string { return string(e) }

// ParseSize reads "20GiB", "20Gi", "20GB", "1.5G", a plain number of bytes, or "80%".
func ParseSize(text string) (Size, error) {
	s := strings.TrimSpace(text)
	end := strings.LastIndexAny(s, "0123456789.") + 1
	number, err := strconv.ParseFloat(s[:end], 64)
	if err != nil || math.IsInf(number, 0) || math.IsNaN(number) || number < 0 {
		return Size{}, NoSize(fmt.Sprintf("size %q: want a number with a unit, such as 20GiB or 500MB", text))
	}
	unit := strings.TrimSpace(s[end:])
	if unit == "%" {
		if number > 100 {
			return Size{}, fmt.Errorf("size %q: more than the whole disk; want at most 100%%", text)
		}
		return Size{Share: number / 100}, nil
	}
	factor, ok := units[unit]
	if !ok {
		return Size{}, NoSize(fmt.Sprintf("size %q: unit %q is unknown; want one of bytes, such as MB, MiB, M or Mi",
			text, unit))
	}
	bytes := number * factor
	if bytes >= math.MaxInt64 {
		return Size{}, fmt.Errorf("size %q: more than %d bytes", text, int64(math.MaxInt64))
	}
	return Size{Bytes: int64(bytes)}, nil
}

// Of is the size in bytes on a disk of total bytes.
func (s Size) Of(total int64) int64 {
	if s.Share > 0 {
		return int64(s.Share * float64(total))
	}
	return s.Bytes
}

// String is the shortest exact form that ParseSize reads back.
func (s Size) String() string {
	if s.Share > 0 {
		return strconv.FormatFloat(s.Share*100, 'g', 12, 64) + "%"
	}
	for _, u := range []struct {
		name string
		n    int64
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if s.Bytes >= u.n && s.Bytes%u.n == 0 {
			return strconv.FormatInt(s.Bytes/u.n, 10) + u.name
		}
	}
	return strconv.FormatInt(s.Bytes, 10)
}

// MarshalText is String.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

func (s Size) check() error {
	switch {
	case s.Bytes < 0:
		return fmt.Errorf("%d bytes is negative", s.Bytes)
	case s.Bytes > 0 && s.Share != 0:
		return fmt.Errorf("both %d bytes and a share of %v; want one of them", s.Bytes, s.Share)
	case !(s.Share >= 0 && s.Share <= 1): // also NaN
		return fmt.Errorf("a share of %v; want 0 to 1", s.Share)
	}
	return nil
}
