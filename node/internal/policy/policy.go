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

// The words of a policy are those of CachePolicy, in the agent's file as in the API.
type (
	// Mode says from where the content of a repository may come.
	Mode = v1alpha1.RepositoryMode
	// AuthorizationMode says who may read the cached content of a repository.
	AuthorizationMode = v1alpha1.AuthorizationMode
	// UnreachableMode says who may read it while the registry cannot be asked.
	UnreachableMode = v1alpha1.UnreachableMode
	// Eviction names the algorithm that chooses which blobs leave the store first.
	Eviction = v1alpha1.EvictionAlgorithm
)

const (
	// PullThrough takes content from the node, from peers, and from the registry, and caches it.
	PullThrough = v1alpha1.ModePullThrough
	// PeersOnly takes content from the node and from peers. What none of them holds is not found, and the runtime goes
	// to the registry itself. What the runtime holds is still shared.
	PeersOnly = v1alpha1.ModePeersOnly
	// Bypass answers not found to everything, as if the node had no cache: the runtime goes to the registry itself.
	Bypass = v1alpha1.ModeBypass

	// Registry serves cached content only to callers whose credentials (or lack of them) the registry accepts.
	Registry = v1alpha1.AuthorizeRegistry
	// Exempt serves cached content to every caller of the registry front, without asking the registry.
	Exempt = v1alpha1.AuthorizeExempt

	// Remembered serves callers whose credentials the registry has accepted for the repository before, however long
	// ago.
	Remembered = v1alpha1.UnreachableRemembered
	// Deny serves nobody once an earlier acceptance is older than Authorization.TTL.
	Deny = v1alpha1.UnreachableDeny

	// LRU evicts the blob that was used least recently.
	LRU = v1alpha1.EvictLRU
	// SLRU, the segmented LRU, evicts blobs that were used only once before those that were used again.
	SLRU = v1alpha1.EvictSLRU
)

// Rule says how content of the repositories it matches is treated. Every field holds: a rule inherits nothing, for its
// compiler has filled in the defaults.
type Rule struct {
	// Match holds patterns of host/path, any of which may match; see Match. Empty: every repository.
	Match []string `json:"match,omitempty" yaml:"match,omitempty"`

	Mode Mode `json:"mode" yaml:"mode"`
	// TagTTL is how long the answer for a tag is used before the registry is asked again. 0: ask every time.
	TagTTL time.Duration `json:"tagTTL" yaml:"tagTTL"`
	// Authorization says who may read what is cached.
	Authorization Authorization `json:"authorization" yaml:"authorization"`
	// RateLimit bounds what this node asks of the registry under this rule.
	RateLimit RateLimit `json:"rateLimit,omitzero" yaml:"rateLimit"`
}

// Authorization guards cached content.
type Authorization struct {
	Mode AuthorizationMode `json:"mode" yaml:"mode"`
	// TTL is how long the registry's acceptance of a caller's credentials is remembered. 0: ask every time.
	TTL           time.Duration   `json:"ttl" yaml:"ttl"`
	OnUnreachable UnreachableMode `json:"onUnreachable" yaml:"onUnreachable"`
}

// RateLimit bounds what is asked of a registry. 0 and the zero Size: no limit.
type RateLimit struct {
	RequestsPerSecond float64 `json:"requestsPerSecond,omitempty" yaml:"requestsPerSecond"`
	BytesPerSecond    Size    `json:"bytesPerSecond,omitzero" yaml:"bytesPerSecond"`
	// Connections is how many requests may be under way at each registry that the rule matches, at one time.
	Connections int `json:"connections,omitempty" yaml:"connections"`
}

// mostConnections is the largest RateLimit.Connections.
const mostConnections = 1000

// DefaultRule is the rule of a node that nobody gave another one.
func DefaultRule() Rule {
	return Rule{
		Mode:          PullThrough,
		TagTTL:        time.Minute,
		Authorization: Authorization{Mode: Registry, TTL: 5 * time.Minute, OnUnreachable: Remembered},
	}
}

// Matches reports whether the rule is about repo. Docker Hub is docker.io, whichever of its names repo has.
func (r Rule) Matches(repo content.Repository) bool {
	name := registries.Canonical(repo.Registry) + "/" + repo.Name
	return len(r.Match) == 0 || slices.ContainsFunc(r.Match, func(pattern string) bool { return Match(pattern, name) })
}

// Bandwidth bounds the traffic between agents, in bytes per second. The zero Size: no limit.
type Bandwidth struct {
	Upload   Size `json:"upload,omitzero" yaml:"upload"`
	Download Size `json:"download,omitzero" yaml:"download"`
}

// Percent is a share of something, in hundredths.
type Percent float64

// Share is the share of 1.
func (p Percent) Share() float64 { return float64(p) / 100 }

