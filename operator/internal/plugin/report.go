package plugin

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/shoal-cache/shoal/api/view"
)

// secretWords are what is taken out of a report: credentials in URLs, tokens in headers, signatures of storage
// addresses.
var secretWords = []*regexp.Regexp{
	regexp.MustCompile(`(?i)((?:authorization|x-amz-security-token|proxy-authorization)["']?\s*[:=]\s*["']?)(?:bearer |basic )?[^\s"',;]+`),
	regexp.MustCompile(`(?i)(bearer |basic )[a-z0-9._~+/=-]{8,}`),
	regexp.MustCompile(`(://[^/\s:@]+:)[^@/\s]+(@)`),
	regexp.MustCompile(`(?i)([?&](?:x-amz-signature|x-amz-credential|x-amz-security-token|signature|sig|token|access_token|key-pair-id|policy|password|se|sp|sv)=)[^&\s"']+`),
	regexp.MustCompile(`(?i)("?(?:password|secret|token|auth|identitytoken|registrytoken)"?\s*[:=]\s*"?)[^\s",}]{4,}`),
}

// redact takes secrets out of a text.
func redact(text []byte) []byte {
	for _, w := range secretWords {
		replacement := "${1}REMOVED"
		if w.NumSubexp() == 2 {
			replacement += "${2}"
		}
		text = w.ReplaceAll(text, []byte(replacement))
	}
	return text
}

func (p *plugin) reportCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "report", Short: "Write one archive for a bug report, without secrets", Args: arguments(0, 0),
		Long: `report writes what check finds, the objects of Shoal, and what each agent shows and has logged lately. It
reads no Secret, and takes out of the rest what looks like a credential. It names your images, nodes and registries:
look at it before you give it away.`,
		Example: "  kubectl shoal report -f shoal-report.tar.gz",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				file = "shoal-report-" + time.Now().UTC().Format("20060102-150405") + ".tar.gz"
			}
			var archive bytes.Buffer
			files, err := p.report(cmd.Context(), &archive)
			if err == nil {
				err = os.WriteFile(file, archive.Bytes(), 0o600)
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(p.Out, "%s: %d files, %s. It names your images, nodes and registries.\n", file, files,
				view.Bytes(int64(archive.Len())))
			return err
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "name of the archive; default: shoal-report-TIME.tar.gz")
	return cmd
}

// archive is a report that is being written.
type archive struct {
	tar   *tar.Writer
	files int
	err   error
}

func (a *archive) add(name string, data []byte) {
	if a.err != nil {
		return
	}
	data = redact(data)
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
	zipped := gzip.NewWriter(w)
	a := &archive{tar: tar.NewWriter(zipped)}
	pods := running(c.Agents, "")
	answers := askAll(ctx, p, pods, askHealth)
	findings := diagnose(c, answers, time.Now())
	var text bytes.Buffer
	_ = p.writeState(&text, stateOf(c, findings, time.Now()))
	a.add("status.txt", text.Bytes())
	a.addYAML("findings.yaml", findings)
	a.add("version.txt", fmt.Appendf(nil, "kubectl-shoal %s\n", p.version))
	a.addYAML("swarm.yaml", c.Swarm)
	a.addYAML("peers.yaml", c.Peers)
	a.addYAML("nodecaches.yaml", c.Caches)
	a.addYAML("artifactpins.yaml", c.Pins)
	a.addYAML("daemonsets.yaml", c.Daemons)
	for i := range pods {
		pods[i].ManagedFields = nil
		a.addYAML("pods/"+pods[i].Spec.NodeName+".yaml", pods[i])
	}
	for _, path := range []string{view.NodePath, view.PeersPath, view.FetchesPath, view.PullsPath, view.RegistriesPath,
		"/readyz", "/metrics"} {
		for _, answer := range askAll(ctx, p, pods, func(ctx context.Context, c *view.Client) ([]byte, error) {
			return c.Text(ctx, path, nil)
		}) {
			data := answer.Value
			if answer.Err != nil {
				data = []byte(answer.Err.Error())
			}
			a.add("agents/"+answer.Node+path+".txt", data)
		}
	}
	if core, err := kubernetes.NewForConfig(p.config); err == nil {
		for i := range c.Agents {
			p.addLogs(ctx, a, core, &c.Agents[i])
		}
	}
	return a.files, errors.Join(a.err, a.tar.Close(), zipped.Close())
}

// logLines bounds what is taken of each log.
const logLines = 2000

func (p *plugin) addLogs(ctx context.Context, a *archive, core kubernetes.Interface, pod *corev1.Pod) {
	lines := int64(logLines)
	for _, c := range pod.Spec.Containers {
		for _, previous := range []bool{false, true} {
			ctx, cancel := context.WithTimeout(ctx, p.tolerance)
			data, err := core.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name,
				&corev1.PodLogOptions{Container: c.Name, TailLines: &lines, Previous: previous}).DoRaw(ctx)
			cancel()
			name := "logs/" + pod.Spec.NodeName + "-" + c.Name
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
}
