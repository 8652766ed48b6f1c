package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/spf13/pflag"
	"github.com/spf13/viper"
	"go.yaml.in/yaml/v3"

	"github.com/shoal-cache/shoal/api/files"
	"github.com/shoal-cache/shoal/node/internal/policy"
)

// Load reads the configuration from the file at path ("": no file), from environ, in the form of os.Environ, and from
// the flags of Flags that were set (nil: none), puts them over the defaults, and checks the result. Its error joins all
// problems found; each names the key, the value and what to do.
func Load(path string, flags *pflag.FlagSet, environ []string) (*Config, error) {
	v := viper.New()
	for key, value := range values(Default()) {
		v.SetDefault(key, value)
	}
	var written map[string]said
	if path != "" {
		var err error
		if written, err = readFile(v, path); err != nil {
			return nil, err
		}
	}
	problems := readEnvironment(v, environ)
	if flags != nil {
		for _, o := range options {
			if f := flags.Lookup(o.flag()); f != nil {
				if err := v.BindPFlag(o.key, f); err != nil {
					return nil, fmt.Errorf("flag --%s: %w", o.flag(), err)
				}
			}
		}
	}

	c := new(Config)
	settings := v.AllSettings()
	problems = append(problems, unknown("", settings, written)...)
	problems = append(problems, emptyRules(settings)...)
	problems = append(problems, slices.DeleteFunc(decode(settings, c), func(err error) bool {
		return errors.Is(err, errNoTable) && !index.MatchString(err.Error()) // told above, with the keys that there are
	})...)
	if len(problems) > 0 {
		// Bounds are not checked on values that could not be read: that would report the same mistake twice.
		return nil, errors.Join(problems...)
	}
	c.complete(settings)
	if err := c.validate(); err != nil {
		return nil, err
	}
	return c, nil
}

// said is where a file says a key, and in which letters: viper has all keys in small ones.
type said struct {
	line int
	as   string
}

// readFile returns what the file says, by keys in lower case.
func readFile(v *viper.Viper, path string) (map[string]said, error) {
	data, err := files.Read(path)
	if err != nil {
		return nil, fmt.Errorf("configuration file: %w", err)
	}
	written, err := checkDocument(data)
	if err != nil {
		return nil, fmt.Errorf("configuration file %s: %w", path, err)
	}
	v.SetConfigType("yaml")
	if err := v.ReadConfig(bytes.NewReader(data)); err != nil {
		return nil, fmt.Errorf("configuration file %s: %w", path, err)
	}
	return written, nil
}

// checkDocument fails for what would be passed over in silence: other documents than the first, and a key that is said
// again in other letters, or in one word with its section.
func checkDocument(data []byte) (map[string]said, error) {
	d, document := yaml.NewDecoder(bytes.NewReader(data)), new(yaml.Node)
	switch err := d.Decode(document); {
	case errors.Is(err, io.EOF):
		return nil, nil
	case err != nil:
		return nil, err
	case !errors.Is(d.Decode(new(yaml.Node)), io.EOF):
		return nil, errors.New("holds more than one YAML document; remove the lines of ---")
	}
	root := document.Content[0]
	if root.Kind != yaml.MappingNode && root.Tag != "!!null" {
		return nil, fmt.Errorf("line %d: is no table; want keys, such as store: {path: /var/lib/shoal}", root.Line)
	}
	written := make(map[string]said)
	return written, saidOnce("", root, written)
}

// saidOnce fails for a key below at that is said in a line before, by its name in lower case.
func saidOnce(at string, n *yaml.Node, before map[string]said) error {
	for i, item := range n.Content {
		key := fmt.Sprintf("%s[%d]", at, i)
		if n.Kind == yaml.MappingNode {
			if i%2 == 1 {
				continue
			}
			name := n.Content[i]
			key, item = strings.TrimPrefix(at+"."+name.Value, "."), n.Content[i+1]
			if first, again := before[strings.ToLower(key)]; again {
				return fmt.Errorf("line %d: %s is set in line %d already, and capitals make no other key; set it once",
					name.Line, first.as, first.line)
			}
			before[strings.ToLower(key)] = said{name.Line, key}
		}
		if err := saidOnce(key, item, before); err != nil {
			return err
		}
	}
	return nil
}