// Store bounds what the node's store may use. Every field holds: its compiler has filled in what no policy sets.
type Store struct {
	// Capacity is how much the blobs may use, in bytes or as a share of the disk.
	Capacity Size `json:"capacity,omitzero" yaml:"capacity"`
	// ModelCapacity is how much the files of model hubs may use beside that. The zero Size: they share Capacity.
	ModelCapacity Size `json:"modelCapacity,omitzero" yaml:"modelCapacity"`
	// Eviction starts above HighWatermarkPercent of the capacity, and ends below LowWatermarkPercent. Both or none are
	// set.
	HighWatermarkPercent Percent `json:"highWatermarkPercent,omitempty" yaml:"highWatermarkPercent"`
	LowWatermarkPercent  Percent `json:"lowWatermarkPercent,omitempty" yaml:"lowWatermarkPercent"`
	// MinFree is how much of the disk stays free whatever the capacity says.
	MinFree  Size     `json:"minFree,omitzero" yaml:"minFree"`
	Eviction Eviction `json:"eviction,omitempty" yaml:"eviction"`
}

// Limits are a Store's on one disk: what is a share there is in bytes here.
type Limits struct {
	Capacity, ModelCapacity int64
	High, Low               float64
	MinFree                 int64
	Eviction                string
}

// On is what s comes to on a disk of so many bytes.
func (s Store) On(disk int64) Limits {
	return Limits{
		Capacity: s.Capacity.Of(disk), ModelCapacity: s.ModelCapacity.Of(disk),
		High: s.HighWatermarkPercent.Share(), Low: s.LowWatermarkPercent.Share(),
		MinFree: s.MinFree.Of(disk), Eviction: string(s.Eviction),
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
// there is none. A pattern that matches nothing is no problem if it is well-formed: the API server once took such
// patterns, and they are no reason to do without the rest of the policy.
func (p *Policy) Validate() error { return p.validate(checkPattern) }

// ValidateWritten is Validate for a policy that is written for this agent: a pattern that matches nothing is a mistake
// in it.
func (p *Policy) ValidateWritten() error { return p.validate(v1alpha1.CheckPattern) }

func (p *Policy) validate(checkPattern func(string) error) error {
	var problems []error
	for i, r := range p.Rules {
		problems = append(problems, r.validate(fmt.Sprintf("rules[%d]", i), checkPattern)...)
	}
	problems = append(problems, p.Default.validate("defaults", checkPattern)...)
	problems = append(problems, checkSpeed("bandwidth.upload", p.Bandwidth.Upload),
		checkSpeed("bandwidth.download", p.Bandwidth.Download))
	return errors.Join(append(problems, p.Store.validate()...)...)
}

// checkSpeed refuses what is no number of bytes per second.
func checkSpeed(field string, s Size) error {
	if s.Bytes < 0 || s.Share != 0 {
		return fmt.Errorf("%s: %s is no size per second, such as 20MB; use 0 for no limit", field, s)
	}
	return nil
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
	auth := r.Authorization
	switch auth.Mode {
	case Registry, Exempt:
	default:
		bad("authorization.mode", "%q is none of %s, %s", auth.Mode, Registry, Exempt)
	}
	switch auth.OnUnreachable {
	case Remembered, Deny:
	default:
		bad("authorization.onUnreachable", "%q is none of %s, %s", auth.OnUnreachable, Remembered, Deny)
	}
	if r.TagTTL < 0 {
		bad("tagTTL", "%s is negative; use 0 to ask the registry every time", r.TagTTL)
	}
	if auth.TTL < 0 {
		bad("authorization.ttl", "%s is negative; use 0 to ask the registry every time", auth.TTL)
	}
	if !(r.RateLimit.RequestsPerSecond >= 0) { // also NaN
		bad("rateLimit.requestsPerSecond", "%v is no rate; use 0 for no limit", r.RateLimit.RequestsPerSecond)
	}
	if n := r.RateLimit.Connections; n < 0 || n > mostConnections {
		bad("rateLimit.connections", "%d is no number of connections from 1 to %d; "+
			"use 0 for the default, which bounds only parts of blobs, at 8", n, mostConnections)
	}
	return append(problems, checkSpeed(at+".rateLimit.bytesPerSecond", r.RateLimit.BytesPerSecond))
}

func (s Store) validate() []error {
	var problems []error
	switch low, high := s.LowWatermarkPercent, s.HighWatermarkPercent; {
	case high == 0 && low == 0:
	case !(low > 0 && low < high && high <= 100):
		problems = append(problems, fmt.Errorf("store.lowWatermarkPercent, store.highWatermarkPercent: %v and %v; "+
			"want 0 < low < high <= 100, or neither", low, high))
	}
	switch s.Eviction {
	case "", LRU, SLRU:
	default:
		problems = append(problems, fmt.Errorf("store.eviction: %q is none of %s, %s", s.Eviction, LRU, SLRU))
	}
	if err := s.Capacity.check(); err != nil {
		problems = append(problems, fmt.Errorf("store.capacity: %w", err))
	}
	if err := s.ModelCapacity.check(); err != nil {
		problems = append(problems, fmt.Errorf("store.modelCapacity: %w", err))
	}
	if err := s.MinFree.check(); err != nil {
		problems = append(problems, fmt.Errorf("store.minFree: %w", err))
	}
	return problems
}
