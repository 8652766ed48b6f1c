// Package policy holds the effective policy of one node: what the agent may do for which repository, how much bandwidth
// and disk it may use. It is a plain value. It is compiled elsewhere, from the configuration file or from CachePolicy
// resources, and read by whoever acts on it; Live passes a changed policy to running components.
package policy

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/shoal-cache/shoal/api/registries"
	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/node/internal/content"
)

// Mode says from where the content of a repository may come.
type Mode string

const (
	// PullThrough takes content from the node, from peers, and from the registry, and caches it.
	PullThrough Mode = "PullThrough"
	// PeersOnly takes content from the node and from peers; what none of them holds is not found, and the runtime goes
	// to the registry itself. What the runtime holds is still shared.
	PeersOnly Mode = "PeersOnly"
	// Bypass answers not found to everything, as if the node had no cache: the runtime goes to the registry itself.
	Bypass Mode = "Bypass"
)

// AuthorizationMode says who may read the cached content of a repository.
type AuthorizationMode string

const (
	// Required serves cached content only to callers whose credentials (or lack of them) the registry accepts.
	Required AuthorizationMode = "Required"
	// Exempt serves cached content to every caller of the registry front, without asking the registry.
	Exempt AuthorizationMode = "Exempt"
)

// OfflineMode says what holds for Required authorization while the registry cannot be reached.
type OfflineMode string

const (
	// AllowKnown serves callers whose credentials the registry has accepted for the repository before, however long ago.
	AllowKnown OfflineMode = "AllowKnown"
	// Deny serves nobody once an earlier acceptance has reached its AuthorizationTTL.
	Deny OfflineMode = "Deny"
)

// Eviction names the algorithm that chooses which blobs leave the store first.
type Eviction string

const (
	// LRU evicts the blob that was used least recently.
	LRU Eviction = "LRU"
	// SLRU, the segmented LRU, evicts blobs that were used only once before those that were used again, so that one pass
	// over many blobs does not flush the ones in use (Karedla, Love and Wherry, Caching Strategies to Improve Disk System
	// Performance, 1994).
	SLRU Eviction = "SLRU"
)

// Rule says how content of the repositories it matches is treated. Every field holds: a rule inherits nothing, for its
// compiler has filled in the defaults.
type Rule struct {
	// Match holds patterns of host/path, any of which may match; see Match. Empty: every repository.
	Match []string `json:"match,omitempty" yaml:"match,omitempty"`

	Mode Mode `json:"mode" yaml:"mode"`
	// TagTTL is how long the answer for a tag is used before the registry is asked again. 0: ask every time.
	TagTTL time.Duration `json:"tagTTL" yaml:"tagTTL"`
	// Authorization, AuthorizationTTL and Offline guard cached content. AuthorizationTTL is how long the registry's
	// acceptance of a caller's credentials is remembered. 0: ask every time.
	Authorization    AuthorizationMode `json:"authorization" yaml:"authorization"`
	AuthorizationTTL time.Duration     `json:"authorizationTTL" yaml:"authorizationTTL"`
	Offline          OfflineMode       `json:"offline" yaml:"offline"`
	// RequestsPerSecond bounds this node's requests to the registry under this rule. 0: no limit.
	RequestsPerSecond float64 `json:"requestsPerSecond" yaml:"requestsPerSecond"`
	// BytesPerSecond bounds how fast this node reads from the registry under this rule. The zero Size: no limit.
	BytesPerSecond Size `json:"bytesPerSecond,omitzero" yaml:"bytesPerSecond"`
}

// DefaultRule is the rule of a node that nobody gave another one.
func DefaultRule() Rule {
	return Rule{
		Mode:             PullThrough,
		TagTTL:           time.Minute,
		Authorization:    Required,
		AuthorizationTTL: 5 * time.Minute,
		Offline:          AllowKnown,
	}
}

// Matches tells whether the rule is about repo. Docker Hub is docker.io, whichever of its names repo has.
func (r Rule) Matches(repo content.Repository) bool {
	name := registries.Canonical(repo.Registry) + "/" + repo.Name
	return len(r.Match) == 0 || slices.ContainsFunc(r.Match, func(pattern string) bool { return Match(pattern, name) })
}

// Bandwidth bounds the traffic between agents, in bytes per second. 0: no limit.
type Bandwidth struct {
	Up   int64 `json:"up"`
	Down int64 `json:"down"`
}

// Store bounds what the node's store may use. Every field holds: its compiler has filled in what no policy sets.
type Store struct {
	// Capacity is how much the blobs may use, in bytes or as a share of the disk.
	Capacity Size `json:"capacity,omitzero"`
	// HighWatermark and LowWatermark are shares of the capacity, in (0, 1]: eviction starts above the high one and ends
	// below the low one. Both or none are set.
	HighWatermark float64 `json:"highWatermark,omitempty"`
	LowWatermark  float64 `json:"lowWatermark,omitempty"`
	// MinFree is how much of the disk stays free whatever the capacity says.
	MinFree  Size     `json:"minFree,omitzero"`
	Eviction Eviction `json:"eviction,omitempty"`
}

