// Package share divides places among namespaces, so that no few of them keep all others from having one.
package share

// Places are so many at one time. A namespace has no more of them than are free (Choudhury and Hahne, Dynamic Queue
// Length Thresholds, 1998): one alone has half, n have one of n+1 parts each, and one part stays for who comes next.
type Places struct {
	free int
	of   map[string]int
}

// New makes so many places.
func New(places int) *Places { return &Places{free: places, of: map[string]int{}} }

// Of is the number of places that a namespace has.
func (p *Places) Of(namespace string) int { return p.of[namespace] }

// Take takes a place for a namespace, and reports whether it may have one.
func (p *Places) Take(namespace string) bool {
	if p.of[namespace] >= p.free {
		return false
	}
	p.free--
	p.of[namespace]++
	return true
}

// Give gives one back.
func (p *Places) Give(namespace string) {
	p.free++
	if p.of[namespace]--; p.of[namespace] == 0 {
		delete(p.of, namespace)
	}
}
