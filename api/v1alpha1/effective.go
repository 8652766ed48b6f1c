package v1alpha1

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/shoal-cache/shoal/api/message"
)

// EffectivePolicy is what all policies that match one node come to. What no policy sets is nil, and left to the
// agent's defaults.
//
// A new field of a policy goes to four places: its section or RepositoryRule here, with its validation; the node's
// policy.Store, Bandwidth or Rule, which checks it and is read by whoever acts on it; the agent's compile functions,
// which make the second of the first; and the options of the agent's configuration, which have the default. The merge
// below finds it by itself.
type EffectivePolicy struct {
	Storage   StoragePolicy
	Bandwidth BandwidthPolicy
	// Rules of all policies in order of precedence; the first that matches a repository decides.
	Rules []RepositoryRule
	// Policies that took part, in order of precedence.
	Policies []string
	// Revision is the same for two effective policies exactly when they are the same but for Policies: 16
	// hexadecimal digits.
	Revision string
}

// Conflict tells that two policies of equal priority set one field differently. Winner's value is in force.
type Conflict struct {
	Field, Winner, Loser string
}

// Effective merges the policies that match a node's labels.
//
// The rule: policies are ordered by priority, highest first, those of equal priority by name. Field by field the first
// policy that sets it decides, but for the pairs that mean one thing (capacity and capacityPercent, minFree and
// minFreePercent, the two watermarks), which are taken together from the first policy that sets either. Rules are put
// one behind the other in the same order. A policy whose selector is malformed matches nothing.
//
// Conflicts are fields on which two policies of equal priority disagree while no policy of higher priority decides,
// and rules of the same pattern with different content.
//
// The result depends on nothing but its arguments, and not on their order, so every agent and the operator come to
// the same.
func Effective(policies []CachePolicy, nodeLabels map[string]string) (EffectivePolicy, []Conflict) {
	var matching []*CachePolicy
	for i := range policies {
		if ok, err := Selects(policies[i].Spec.NodeSelector, nodeLabels); err == nil && ok {
			matching = append(matching, &policies[i])
		}
	}
	slices.SortFunc(matching, func(a, b *CachePolicy) int {
		return cmp.Or(cmp.Compare(b.Spec.Priority, a.Spec.Priority), cmp.Compare(a.Name, b.Name))
	})

	var e EffectivePolicy
	var conflicts []Conflict
	for _, f := range mergedFields {
		var winner *CachePolicy
		for _, p := range matching {
			switch {
			case !f.isSet(&p.Spec):
			case winner == nil:
				winner = p
				f.take(&e, &p.Spec)
			case p.Spec.Priority == winner.Spec.Priority && !f.equal(&p.Spec, &winner.Spec):
				conflicts = append(conflicts, Conflict{Field: f.path, Winner: winner.Name, Loser: p.Name})
			}
		}
	}
	for i, p := range matching {
		e.Policies = append(e.Policies, p.Name)
		e.Rules = append(e.Rules, p.Spec.Rules...)
		conflicts = append(conflicts, ruleConflicts(p, matching[i+1:])...)
	}
	e.Revision = e.revision()
	return e, conflicts
}

// mergedField is a field of a section of a policy, or fields that mean one thing together, that one policy decides.
type mergedField struct {
	path    string // of the first
	section func(*CachePolicySpec) reflect.Value
	into    func(*EffectivePolicy) reflect.Value
	fields  []int // of the section
}

// mergedFields are those of the sections of a policy: each field alone, a size with its percentage, and the watermarks.
var mergedFields = append(
	fieldsOf("storage", func(s *CachePolicySpec) *StoragePolicy { return s.Storage },
		func(e *EffectivePolicy) *StoragePolicy { return &e.Storage }),
	fieldsOf("bandwidth", func(s *CachePolicySpec) *BandwidthPolicy { return s.Bandwidth },
		func(e *EffectivePolicy) *BandwidthPolicy { return &e.Bandwidth })...)

func fieldsOf[Section any](
	name string, section func(*CachePolicySpec) *Section, into func(*EffectivePolicy) *Section,
) (all []mergedField) {
	place := map[string]int{} // in all, by what the fields mean
	for f := range reflect.TypeFor[Section]().Fields() {
		meaning := strings.TrimSuffix(f.Name, "Percent")
		if meaning == "LowWatermark" {
			meaning = "HighWatermark"
		}
		i, more := place[meaning]
		if !more {
			i, place[meaning] = len(all), len(all)
			field, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			all = append(all, mergedField{
				path:    name + "." + field,
				section: func(s *CachePolicySpec) reflect.Value { return reflect.ValueOf(section(s)) },
				into:    func(e *EffectivePolicy) reflect.Value { return reflect.ValueOf(into(e)).Elem() },
			})
		}
		all[i].fields = append(all[i].fields, f.Index[0])
	}
	return all
}

