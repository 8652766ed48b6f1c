package v1alpha1_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/shoal-cache/shoal/api/apitest"
	"github.com/shoal-cache/shoal/api/v1alpha1"
)

// times that the API server's format date-time takes, all of them.
var times = map[string]struct {
	value string
	taken bool
}{
	"a time in UTC":                 {"2026-12-31T00:00:00Z", true},
	"a time with an offset":         {"2026-12-31T23:59:59+05:30", true},
	"a fraction of a second":        {"2026-12-31T00:00:00.123456789Z", true},
	"a small t":                     {"2026-12-31t00:00:00Z", false},
	"a small z":                     {"2026-12-31T00:00:00z", false},
	"another mark before fractions": {"2026-12-31T00:00:00x5Z", false},
	"an offset of days":             {"2026-12-31T00:00:00+99:00", false},
	"an offset of too many minutes": {"2026-12-31T00:00:00+01:99", false},
	"a year that UTC turns negative, which Go writes and the API server refuses": {"0000-01-01T00:00:00+01:00", false},
}

// quantities that programs report.
var quantities = map[string]struct {
	value string
	taken bool
}{
	"bytes":                           {"5368709120", true},
	"a unit of 1024s":                 {"5Gi", true},
	"a unit of 1000s":                 {"12E", true},
	"a part of one":                   {"0.5", true},
	"thousandths":                     {"1500m", true},
	"an exponent":                     {"5e-3", true},
	"a sum that has overflowed":       {"-9223372036854775808", true},
	"an exponent with a part of one":  {"1e1.5", false},
	"an exponent that takes for ever": {"1e-999999999", false},
	"a number that takes for ever":    {strings.Repeat("9", 1<<20), false},
}

// TestWhatTheAPIServerTakesGoDecodes holds for every time and quantity of every kind: one object that does not decode
// keeps all of its kind from being listed.
func TestWhatTheAPIServerTakesGoDecodes(t *testing.T) {
	t.Parallel()
	ofTime, ofQuantity := 0, 0
	eachSchema(t, func(path string, s *apiextensionsv1.JSONSchemaProps) {
		takes := func(value string) bool {
			return s.Pattern != "" && regexp.MustCompile(s.Pattern).MatchString(value)
		}
		switch {
		case s.Format == "date-time":
			ofTime++
			for name, c := range times {
				require.Equal(t, c.taken, takes(c.value), "%s: %s", path, name)
			}
		case strings.HasSuffix(path, ".expiry.until"): // people write it, so a rule says in words what is wrong
			ofTime++
			_, pattern, _ := strings.Cut(s.XValidations[0].Rule, "matches('")
			pattern, more, _ := strings.Cut(pattern, "')")
			require.Contains(t, more, "timestamp(self)", "asks Go, for not every month has 31 days")
			for name, c := range times {
				require.Equal(t, c.taken, regexp.MustCompile(pattern).MatchString(c.value), "%s: %s", path, name)
			}
		case s.XIntOrString && len(s.XValidations) == 0: // where there are rules, they ask Go
			ofQuantity++
			for name, c := range quantities {
				require.Equal(t, c.taken, takes(c.value), "%s: %s", path, name)
			}
		}
	})
	require.Greater(t, ofTime, 10)
	require.Greater(t, ofQuantity, 10)
	for name, c := range times {
		if c.taken {
			var decoded metav1.Time
			require.NoError(t, json.Unmarshal([]byte(strconv.Quote(c.value)), &decoded), name)
		}
	}
	for name, c := range quantities {
		if c.taken {
			var decoded resource.Quantity
			require.NoError(t, json.Unmarshal([]byte(strconv.Quote(c.value)), &decoded), name)
		}
	}
}