// serviceLink matches what Kubernetes puts into every container for each Service of its namespace. A Service named
// shoal-registry must not stop agents from starting.
var serviceLink = regexp.MustCompile(`(_SERVICE_HOST|_SERVICE_PORT(_.+)?|_PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// readEnvironment puts the SHOAL_ variables over the file. Variables that begin with the name of a section, or end as a
// key's do behind its section, but name no key are problems; others are none of our business.
func readEnvironment(v *viper.Viper, environ []string) []error {
	keys := make(map[string]string) // by variable
	for _, o := range options {
		keys[o.variable()] = o.key
	}
	for _, key := range tables {
		keys[variable(key)] = key
	}
	var problems []error
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		rest, ours := strings.CutPrefix(name, "SHOAL_")
		if !ours || value == "" {
			continue
		}
		key, known := keys[name]
		if !known {
			if meant := alike(rest, keys); len(meant) > 0 && !serviceLink.MatchString(name) {
				problems = append(problems, fmt.Errorf("environment variable %s names no key; those that exist: %s",
					name, strings.Join(meant, ", ")))
			}
			continue
		}
		parsed, err := parseVariable(key, value)
		if err == nil {
			err = v.MergeConfigMap(nest(key, parsed))
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("environment variable %s: %w", name, err))
		}
	}
	return problems
}

// alike are the variables that may be meant by SHOAL_rest: those of its section, or else those that end like it.
func alike(rest string, keys map[string]string) []string {
	section, tail, _ := strings.Cut(rest, "_")
	var sameSection, sameTail []string
	for _, v := range slices.Sorted(maps.Keys(keys)) {
		s, t, _ := strings.Cut(strings.TrimPrefix(v, "SHOAL_"), "_")
		if s == section {
			sameSection = append(sameSection, v)
		}
		if t != "" && (t == tail || t == rest) {
			sameTail = append(sameTail, v)
		}
	}
	if len(sameSection) > 0 {
		return sameSection
	}
	return sameTail
}

func parseVariable(key, value string) (any, error) {
	if !slices.Contains(tables, key) {
		return value, nil
	}
	var list []any
	if err := yaml.Unmarshal([]byte(value), &list); err != nil {
		return nil, fmt.Errorf("%s: want a list in YAML or JSON: %w", key, err)
	}
	return list, nil
}

// nest makes {"a": {"b": value}} of "a.b".
func nest(key string, value any) map[string]any {
	head, tail, more := strings.Cut(key, ".")
	if more {
		value = nest(tail, value)
	}
	return map[string]any{head: value}
}

// decode puts settings into target, and returns what cannot be read. It passes over unknown keys.
func decode(settings map[string]any, target any) []error {
	d, err := mapstructure.NewDecoder(&mapstructure.DecoderConfig{
		TagName:          "yaml",
		SquashTagOption:  "inline",
		Result:           target,
		WeaklyTypedInput: true, // a port that YAML reads as a number is fine where text is wanted
		DecodeHook:       mapstructure.DecodeHookFuncType(fromText),
	})
	if err != nil {
		return []error{err}
	}
	return flatten(d.Decode(settings))
}

// flatten turns the decoder's tree of errors into one error for each key.
func flatten(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, inner := range joined.Unwrap() {
			all = append(all, flatten(inner)...)
		}
		return all
	}
	inner := errors.Unwrap(err)
	if _, more := errors.AsType[*mapstructure.DecodeError](inner); more {
		return flatten(inner)
	}
	if named, ok := errors.AsType[*mapstructure.DecodeError](err); ok && inner != nil {
		if _, noSize := errors.AsType[policy.NoSize](inner); noSize && strings.HasPrefix(named.Name(), "store.") {
			inner = fmt.Errorf("%w, or a share of the disk, such as 80%%", inner)
		}
		return []error{fmt.Errorf("%s: %w", named.Name(), inner)}
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

// unknown returns an error for each key in value, which stands at the key at, that does not exist.
func unknown(at string, value any, written map[string]said) []error {
	var problems []error
	switch value := value.(type) {
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(value)) {
			key := strings.TrimPrefix(at+"."+name, ".")
			as := cmp.Or(written[key].as, key)
			switch exists, hasMore := lookup(key); {
			case hasMore && noSection(value[name]) && !slices.Contains(tables, key):
				problems = append(problems, fmt.Errorf("%s: %v is no table; want keys below it: %s", as, value[name],
					strings.Join(beside(as+"."), ", ")))
			case hasMore:
				problems = append(problems, unknown(key, value[name], written)...)
			case !exists:
				problems = append(problems, fmt.Errorf("%s: no such key; those beside it: %s", as,
					strings.Join(beside(as), ", ")))
			}
		}
	case []any:
		for i, item := range value {
			problems = append(problems, unknown(fmt.Sprintf("%s[%d]", at, i), item, written)...)
		}
	}
	return problems
}

// emptyRules are the rules of the policy that say nothing. Such a one would hold for every repository, and keep those
// behind it from holding.
func emptyRules(settings map[string]any) (problems []error) {
	section, _ := settings["policy"].(map[string]any)
	rules, _ := section["rules"].([]any)
	for i, rule := range rules {
		if saysNothing(rule) {
			problems = append(problems, fmt.Errorf("policy.rules[%d]: is empty; want a setting such as mode, "+
				"and its repositories in match, or no such rule", i))
		}
	}
	return problems
}

func saysNothing(value any) bool {
	switch value := value.(type) {
	case nil:
		return true
	case map[string]any:
		return !slices.ContainsFunc(slices.Collect(maps.Values(value)), func(v any) bool { return !saysNothing(v) })
	case []any:
		return len(value) == 0
	}
	return false
}

func noSection(value any) bool {
	switch value.(type) {
	case nil, map[string]any:
		return false
	}
	return true
}

// lookup reports whether key exists, and whether there are keys below it.
func lookup(key string) (exists, hasMore bool) {
	key = strings.ToLower(index.ReplaceAllString(key, ""))
	for _, k := range known() {
		rest, ok := strings.CutPrefix(strings.ToLower(k), key)
		exists = exists || ok && rest == ""
		hasMore = hasMore || ok && strings.HasPrefix(rest, ".")
	}
	return exists, hasMore
}

var index = regexp.MustCompile(`\[\d+\]`)

// beside lists the keys of key's table: first those that begin most like it.
func beside(key string) []string {
	at := key[:strings.LastIndex(key, ".")+1]
	table := strings.ToLower(index.ReplaceAllString(at, ""))
	names := make(map[string]bool)
	for _, k := range known() {
		if strings.HasPrefix(strings.ToLower(k), table) {
			name, _, _ := strings.Cut(k[len(table):], ".")
			names[at+name] = true
		}
	}
	all := slices.Sorted(maps.Keys(names))
	slices.SortStableFunc(all, func(a, b string) int { return cmp.Compare(alikeTo(key, b), alikeTo(key, a)) })
	return all
}

// alikeTo is the length of what two keys begin with.
func alikeTo(a, b string) int {
	a, b = strings.ToLower(a), strings.ToLower(b)
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

// known are all keys, also those within the lists of tables.
func known() []string {
	var keys []string
	for _, o := range options {
		keys = append(keys, o.key)
	}
	for prefix, t := range map[string]reflect.Type{
		"upstreams": reflect.TypeFor[Upstream](), "policy.rules": reflect.TypeFor[policy.Rule](),
	} {
		keys = append(keys, keysOf(prefix, t)...)
	}
	return keys
}

// keysOf are the keys of the table t, which stands at prefix.
func keysOf(prefix string, t reflect.Type) (keys []string) {
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if f.Type.Kind() == reflect.Struct && !isScalar(f.Type) {
			keys = append(keys, keysOf(prefix+"."+name, f.Type)...)
			continue
		}
		keys = append(keys, prefix+"."+name)
	}
	return keys
}

var errNoTable = errors.New("is no table; want keys below it")

// fromText reads the values that are written as text, with errors that show the value and an example of a right one.
func fromText(from, to reflect.Type, data any) (any, error) {
	if from == to {
		return data, nil // what this hook made out of a text, passed to it once more piece by piece
	}
	switch isTable, isList := from.Kind() == reflect.Map, from.Kind() == reflect.Slice; {
	case isScalar(to) && (isTable || isList):
		return nil, fmt.Errorf("%v is a list or table; want one value", data)
	case to.Kind() == reflect.String && (from.Kind() == reflect.Bool || from.Kind() == reflect.Float64):
		return nil, fmt.Errorf("%v is no text to YAML; want it in quotes", data)
	case !isScalar(to) && to.Kind() == reflect.Struct && !isTable:
		return nil, fmt.Errorf("%v %w", data, errNoTable)
	case to.Kind() == reflect.Slice && isTable:
		return nil, fmt.Errorf("%v is a table; want a list, each item of it behind a dash", data)
	case isTable || isList:
		return data, nil
	}
	s := strings.TrimSpace(fmt.Sprint(data))
	if parse, ok := parsers[to]; ok {
		return parse(s)
	}
	switch to.Kind() {
	case reflect.Float64:
		return parseShare(s)
	case reflect.Int:
		n, err := strconv.Atoi(s)
		if err != nil {
			return nil, fmt.Errorf("%q is no whole number", s)
		}
		return n, nil
	case reflect.Bool:
		b, err := strconv.ParseBool(s)
		if err != nil {
			return nil, fmt.Errorf("%q is neither true nor false", s)
		}
		return b, nil
	case reflect.Slice:
		if from.Kind() == reflect.String {
			return parseList(s), nil
		}
	}
	return data, nil
}

// parsers read the types that are written in a way of their own.
var parsers = map[reflect.Type]func(string) (any, error){
	reflect.TypeFor[policy.Size](): func(s string) (any, error) { return policy.ParseSize(s) },
	reflect.TypeFor[policy.Percent](): func(s string) (any, error) {
		f, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(s, "%")), 64)
		if err != nil {
			return nil, fmt.Errorf("%q is no percentage; want a number such as 95", s)
		}
		return f, nil
	},
	reflect.TypeFor[time.Duration](): func(s string) (any, error) {
		d, err := time.ParseDuration(s)
		if err != nil {
			return nil, fmt.Errorf("%q is no duration; want a number with a unit, such as 90s, 5m or 24h", s)
		}
		return d, nil
	},
	reflect.TypeFor[ma.Multiaddr](): func(s string) (any, error) {
		addr, err := ma.NewMultiaddr(s)
		if err != nil {
			return nil, fmt.Errorf("%q is no multiaddr (%w); "+
				"want one such as /ip4/10.0.0.1/tcp/5052 or /ip6/fd00::1/tcp/5052", s, err)
		}
		return addr, nil
	},
	reflect.TypeFor[netip.Prefix](): func(s string) (any, error) {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("%q is no range of addresses; want one such as 10.42.0.0/16 or fd00::/8", s)
		}
		return p, nil
	},
	reflect.TypeFor[peer.ID](): func(s string) (any, error) {
		id, err := peer.Decode(s)
		if err != nil {
			return nil, fmt.Errorf("%q is no peer ID (%w); `shoal-node id` prints an agent's", s, err)
		}
		return id, nil
	},
}

// parseShare reads a number, or a percentage as the share that it is.
func parseShare(s string) (any, error) {
	number, percent := strings.CutSuffix(s, "%")
	f, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil {
		return nil, fmt.Errorf("%q is no number", s)
	}
	if percent {
		f /= 100
	}
	return f, nil
}

// parseList reads what stands between commas.
func parseList(s string) []string {
	list := []string{}
	for item := range strings.SplitSeq(s, ",") {
		if item = strings.TrimSpace(item); item != "" {
			list = append(list, item)
		}
	}
	return list
}

// isScalar reports whether values of the type are written as one word.
func isScalar(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.String, reflect.Bool, reflect.Int, reflect.Int64, reflect.Float64:
		return true
	}
	return t == reflect.TypeFor[ma.Multiaddr]() || t == reflect.TypeFor[policy.Size]() ||
		t == reflect.TypeFor[netip.Prefix]()
}

// complete fills in what follows from other keys.
func (c *Config) complete(settings map[string]any) {
	if c.Swarm.Admission == "" {
		switch {
		case c.Kubernetes.Enabled:
			c.Swarm.Admission = AdmitKubernetes
		case len(c.Swarm.Peers) > 0:
			c.Swarm.Admission = AdmitList
		default:
			c.Swarm.Admission = AdmitAll
		}
	}
	// A rule has the defaults in the fields it leaves out, so it is read once more, over them.
	section, _ := settings["policy"].(map[string]any)
	rules, _ := section["rules"].([]any)
	for i := range rules {
		c.Policy.Rules[i] = c.Policy.Defaults
		raw, _ := rules[i].(map[string]any)
		_ = decode(raw, &c.Policy.Rules[i]) // the first reading has found its problems, if any
	}
}
