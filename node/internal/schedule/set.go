package schedule

import "math/bits"

// set is a set of chunks. It costs what is in it and not what the blob's size makes possible, because that is a peer's
// word. A page is there once a chunk of it is, and all pages that are full are one.
type set struct {
	pages []*page // nil where empty
	size  int
}

const (
	pageWords = 16
	pageBits  = pageWords * 64
)

type page [pageWords]uint64

var fullPage = func() *page {
	var p page
	for w := range p {
		p[w] = ^uint64(0)
	}
	return &p
}()

func (s *set) has(i int) bool { return s.word(i/64)>>(i%64)&1 != 0 }

// word is the w-th word of the set's bits.
func (s *set) word(w int) uint64 {
	if k := w / pageWords; k < len(s.pages) && s.pages[k] != nil {
		return s.pages[k][w%pageWords]
	}
	return 0
}

// reach makes room for n pages.
func (s *set) reach(n int) {
	if more := n - len(s.pages); more > 0 {
		s.pages = append(s.pages, make([]*page, more)...)
	}
}

// page is the k-th page, to be written to.
func (s *set) page(k int) *page {
	s.reach(k + 1)
	switch s.pages[k] {
	case nil:
		s.pages[k] = &page{}
	case fullPage:
		p := *fullPage
		s.pages[k] = &p
	}
	return s.pages[k]
}

func (s *set) add(i int) {
	if !s.has(i) {
		s.page(i / pageBits)[i/64%pageWords] |= 1 << (i % 64)
		s.size++
	}
}

func (s *set) remove(i int) {
	if s.has(i) {
		s.page(i / pageBits)[i/64%pageWords] &^= 1 << (i % 64)
		s.size--
	}
}

func (s *set) addRun(r Run) {
	s.reach((r.End() + pageBits - 1) / pageBits)
	for i := r.First; i < r.End(); {
		k := i / pageBits
		if i%pageBits != 0 || r.End()-i < pageBits {
			s.add(i)
			i++
			continue
		}
		before := 0
		for w := range pageWords {
			before += bits.OnesCount64(s.word(k*pageWords + w))
		}
		if before < pageBits {
			s.pages[k] = fullPage
			s.size += pageBits - before
		}
		i += pageBits
	}
}

func (s *set) addAll(o *set) {
	for k, p := range o.pages {
		for w := range pageWords {
			if p == nil {
				break
			}
			for add := p[w] &^ s.word(k*pageWords+w); add != 0; add &= add - 1 {
				s.add(k*pageBits + w*64 + bits.TrailingZeros64(add))
			}
		}
	}
}

func (s *set) clone() set {
	c := set{pages: make([]*page, len(s.pages)), size: s.size}
	for k, p := range s.pages {
		if p != nil && p != fullPage {
			q := *p
			p = &q
		}
		c.pages[k] = p
	}
	return c
}

// first is the first chunk from i on that is in s and in every one of and, and in none of without.
func (s *set) first(i int, and, without []*set) (int, bool) {
	for w := i / 64; w < len(s.pages)*pageWords; w++ {
		if s.pages[w/pageWords] == nil {
			w |= pageWords - 1
			continue
		}
		word := s.word(w)
		if w == i/64 {
			word &= ^uint64(0) << (i % 64)
		}
		for k := 0; k < len(and) && word != 0; k++ {
			word &= and[k].word(w)
		}
		for k := 0; k < len(without) && word != 0; k++ {
			word &^= without[k].word(w)
		}
		if word != 0 {
			return w*64 + bits.TrailingZeros64(word), true
		}
	}
	return 0, false
}

// nextWithout is the first chunk from i on that is in s and in none of the others.
func (s *set) nextWithout(i int, others ...*set) (int, bool) { return s.first(i, nil, others) }

// nextIn is the first chunk from i on that is in s and in need, and in none of the others.
func (s *set) nextIn(i int, need *set, others ...*set) (int, bool) {
	return s.first(i, []*set{need}, others)
}
