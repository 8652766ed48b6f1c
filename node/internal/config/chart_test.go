package config_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/shoal-cache/shoal/node/internal/config"
	"github.com/shoal-cache/shoal/node/internal/mirror"
)

// definitions are the defaults that the definition of CachePolicy names, by the path of the field in spec.
func definitions(t *testing.T) map[string]string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "..", "api", "crds", "shoal.dev_cachepolicies.yaml"))
	require.NoError(t, err)
	type property struct {
		Description string
		Properties  map[string]*property
		Items       *property
	}
	var crd struct {
		Spec struct {
			Versions []struct {
				Schema struct{ OpenAPIV3Schema *property } `yaml:"schema"`
			}
		}
	}
	// The decoder knows keys in lower case, or as they are tagged.
	data = bytes.ReplaceAll(data, []byte("openAPIV3Schema:"), []byte("openapiv3schema:"))
	require.NoError(t, yaml.Unmarshal(data, &crd))
	named := map[string]string{}
	var walk func(at string, p *property)
	walk = func(at string, p *property) {
		if text, found := strings.CutPrefix(p.Description[max(0, strings.LastIndex(p.Description, "Default:")):],
			"Default:"); found {
			named[at] = strings.TrimSuffix(strings.Join(strings.Fields(text), " "), ".")
		}
		if p.Items != nil {
			p = p.Items
		}
		for name, child := range p.Properties {
			walk(strings.TrimPrefix(at+"."+name, "."), child)
		}
	}
	walk("", crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"])
	return named
}

func TestDefaults_OfACachePolicyAreThoseOfTheAgent(t *testing.T) {
	t.Parallel()
	c := config.Default()
	rule := c.Policy.Defaults
	require.Zero(t, c.Policy.Bandwidth)
	require.Zero(t, rule.RateLimit)
	percent := func(share float64) string { return fmt.Sprintf("%.0f", 100*share) }
	minutes := func(d time.Duration) string { return fmt.Sprintf("%.0fm", d.Minutes()) }
	require.Equal(t, map[string]string{
		"storage.capacity":                  "the agent's `store.capacity`",
		"storage.modelCapacity":             "the agent's `store.modelCapacity`",
		"storage.highWatermarkPercent":      percent(c.Store.HighWatermarkPercent.Share()),
		"storage.lowWatermarkPercent":       percent(c.Store.LowWatermarkPercent.Share()),
		"storage.minFreePercent":            percent(c.Store.MinFree.Share),
		"storage.eviction":                  string(c.Store.Eviction),
		"bandwidth.upload":                  "no limit",
		"bandwidth.download":                "no limit",
		"rules.mode":                        string(rule.Mode),
		"rules.tagTTL":                      minutes(rule.TagTTL),
		"rules.authorization.mode":          string(rule.Authorization.Mode),
		"rules.authorization.ttl":           minutes(rule.Authorization.TTL),
		"rules.authorization.onUnreachable": string(rule.Authorization.OnUnreachable),
		"rules.rateLimit.requestsPerSecond": "no limit",
		"rules.rateLimit.bytesPerSecond":    "no limit",
		"rules.rateLimit.connections":       "no limit",
	}, definitions(t))
}

func TestDefaults_OfTheChartAreThoseOfTheAgent(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(filepath.Join("..", "..", "..", "charts", "shoal", "values.yaml"))
	require.NoError(t, err)
	var values struct {
		Agent struct {
			Ports struct{ Registry, Admin, Swarm int }
			Store struct {
				Path, Capacity string
				ModelCapacity  string `yaml:"modelCapacity"`
			}
			TerminationGracePeriodSeconds int `yaml:"terminationGracePeriodSeconds"`
		}
	}
	require.NoError(t, yaml.Unmarshal(data, &values))
	c, agent := config.Default(), values.Agent
	require.Equal(t, c.Registry.Listen, fmt.Sprintf("127.0.0.1:%d", agent.Ports.Registry))
	require.Equal(t, c.Admin.Listen, fmt.Sprintf("127.0.0.1:%d", agent.Ports.Admin))
	require.Equal(t, c.Swarm.Listen[0].String(), fmt.Sprintf("/ip4/0.0.0.0/tcp/%d", agent.Ports.Swarm))
	require.Equal(t, c.Store.Path, agent.Store.Path)
	require.Equal(t, c.Store.ModelCapacity.String(), agent.Store.ModelCapacity)
	require.Equal(t, c.Store.Capacity.String(), agent.Store.Capacity)
	require.Contains(t, string(data), fmt.Sprintf("(%s)", c.Registry.DrainTimeout), "values.yaml names drainTimeout")
	require.Greater(t, float64(agent.TerminationGracePeriodSeconds), c.Registry.DrainTimeout.Seconds())
}

// schema is what is read of a JSON schema.
type schema struct {
	Properties map[string]*schema `json:"properties"`
	Enum       []string           `json:"enum"`
}

// agentConfig is the chart's schema of agent.config.
func agentConfig(t *testing.T) *schema {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "..", "charts", "shoal", "values.schema.json"))
	require.NoError(t, err)
	s := new(schema)
	require.NoError(t, json.Unmarshal(data, s))
	return s.Properties["agent"].Properties["config"]
}

// The chart refuses keys of agent.config that its schema does not name, so it has to name them all.
func TestTheChartKnowsEveryKey(t *testing.T) {
	t.Parallel()
	var written bytes.Buffer
	require.NoError(t, config.Default().Write(&written))
	var keys map[string]any
	require.NoError(t, yaml.Unmarshal(written.Bytes(), &keys))
	// The chart has values of its own for these, as for what it mounts, or sets them from the pod's fields.
	delete(keys, "upstreams")
	store, ok := keys["store"].(map[string]any)
	require.True(t, ok)
	delete(store, "path")
	delete(store, "runtimePath")
	kubernetes, ok := keys["kubernetes"].(map[string]any)
	require.True(t, ok)
	delete(kubernetes, "nodeName")

	var compare func(at string, keys map[string]any, s *schema)
	compare = func(at string, keys map[string]any, s *schema) {
		for key, value := range keys {
			child := s.Properties[key]
			if !assertKnown(t, at+key, child) {
				continue
			}
			if table, ok := value.(map[string]any); ok && len(child.Properties) > 0 {
				compare(at+key+".", table, child)
			}
		}
		for key := range s.Properties {
			_, exists := keys[key]
			require.True(t, exists, "the chart's schema allows %s%s, which is no key of the agent", at, key)
		}
	}
	compare("", keys, agentConfig(t))
}

func assertKnown(t *testing.T, key string, s *schema) bool {
	t.Helper()
	if s == nil {
		t.Errorf("the chart's schema does not allow %s", key)
	}
	return s != nil
}

func TestTheChartKnowsEveryRuntime(t *testing.T) {
	t.Parallel()
	var runtimes []string
	for _, r := range mirror.Runtimes {
		runtimes = append(runtimes, string(r))
	}
	require.ElementsMatch(t, runtimes, agentConfig(t).Properties["mirror"].Properties["runtime"].Enum)
}
