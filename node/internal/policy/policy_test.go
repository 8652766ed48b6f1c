package policy_test

import (
	"math"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/policy"
)

func TestMatch(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		pattern, repository string
		want                bool
	}{
		"a plain pattern matches only itself":                   {"x.example/app", "x.example/app", true},
		"a plain pattern is no prefix":                          {"x.example/app", "x.example/apple", false},
		"a host alone matches no repository":                    {"x.example", "x.example/app", false},
		"case does not matter in hosts":                         {"X.Example:5000/app", "x.example:5000/app", true},
		"a star matches within a part":                          {"*.example/team-*", "a.b.example/team-1", true},
		"a star matches nothing too":                            {"x.example/app*", "x.example/app", true},
		"a star does not cross a slash":                         {"x.example/*", "x.example/a/b", false},
		"two stars cross slashes":                               {"x.example/**", "x.example/a/b", true},
		"two stars at the end match what stands before as well": {"x.example/a/**", "x.example/a", true},
		"two stars at the end respect the part before":          {"x.example/a/**", "x.example/ab", false},
		"patterns of host and path, together":                   {"*.example/team-*/**", "x.example/team-1/a/b", true},
		"patterns of host and path, another group": {"*.example/team-*/**", "x.example/group-1/a/b",
			false},
		"two stars in front of a longer name":         {"**/redis", "x.example/library/redis2", false},
		"a port":                                      {"x.example:5000/*", "x.example:5000/app", true},
		"two stars match everything":                  {"**", "x.example/a/b", true},
		"two stars in the middle":                     {"**/app", "x.example/a/b/app", true},
		"parts match in order":                        {"x/*a*b", "x/1a2b", true},
		"parts do not match out of order":             {"x/*a*b", "x/1b2a", false},
		"a star gives back what a later part needs":   {"x/*ab", "x/aab", true},
		"a dot is a dot":                              {"x.example/app", "xxexample/app", false},
		"two stars at the end end no host's name":     {"x.example/**", "x.example.org/app", false},
		"two stars give back what a later part needs": {"**/b/*", "x/b/b/c", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want, policy.Match(c.pattern, c.repository))
		})
	}
}

// The pattern language is that of CachePolicy, which defines it by a regular expression.
func TestMatchAgreesWithItsDefinition(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		pattern := rapid.StringMatching(`[ab/]{0,3}(\*{1,2}[ab/]{1,3}){0,3}\*{0,2}`).Draw(t, "pattern")
		s := rapid.StringMatching(`[ab/]{0,10}`).Draw(t, "repository")
		definition := regexp.QuoteMeta(pattern)
		if head, ok := strings.CutSuffix(definition, `/\*\*`); ok {
			definition = head + `(/\*\*)?`
		}
		definition = strings.ReplaceAll(definition, `\*\*`, `.*`)
		definition = strings.ReplaceAll(definition, `\*`, `[^/]*`)
		require.Equal(t, regexp.MustCompile("^(?:"+definition+")$").MatchString(s), policy.Match(pattern, s))
	})
}

func TestCovers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		pattern, other string
		want           bool
	}{
		"the same pattern":                    {"x.example/app", "x.example/app", true},
		"the same in other letters":           {"X.example/app", "x.example/APP", true},
		"two stars":                           {"**", "x.example/app", true},
		"a host":                              {"x.example/**", "x.example/team/*", true},
		"two stars respect the part before":   {"x.example/team/**", "x.example/teams/*", false},
		"what stands before the two stars":    {"x.example/team/**", "x.example/team", true},
		"hosts, by the same star":             {"*.example/**", "*.example/team/*", true},
		"the other way":                       {"x.example/team/*", "x.example/**", false},
		"what may match and may not":          {"x.example/*", "x.example/app", false},
		"another host":                        {"x.example/**", "y.example/**", false},
		"two stars twice, of which one is no": {"x/**/**", "x/**", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want, policy.Covers(c.pattern, c.other))
		})
	}
}

