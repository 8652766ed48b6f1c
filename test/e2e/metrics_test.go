package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// metricsExist looks up every metric, and every label that is asked for with it, of the chart's alerts and dashboard on
// the agents and operators that run.
func metricsExist(t *testing.T, c *cluster) {
	c.warm(t)
	asked := c.metricsAsked(t)
	require.NotEmpty(t, asked)
	eventually(t, time.Minute, func() error { // what a pull has saved is counted once it is over
		var missing []error
		series := c.series(t)
		for _, m := range asked {
			if !slices.ContainsFunc(series, m.isOf) {
				missing = append(missing, fmt.Errorf("nobody has %s, for which %q asks", m, m.expression))
			}
		}
		return errors.Join(missing...)
	})
	names := make(map[string]bool)
	for _, m := range asked {
		names[m.name] = true
	}
	tell(t, "all %d metrics of alerts and dashboard are there: %s", len(names),
		strings.Join(slices.Sorted(maps.Keys(names)), ", "))
}

// series are the lines of the metrics that agents and operators export.
func (c *cluster) series(t *testing.T) (lines []string) {
	t.Helper()
	for _, node := range c.nodes {
		lines = append(lines, strings.Split(c.rig.exec(t, node, "curl", "-sf", "-m", "10",
			"http://127.0.0.1:5051/metrics"), "\n")...)
	}
	var operators corev1.PodList
	c.get(t, &operators, "pods", "-n", shoalNamespace, "-l", "app.kubernetes.io/component=operator")
	for _, pod := range operators.Items {
		lines = append(lines, strings.Split(c.kubectl(t, "get", "--raw",
			fmt.Sprintf("/api/v1/namespaces/%s/pods/%s:8080/proxy/metrics", shoalNamespace, pod.Name)), "\n")...)
	}
	return lines
}

// warm sees to it that every node has pulled an image, the same one, through its agent.
func (c *cluster) warm(t *testing.T) {
	t.Helper()
	if c.cold.ref != "" {
		return
	}
	img := c.public.push(t, "warm/app", 20, 1)
	c.rollout(t, workload{name: "warm", image: img.ref}, time.Minute)
	c.delete(t, "daemonset", "warm")
	c.cold = img
}

// metric is what an expression asks for.
type metric struct {
	name       string
	labels     []string // each as name="value", or name= where the value may be any
	expression string
}

func (m metric) String() string { return m.name + "{" + strings.Join(m.labels, ",") + "}" }

// isOf reports whether a line of the exposition format is a series of the metric.
func (m metric) isOf(line string) bool {
	rest, ok := strings.CutPrefix(line, m.name)
	if !ok || rest == "" || !strings.ContainsRune(" {", rune(rest[0])) {
		return false
	}
	for _, label := range m.labels {
		if !strings.Contains(rest, "{"+label) && !strings.Contains(rest, ","+label) {
			return false
		}
	}
	return true
}

var (
	selector = regexp.MustCompile(`\b(shoal_\w+)(?:\{([^}]*)\})?`)
	matcher  = regexp.MustCompile(`(\w+)(=~|!~|!=|=)("[^"]*")`)
)

// metricsAsked are the metrics that the chart's alerts and dashboard ask for.
func (c *cluster) metricsAsked(t *testing.T) []metric {
	t.Helper()
	var alerts struct {
		Groups []struct {
			Rules []struct {
				Expr string `json:"expr"`
			} `json:"rules"`
		} `json:"groups"`
	}
	require.NoError(t, yaml.Unmarshal([]byte(readFile(t, filepath.Join(c.current.chart, "files", "alerts.yaml"))),
		&alerts))
	var dashboard struct {
		Panels []struct {
			Targets []struct {
				Expr string `json:"expr"`
			} `json:"targets"`
		} `json:"panels"`
	}
	require.NoError(t, json.Unmarshal([]byte(readFile(t, filepath.Join(c.current.chart, "files", "dashboard.json"))),
		&dashboard))
	var expressions []string
	for _, group := range alerts.Groups {
		for _, rule := range group.Rules {
			expressions = append(expressions, rule.Expr)
		}
	}
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			expressions = append(expressions, target.Expr)
		}
	}
	var asked []metric
	for _, expression := range expressions {
		found := selector.FindAllStringSubmatch(expression, -1)
		require.NotEmpty(t, found, "%q asks for none of Shoal's metrics", expression)
		for _, f := range found {
			m := metric{name: f[1], expression: expression}
			for _, l := range matcher.FindAllStringSubmatch(f[2], -1) {
				if l[1] == "node" { // which the PodMonitor adds
					continue
				}
				label := l[1] + "="
				if l[2] == "=" {
					label += l[3]
				}
				m.labels = append(m.labels, label)
			}
			asked = append(asked, m)
		}
	}
	return asked
}
