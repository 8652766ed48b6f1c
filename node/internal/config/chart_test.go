package config_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/shoal-cache/shoal/node/internal/config"
	"github.com/shoal-cache/shoal/node/internal/mirror"
)

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
	// The chart has values of its own for these, for they are what it mounts, or sets them from the pod's fields.
	delete(keys, "upstreams")
	store, ok := keys["store"].(map[string]any)
	require.True(t, ok)
	delete(store, "path")
	delete(store, "runtimePath")
	kubernetes, ok := keys["kubernetes"].(map[string]any)
	require.True(t, ok)
	delete(kubernetes, "nodeName")
	delete(kubernetes, "namespace")

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