func TestCovers_IsNeverWrong(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		pattern := rapid.StringMatching(`([aA*]{1,2}/){0,2}(\*\*|[a*]{1,2})`).Draw(t, "pattern")
		rest := rapid.StringMatching(`(/[a*]{1,2}){0,2}`).Draw(t, "rest")
		other := strings.TrimSuffix(pattern, "/**") + rest
		s := rapid.StringMatching(`a{0,2}(/a{0,2}){0,3}`).Draw(t, "repository")
		if policy.Covers(pattern, other) && policy.Match(other, s) {
			require.True(t, policy.Match(pattern, s))
		}
	})
}

// A pattern that an attacker could name a repository after must not take exponential time.
func TestMatchTakesBoundedTime(t *testing.T) {
	t.Parallel()
	require.False(t, policy.Match(strings.Repeat("a**", 200)+"b", strings.Repeat("a", 2000)))
}

func TestFirstMatchingRuleWins(t *testing.T) {
	t.Parallel()
	p := policy.Default()
	rule := func(mode policy.Mode, match ...string) policy.Rule {
		r := policy.DefaultRule()
		r.Match, r.Mode = match, mode
		return r
	}
	p.Rules = []policy.Rule{
		rule(policy.Bypass, "other.example/x", "Registry.Example:5000/team/secret*/**"),
		rule(policy.PeersOnly, "registry.example:5000/**"),
		rule(policy.Bypass, "docker.io/**"),
	}
	require.NoError(t, p.Validate())
	for name, c := range map[string]struct {
		repo content.Repository
		want policy.Mode
	}{
		"the first of two that match": {content.Repository{Registry: "registry.example:5000",
			Name: "team/secrets/a"}, policy.Bypass},
		"the second where the first does not": {content.Repository{Registry: "registry.example:5000",
			Name: "team/open"}, policy.PeersOnly},
		"case of the host does not matter": {content.Repository{Registry: "REGISTRY.example:5000",
			Name: "team/open"}, policy.PeersOnly},
		"Docker Hub by each of its names": {content.Repository{Registry: "registry-1.docker.io", Name: "library/a"},
			policy.Bypass},
		"the default where none does": {content.Repository{Registry: "other.example", Name: "team/secret"},
			policy.PullThrough},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want, p.For(c.repo).Mode)
		})
	}
}

func TestValidateNamesEveryProblem(t *testing.T) {
	t.Parallel()
	p := &policy.Policy{
		Rules: []policy.Rule{{
			Match: []string{"a/**", "a/re?is", "", "a//b", "a/***"}, Mode: "Sometimes", TagTTL: -1,
			Authorization: policy.Authorization{Mode: "No", OnUnreachable: "Maybe", TTL: -1},
			RateLimit: policy.RateLimit{RequestsPerSecond: math.NaN(), BytesPerSecond: policy.Size{Share: 0.5},
				Connections: -1},
		}},
		Default:   policy.DefaultRule(),
		Bandwidth: policy.Bandwidth{Upload: policy.Size{Bytes: -1}, Download: policy.Size{Share: 0.5}},
		Store: policy.Store{
			HighWatermarkPercent: 50, LowWatermarkPercent: 90, Eviction: "FIFO",
			Capacity: policy.Size{Bytes: 1, Share: 0.5}, MinFree: policy.Size{Share: 2},
		},
	}
	err := p.Validate()
	require.Error(t, err)
	for _, part := range []string{
		"rules[0].match[1]", "rules[0].match[2]", "rules[0].match[3]", "rules[0].match[4]", "rules[0].mode",
		"rules[0].authorization.mode",
		"rules[0].authorization.onUnreachable", "rules[0].tagTTL", "rules[0].authorization.ttl",
		"rules[0].rateLimit.requestsPerSecond",
		"rules[0].rateLimit.bytesPerSecond", "rules[0].rateLimit.connections: -1 is no number of connections",
		"bandwidth.upload", "bandwidth.download",
		"store.lowWatermarkPercent", "store.eviction", "store.capacity", "store.minFree",
	} {
		require.Contains(t, err.Error(), part)
	}
	require.NoError(t, policy.Default().Validate())
}

