package registries

import (
	"cmp"
	"errors"
	"fmt"
)

// Routes hold what a caller makes of each Upstream, and find it by the registry's name.
type Routes[R any] struct {
	byName map[string]R
	every  R
}

// NewRoutes calls build for each registry that upstreams name, by its canonical name, and once for all others, with
// the name "". It fails where a registry is listed twice or build fails; the error names the registry.
func NewRoutes[R any](upstreams []Upstream, build func(name string, u Upstream) (R, error)) (Routes[R], error) {
	r := Routes[R]{byName: make(map[string]R)}
	every := false
	for _, u := range upstreams {
		name := Canonical(u.Registry)
		_, again := r.byName[name]
		if u.Every() {
			name, again, every = "", every, true
		}
		err := errors.New("listed twice")
		var route R
		if !again {
			route, err = build(name, u)
		}
		if err != nil {
			return r, fmt.Errorf("upstream %q: %w", cmp.Or(u.Registry, "*"), err)
		}
		if name == "" {
			r.every = route
			continue
		}
		r.byName[name] = route
	}
	if every {
		return r, nil
	}
	var err error
	r.every, err = build("", Upstream{})
	return r, err
}

// Of is the route to a registry, and whether an Upstream names it. Otherwise it is the route to all others.
func (r Routes[R]) Of(name string) (route R, listed bool) {
	if route, listed = r.byName[Canonical(name)]; listed {
		return route, true
	}
	return r.every, false
}