// values are those of the fields in a policy, nil where it has no such section.
func (f mergedField) values(s *CachePolicySpec) (all []any) {
	section := f.section(s)
	if section.IsNil() {
		return nil
	}
	for _, i := range f.fields {
		all = append(all, section.Elem().Field(i).Interface())
	}
	return all
}

func (f mergedField) isSet(s *CachePolicySpec) bool {
	return slices.ContainsFunc(f.values(s), func(v any) bool { return !reflect.ValueOf(v).IsNil() })
}

func (f mergedField) equal(a, b *CachePolicySpec) bool {
	return equality.Semantic.DeepEqual(f.values(a), f.values(b))
}

func (f mergedField) take(e *EffectivePolicy, s *CachePolicySpec) {
	section := f.section(s).Elem()
	for _, i := range f.fields {
		f.into(e).Field(i).Set(section.Field(i))
	}
}

// ruleConflicts finds rules of p that a policy behind it of the same priority repeats with other content.
func ruleConflicts(p *CachePolicy, behind []*CachePolicy) []Conflict {
	var conflicts []Conflict
	for _, q := range behind {
		if q.Spec.Priority != p.Spec.Priority {
			break
		}
		for _, a := range p.Spec.Rules {
			for _, b := range q.Spec.Rules {
				for _, pattern := range a.Match {
					if !slices.Contains(b.Match, pattern) {
						continue
					}
					x, y := a, b
					x.Match, y.Match = nil, nil
					if !equality.Semantic.DeepEqual(x, y) {
						conflicts = append(conflicts,
							Conflict{Field: fmt.Sprintf("rules[%s]", pattern), Winner: p.Name, Loser: q.Name})
					}
				}
			}
		}
	}
	return conflicts
}

func (e *EffectivePolicy) revision() string {
	b, err := json.Marshal(struct {
		S StoragePolicy
		B BandwidthPolicy
		R []RepositoryRule
	}{e.Storage, e.Bandwidth, e.Rules})
	if err != nil {
		panic(err) // every field is made of strings, numbers and their pointers
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// The rules of RepositoryRule.Match in Go. TestCheckPattern and TestTheAPIServerTakesTheSamePatterns hold the two to
// each other.
var (
	patternForm   = regexp.MustCompile(`^([[][a-fA-F0-9:]+[]]|[a-zA-Z0-9*._-]+)(:[0-9*]+)?(/[a-zA-Z0-9*._-]+)*$`)
	namesRegistry = regexp.MustCompile(`[.:*]|^localhost$`)
	misnamesHub   = regexp.MustCompile(`^(docker[.]io/([*]?[^/*]+)*[*]?$|(index|registry-1)[.]docker[.]io(/|$))`)
)

// CheckPattern refuses the patterns that the API server refuses in RepositoryRule.Match, for policy that comes from
// elsewhere: what is no pattern, and what can match no repository. The error names the pattern and says what to write
// instead.
func CheckPattern(pattern string) error {
	host, path, hasPath := strings.Cut(pattern, "/")
	switch {
	case !patternForm.MatchString(pattern) || strings.Contains(pattern, "***"):
		return fmt.Errorf("%q is no pattern of host/path such as registry.example/team-*/** or [::1]:5000/**: "+
			`write letters, digits, ".", "_", "-" and "*" in each part, with no scheme, tag or digest`, pattern)
	case !namesRegistry.MatchString(host):
		return fmt.Errorf("%q names no registry, so it matches nothing: "+
			"write it with the registry in front, such as %s", pattern, onDockerHub(pattern))
	case misnamesHub.MatchString(strings.ToLower(pattern)):
		return fmt.Errorf("%q matches nothing, because Docker Hub is known as docker.io and its images by two parts: "+
			"write %s", pattern, onDockerHub(path))
	case !hasPath && !strings.Contains(pattern, "**"):
		return fmt.Errorf("%q has no path, so it matches nothing: write %s/** for everything there", pattern, pattern)
	}
	return nil
}

// onDockerHub is what somebody means who leaves out, or misspells, that a pattern is of Docker Hub.
func onDockerHub(path string) string {
	switch {
	case path == "":
		path = "**"
	case !strings.Contains(path, "/") && !strings.Contains(path, "**"):
		path = "library/" + path
	}
	return "docker.io/" + path
}

// Selects reports whether a label selector matches; nil and the empty selector match everything. It fails for a
// malformed selector.
func Selects(s *metav1.LabelSelector, set map[string]string) (bool, error) {
	selector, err := Selector(s)
	return err == nil && selector.Matches(labels.Set(set)), err
}

// Selector reads a label selector; nil and the empty selector match everything. It fails for a malformed one, in words
// for who wrote it.
func Selector(s *metav1.LabelSelector) (labels.Selector, error) {
	if s == nil {
		return labels.Everything(), nil
	}
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return nil, errors.New(message.Plain(err.Error()))
	}
	return selector, nil
}