// TestPercent has parts and wholes that are sums of what agents report, be it true or not.
func TestPercent(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		part, whole int64
		want        string
	}{
		"a part":                           {3, 4, "75%"},
		"all":                              {4, 4, "100%"},
		"nothing of nothing":               {0, 0, ""},
		"a whole that has overflowed":      {5, -3, ""},
		"a part beyond an overflown whole": {4e18, 1, "100%"},
		"a part that has overflowed":       {-4e18, 1, "0%"},
	} {
		require.Equal(t, c.want, v1alpha1.Percent(c.part, c.whole), name)
	}
}

// eachSchema visits every schema within the resource definitions.
func eachSchema(t *testing.T, visit func(path string, s *apiextensionsv1.JSONSchemaProps)) {
	t.Helper()
	var walk func(path string, s *apiextensionsv1.JSONSchemaProps)
	walk = func(path string, s *apiextensionsv1.JSONSchemaProps) {
		visit(path, s)
		for name, p := range s.Properties {
			walk(path+"."+name, &p)
		}
		if s.Items != nil {
			walk(path+"[]", s.Items.Schema)
		}
		if s.AdditionalProperties != nil && s.AdditionalProperties.Schema != nil {
			walk(path+"{}", s.AdditionalProperties.Schema)
		}
	}
	files, err := filepath.Glob(filepath.Join(apitest.APIDir(), "crds", "*.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		var crd apiextensionsv1.CustomResourceDefinition
		require.NoError(t, yaml.Unmarshal(data, &crd))
		for _, v := range crd.Spec.Versions {
			walk(crd.Spec.Names.Kind, v.Schema.OpenAPIV3Schema)
		}
	}
}

// TestAReportThatGoCouldNotDecodeIsRefused has a captured agent report by its own token.
func TestAReportThatGoCouldNotDecodeIsRefused(t *testing.T) {
	t.Parallel()
	c := apitest.Require(t, cluster)
	ctx := t.Context()
	const node = "captured"
	require.NoError(t, c.Client.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}))
	operator := c.ClientFor(t, c.Impersonate("", apitest.OperatorServiceAccount))
	require.NoError(t, operator.Create(ctx, &v1alpha1.NodeCache{ObjectMeta: metav1.ObjectMeta{Name: node}}))
	agent := c.AgentClient(t, node)
	for name, tc := range map[string]struct {
		status string
		taken  bool
	}{
		"a report as agents make it": {"{reportedAt: '2026-12-31T00:00:00Z', usage: {bytes: 5Gi, capacity: '20'}, " +
			"counters: {hits: 1, misses: 2, peerBytes: 1500m}}", true},
		"a report at a time in small letters": {"{reportedAt: '2026-12-31t00:00:00z'}", false},
		"a pin used at no time": {"{pins: [{uid: a, revision: b, state: Ready, bytesHeld: 1, bytesWanted: 1, " +
			"lastUsed: '2026-12-31T00:00:00+99:00'}]}", false},
		"a quantity that Go refuses":         {"{usage: {bytes: 1e1.5}}", false},
		"a quantity that Go never ends with": {"{counters: {peerBytes: '1e-999999999'}}", false},
		"fewer hits than none":               {"{counters: {hits: -1}}", false},
		"fewer misses than none":             {"{counters: {misses: -1}}", false},
		"more ready pins than 32 bits hold":  {"{pinsReady: 3000000000}", false},
		"a condition of no time": {"{conditions: [{type: A, status: 'True', reason: B, message: '', " +
			"lastTransitionTime: '2026-12-31T00:00:00z'}]}", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			report := &unstructured.Unstructured{}
			require.NoError(t, yaml.Unmarshal([]byte("status: "+tc.status), &report.Object))
			report.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("NodeCache"))
			report.SetName(node)
			err := agent.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(report),
				client.FieldOwner(strings.ReplaceAll(name, " ", "-")), client.DryRunAll)
			if tc.taken {
				require.NoError(t, err)
				return
			}
			require.True(t, apierrors.IsInvalid(err), "%v", err)
		})
	}
}
