package plugin

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/operator/internal/survey"
)

func (p *plugin) reportCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "report", Short: "Write one archive for a bug report, without secrets",
		Args: view.Arguments(0, 0, "-f FILE names the file to write"),
		Long: `report writes what check finds, the objects of Shoal, and what agents and operators show and have logged
lately. It reads no Secret, and takes out of the rest what looks like a credential, and the values of environment
variables that are not Shoal's own. A credential that neither a name before it nor its form gives away, as one in
running text, stays. It names your images, nodes and registries, too: look at it before you give it away.`,
		Example: "  kubectl shoal report -f shoal-report.tar.gz",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := view.InFolder(file); err != nil {
				return err
			}
			file = cmp.Or(file, "shoal-report-"+time.Now().UTC().Format("20060102-150405")+".tar.gz")
			var archive bytes.Buffer
			files, err := p.report(cmd.Context(), &archive)
			if err == nil {
				err = os.WriteFile(file, archive.Bytes(), 0o600)
			}
			if err != nil {
				return err
			}
			return p.print(reported{file, files, archive.Len()}, func(t *view.Text) {
				t.Say("%s: %d files, %s. It names your images, nodes and registries.\n", file, files,
					view.Bytes(int64(archive.Len())))
			})
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "name of the archive; default: shoal-report-TIME.tar.gz")
	return cmd
}

// reported is what report has written.
type reported struct {
	File  string `json:"file"`
	Files int    `json:"files"`
	Bytes int    `json:"bytes"`
}

// archive is a report that is being written. Its methods may be called concurrently.
type archive struct {
	mu    sync.Mutex
	tar   *tar.Writer
	files int
	err   error
}

func (a *archive) add(name string, data []byte) {
	data = redact(data)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		return
	}
	a.err = a.tar.WriteHeader(&tar.Header{Name: "shoal-report/" + name, Mode: 0o644, Size: int64(len(data)),
		ModTime: time.Now()})
	if a.err == nil {
		_, a.err = a.tar.Write(data)
	}
	a.files++
}

func (a *archive) addYAML(name string, value any) {
	data, err := yaml.Marshal(value)
	if err != nil {
		data = []byte(err.Error())
	}
	a.add(name, data)
}

// report writes the archive, and returns the number of its files.
func (p *plugin) report(ctx context.Context, w io.Writer) (int, error) {
	c, err := p.look(ctx)
	if err != nil {
		return 0, err
	}
	core, err := kubernetes.NewForConfig(p.config)
	if err != nil {
		return 0, err
	}
	zipped := gzip.NewWriter(w)
	a := &archive{tar: tar.NewWriter(zipped)}
	pods := survey.Running(c.Agents, "")
	answers, shut := askAll(ctx, p, pods, survey.AskHealth)
	findings := survey.Diagnose(c, answers, p.clock.Now())
	var text view.Text
	p.writeState(&text, survey.StateOf(c, findings, p.clock.Now()))
	a.add("status.txt", []byte(text.String()))
	a.addYAML("findings.yaml", findings)
	a.addVersions(p.version, core)
	a.addObjects(c)
	var policies v1alpha1.CachePolicyList
	a.addList("cachepolicies.yaml", &policies, func() any { return policies.Items }, p.api.List(ctx, &policies))
	if shut != nil {
		a.add("agents/not-asked.txt", []byte(explain(shut)))
	} else {
		p.addAgents(ctx, a, pods)
	}
	p.addSystem(ctx, a, core, c)
	return a.files, errors.Join(ctx.Err(), a.err, a.tar.Close(), zipped.Close())
}

func (a *archive) addVersions(own string, core kubernetes.Interface) {
	text := fmt.Appendf(nil, "kubectl-shoal %s\n", own)
	if version, err := core.Discovery().ServerVersion(); err == nil {
		text = fmt.Appendf(text, "Kubernetes %s\n", version.GitVersion)
	}
	a.add("version.txt", text)
}