// Limits are a Store's on one disk: what is a share there is in bytes here.
type Limits struct {
	Capacity  int64
	High, Low float64
	MinFree   int64
	Eviction  string
}

// On is what s comes to on a disk of so many bytes.
func (s Store) On(disk int64) Limits {
	return Limits{
		Capacity: s.Capacity.Of(disk), High: s.HighWatermark, Low: s.LowWatermark, MinFree: s.MinFree.Of(disk),
		Eviction: string(s.Eviction),
	}
}

// Policy is the effective policy of one node. It is not changed once it is shared. Its JSON form, with times in
// nanoseconds, is what the agent remembers on disk and shows on its admin address.
type Policy struct {
	// Rules are tried in order; the first that matches a repository holds for it.
	Rules []Rule `json:"rules,omitempty"`
	// Default holds where no rule matches. Its Match has no meaning.
	Default   Rule      `json:"defaults"`
	Bandwidth Bandwidth `json:"bandwidth"`
	Store     Store     `json:"store"`
}

// Default is the policy of a node that nobody gave another one.
func Default() *Policy { return &Policy{Default: DefaultRule()} }

// For is the rule that holds for repo.
func (p *Policy) For(repo content.Repository) Rule {
	for _, r := range p.Rules {
		if r.Matches(repo) {
			return r
		}
	}
	return p.Default
}

// Validate returns every problem of the policy joined, each naming the field, its value and what is allowed; nil where
// there is none. A pattern that matches nothing is no problem if it is well-formed: the API server once took such patterns, and
// they are no reason to do without the rest of the policy.
func (p *Policy) Validate() error { return p.validate(checkPattern) }

// ValidateWritten is Validate for a policy that is written for this agent: a pattern that matches nothing is a mistake in it.
func (p *Policy) ValidateWritten() error { return p.validate(v1alpha1.CheckPattern) }

func (p *Policy) validate(checkPattern func(string) error) error {
	var problems []error
	for i, r := range p.Rules {
		problems = append(problems, r.validate(fmt.Sprintf("rules[%d]", i), checkPattern)...)
	}
	problems = append(problems, p.Default.validate("defaults", checkPattern)...)
	if p.Bandwidth.Up < 0 {
		problems = append(problems, fmt.Errorf("bandwidth.up: %d is negative; use 0 for no limit", p.Bandwidth.Up))
	}
	if p.Bandwidth.Down < 0 {
		problems = append(problems, fmt.Errorf("bandwidth.down: %d is negative; use 0 for no limit", p.Bandwidth.Down))
	}
	return errors.Join(append(problems, p.Store.validate()...)...)
}

func (r Rule) validate(at string, checkPattern func(string) error) []error {
	var problems []error
	bad := func(field, format string, args ...any) {
		problems = append(problems, fmt.Errorf("%s.%s: %s", at, field, fmt.Sprintf(format, args...)))
	}
	for i, pattern := range r.Match {
		if err := checkPattern(pattern); err != nil {
			bad(fmt.Sprintf("match[%d]", i), "%v", err)
		}
	}
	switch r.Mode {
	case PullThrough, PeersOnly, Bypass:
	default:
		bad("mode", "%q is none of %s, %s, %s", r.Mode, PullThrough, PeersOnly, Bypass)
	}
	switch r.Authorization {
	case Required, Exempt:
	default:
		bad("authorization", "%q is none of %s, %s", r.Authorization, Required, Exempt)
	}
	switch r.Offline {
	case AllowKnown, Deny:
	default:
		bad("offline", "%q is none of %s, %s", r.Offline, AllowKnown, Deny)
	}
	if r.TagTTL < 0 {
		bad("tagTTL", "%s is negative; use 0 to ask the registry every time", r.TagTTL)
	}
	if r.AuthorizationTTL < 0 {
		bad("authorizationTTL", "%s is negative; use 0 to ask the registry every time", r.AuthorizationTTL)
	}
	if !(r.RequestsPerSecond >= 0) { // also NaN
		bad("requestsPerSecond", "%v is no rate; use 0 for no limit", r.RequestsPerSecond)
	}
	if b := r.BytesPerSecond; b.Bytes < 0 || b.Share != 0 {
		bad("bytesPerSecond", "%s is no size per second, such as 20MB; use 0 for no limit", b)
	}
	return problems
}

func (s Store) validate() []error {
	var problems []error
	switch {
	case s.HighWatermark == 0 && s.LowWatermark == 0:
	case !(s.LowWatermark > 0 && s.LowWatermark < s.HighWatermark && s.HighWatermark <= 1):
		problems = append(problems, fmt.Errorf(
			"store.lowWatermark, store.highWatermark: %v and %v; want 0 < low < high <= 1, or neither", s.LowWatermark, s.HighWatermark))
	}
	switch s.Eviction {
	case "", LRU, SLRU:
	default:
		problems = append(problems, fmt.Errorf("store.eviction: %q is none of %s, %s", s.Eviction, LRU, SLRU))
	}
	if err := s.Capacity.check(); err != nil {
		problems = append(problems, fmt.Errorf("store.capacity: %w", err))
	}
	if err := s.MinFree.check(); err != nil {
		problems = append(problems, fmt.Errorf("store.minFree: %w", err))
	}
	return problems
}