func TestAPatternThatMatchesNothingIsAMistakeOnlyWhereItIsWritten(t *testing.T) {
	t.Parallel()
	for name, pattern := range map[string]string{
		"a registry and no path":          "docker.io",
		"one star for everything":         "*",
		"an image's short name":           "redis",
		"an official image of Docker Hub": "docker.io/redis",
		"Docker Hub by its other name":    "index.docker.io/**",
		"a tag":                           "a.example/x:1",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := policy.Default()
			r := policy.DefaultRule()
			r.Match = []string{"a.example/**", pattern}
			p.Rules = []policy.Rule{r}
			require.NoError(t, p.Validate(), "the cluster may have had it for long")
			err := p.ValidateWritten()
			require.ErrorContains(t, err, "rules[0].match[1]: "+strconv.Quote(pattern))
			require.NotContains(t, err.Error(), "match[0]")
		})
	}
}

func TestParseSize(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]policy.Size{
		"0": {}, "17": {Bytes: 17}, "20GiB": {Bytes: 20 << 30}, "20Gi": {Bytes: 20 << 30}, "1.5 kB": {Bytes: 1500},
		"500MB": {Bytes: 500e6}, "80%": {Share: 0.8}, "12.5 %": {Share: 0.125},
	} {
		got, err := policy.ParseSize(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "GiB", "-1GiB", "1 parsec", "101%", "1e300PiB", "NaN", "1..2G"} {
		_, err := policy.ParseSize(text)
		require.ErrorContains(t, err, "size ", text)
	}
}

func FuzzParseSize(f *testing.F) {
	for _, seed := range []string{"20GiB", "80%", "1.5 kB", "", "%", "9223372036854775807", "0x1p3"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		size, err := policy.ParseSize(text)
		if err != nil || size == (policy.Size{}) {
			return
		}
		require.GreaterOrEqual(t, size.Bytes, int64(0))
		require.LessOrEqual(t, size.Share, 1.0)
		again, err := policy.ParseSize(size.String())
		require.NoError(t, err)
		require.InEpsilon(t, 1+size.Of(1<<40), 1+again.Of(1<<40), 1e-9)
	})
}

func TestLiveTellsSubscribersInOrder(t *testing.T) {
	t.Parallel()
	l := policy.NewLive(nil)
	require.NoError(t, l.Load().Validate())
	var seen []int64
	stop := l.Subscribe(func(p *policy.Policy) { seen = append(seen, p.Bandwidth.Upload.Bytes) })
	for up := range int64(3) {
		l.Store(&policy.Policy{Bandwidth: policy.Bandwidth{Upload: policy.Size{Bytes: up + 1}}})
	}
	stop()
	l.Store(&policy.Policy{Bandwidth: policy.Bandwidth{Upload: policy.Size{Bytes: 9}}})
	require.Equal(t, []int64{0, 1, 2, 3}, seen, "the policy in force, then each new one, and none after the end")
	require.Equal(t, int64(9), l.Load().Bandwidth.Upload.Bytes)
}

func TestLiveEndsWithTheLastPolicyEverywhere(t *testing.T) {
	t.Parallel()
	l := policy.NewLive(nil)
	var last *policy.Policy
	l.Subscribe(func(p *policy.Policy) { last = p })
	var group sync.WaitGroup
	for range 50 {
		group.Go(func() { l.Store(policy.Default()) })
	}
	group.Wait()
	require.Same(t, l.Load(), last)
}

func TestSizeIsWrittenInItsLargestUnit(t *testing.T) {
	t.Parallel()
	for want, size := range map[string]policy.Size{
		"0": {}, "80%": {Share: 0.8}, "3TiB": {Bytes: 3 << 40}, "1025KiB": {Bytes: 1<<20 + 1<<10},
		"1500": {Bytes: 1500},
	} {
		require.Equal(t, want, size.String())
	}
}
