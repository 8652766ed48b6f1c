// Command chart-schema FOLDER writes into a chart's values.schema.json, as definitions, the specs of the resources that
// its values hold, out of the chart's own crds/: so that a typo in them fails at "helm install" too.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"sigs.k8s.io/yaml"
)

// specs are the definitions, by the files that they are made from.
var specs = map[string]string{
	"swarmSpec":       "shoal.dev_swarms.yaml",
	"cachePolicySpec": "shoal.dev_cachepolicies.yaml",
}

// kept are the keywords that mean the same to Kubernetes and to JSON schema. The API server checks the rest.
var kept = []string{"type", "enum", "minimum", "maximum", "minLength", "maxLength", "pattern", "minItems", "maxItems",
	"required", "anyOf"}

// document is the file, in its order. What is written by hand is left as it is.
type document struct {
	Schema               json.RawMessage `json:"$schema"`
	Title                json.RawMessage `json:"title"`
	Description          json.RawMessage `json:"description"`
	Type                 json.RawMessage `json:"type"`
	AdditionalProperties json.RawMessage `json:"additionalProperties"`
	Properties           json.RawMessage `json:"properties"`
	Definitions          map[string]any  `json:"definitions"`
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: chart-schema FOLDER")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "chart-schema:", err)
		os.Exit(1)
	}
}

func write(chart string) error {
	file := filepath.Join(chart, "values.schema.json")
	now, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var d document
	decoder := json.NewDecoder(bytes.NewReader(now))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&d); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	d.Definitions = make(map[string]any)
	for name, crd := range specs {
		spec, err := readSpec(filepath.Join(chart, "crds", crd))
		if err != nil {
			return err
		}
		d.Definitions[name] = closed(spec)
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(d); err != nil {
		return err
	}
	return os.WriteFile(file, out.Bytes(), 0o644)
}

// schema is one of Kubernetes' structural schemas.
type schema struct {
	Properties           map[string]*schema `json:"properties"`
	AdditionalProperties *schema            `json:"additionalProperties"`
	Items                *schema            `json:"items"`
	keywords             map[string]any
}

func (s *schema) UnmarshalJSON(data []byte) error {
	type plain schema
	if err := json.Unmarshal(data, (*plain)(s)); err != nil {
		return err
	}
	return json.Unmarshal(data, &s.keywords)
}

func readSpec(file string) (*schema, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var crd struct {
		Spec struct {
			Versions []struct {
				Schema struct {
					OpenAPIV3Schema schema `json:"openAPIV3Schema"`
				} `json:"schema"`
			} `json:"versions"`
		} `json:"spec"`
	}
	if err := yaml.Unmarshal(data, &crd); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if len(crd.Spec.Versions) != 1 {
		return nil, fmt.Errorf("%s: %d versions; say here which one the chart writes", file, len(crd.Spec.Versions))
	}
	spec := crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"]
	if spec == nil {
		return nil, fmt.Errorf("%s: the schema has no spec", file)
	}
	return spec, nil
}

// closed is a schema as JSON schema, which takes no name that it does not know.
func closed(s *schema) map[string]any {
	out := maps.Clone(s.keywords)
	maps.DeleteFunc(out, func(keyword string, _ any) bool {
		return !slices.Contains(kept, keyword)
	})
	if s.Properties != nil {
		properties := make(map[string]any)
		for name, property := range s.Properties {
			properties[name] = closed(property)
		}
		out["properties"], out["additionalProperties"] = properties, false
	}
	if s.AdditionalProperties != nil {
		out["additionalProperties"] = closed(s.AdditionalProperties)
	}
	if s.Items != nil {
		out["items"] = closed(s.Items)
	}
	return out
}