// addObjects writes what the API server knows of the cache.
func (a *archive) addObjects(c *survey.Cluster) {
	if c.Swarm != nil {
		plainMeta(c.Swarm)
	}
	for i := range c.Peers {
		plainMeta(&c.Peers[i])
	}
	for i := range c.Pins {
		plainMeta(&c.Pins[i])
	}
	nodes := map[string]corev1.NodeStatus{}
	for _, n := range c.Nodes {
		nodes[n.Name] = corev1.NodeStatus{NodeInfo: n.Status.NodeInfo, Conditions: n.Status.Conditions,
			Capacity: n.Status.Capacity}
	}
	for i := range c.Daemons {
		plainMeta(&c.Daemons[i])
		withoutSecrets(&c.Daemons[i].Spec.Template.Spec)
	}
	for i := range c.Agents {
		plainMeta(&c.Agents[i])
		withoutSecrets(&c.Agents[i].Spec)
		a.addYAML("pods/"+c.Agents[i].Spec.NodeName+".yaml", c.Agents[i])
	}
	for i := range c.Operators {
		plainMeta(&c.Operators[i])
		withoutSecrets(&c.Operators[i].Spec)
	}
	a.addYAML("pods/operators.yaml", c.Operators)
	a.addYAML("swarm.yaml", c.Swarm)
	a.addYAML("peers.yaml", c.Peers)
	a.addYAML("nodecaches.yaml", c.Caches) // with their managed fields: when the API server took a report down
	a.addYAML("artifactpins.yaml", c.Pins)
	a.addYAML("daemonsets.yaml", c.Daemons)
	a.addYAML("nodes.yaml", nodes)
}

// addList writes the objects that were listed, or why they were not.
func (a *archive) addList(name string, list client.ObjectList, of func() any, err error) {
	if err != nil {
		a.add(name, []byte(err.Error()))
		return
	}
	_ = meta.EachListItem(list, func(o runtime.Object) error {
		if m, ok := o.(metav1.Object); ok {
			plainMeta(m)
		}
		return nil
	})
	a.addYAML(name, of())
}

// addAgents writes what the agents show.
func (p *plugin) addAgents(ctx context.Context, a *archive, pods []corev1.Pod) {
	for _, path := range []string{view.NodePath, view.PeersPath, view.FetchesPath, view.PullsPath, view.RegistriesPath,
		"/readyz", "/metrics"} {
		answers, _ := askAll(ctx, p, pods, func(ctx context.Context, c *view.Client) ([]byte, error) {
			return c.Text(ctx, path, nil)
		})
		for _, answer := range answers {
			data := answer.Value
			if answer.Err != nil {
				data = []byte(answer.Err.Error())
			}
			a.add("agents/"+answer.Node+path+".txt", data)
		}
	}
}

// addSystem writes what is in the agents' namespace besides: events, and the logs of agents and operators.
func (p *plugin) addSystem(ctx context.Context, a *archive, core kubernetes.Interface, c *survey.Cluster) {
	namespace := p.agentsNamespace()
	if len(c.Agents) > 0 {
		namespace = c.Agents[0].Namespace
	}
	var events corev1.EventList
	a.addList("events.yaml", &events, func() any { return events.Items },
		p.api.List(ctx, &events, client.InNamespace(namespace)))
	var reading errgroup.Group
	reading.SetLimit(logsAtOnce)
	read := func(pod *corev1.Pod, of string) {
		for _, c := range pod.Spec.Containers {
			reading.Go(func() error { p.addLogs(ctx, a, core, pod, c.Name, of); return nil })
		}
	}
	for i := range c.Agents {
		read(&c.Agents[i], c.Agents[i].Spec.NodeName)
	}
	for i := range c.Operators {
		read(&c.Operators[i], c.Operators[i].Name)
	}
	_ = reading.Wait() // each writes into the archive why it failed
}

const (
	// logLines bounds what is taken of each log, logsAtOnce how many are read at one time.
	logLines, logsAtOnce = 2000, 16
)

// addLogs writes the log of a container, and that of the one before it.
func (p *plugin) addLogs(ctx context.Context, a *archive, core kubernetes.Interface, pod *corev1.Pod,
	container, of string) {
	lines := int64(logLines)
	for _, previous := range []bool{false, true} {
		ctx, cancel := context.WithTimeout(ctx, p.tolerance)
		data, err := core.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name,
			&corev1.PodLogOptions{Container: container, TailLines: &lines, Previous: previous}).DoRaw(ctx)
		cancel()
		name := "logs/" + of + "-" + container
		if previous {
			if err != nil {
				continue // there was none
			}
			name += "-before"
		}
		if err != nil {
			data = []byte(err.Error())
		}
		a.add(name+".log", data)
	}
}
