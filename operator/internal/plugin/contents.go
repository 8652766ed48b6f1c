package plugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/operator/internal/survey"
)

// runner runs the agent's program in the agent's container. That takes the right to exec, as content takes that no
// registry has been asked about: an agent gives it to its administrator alone, at a socket that no port leads to.
type runner interface {
	run(ctx context.Context, pod *corev1.Pod, args []string, in io.Reader, out io.Writer) error
}

// agentContainer is the name that the chart gives the agent's container, and configFile is its configuration there.
const (
	agentContainer = "agent"
	configFile     = "/etc/shoal/config.yaml"
)

// forwarded reaches agents by port-forwards and by exec.
type forwarded struct{ *survey.Forwarded }

func (f forwarded) run(ctx context.Context, pod *corev1.Pod, args []string, in io.Reader, out io.Writer) error {
	target := f.Core.CoreV1().RESTClient().Post().
		Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: agentContainer, Stdin: in != nil, Stdout: true, Stderr: true,
			Command: append([]string{"/shoal-node", args[0], "--config", configFile}, args[1:]...)},
			scheme.ParameterCodec).URL()
	config, forbidden := survey.Watched(f.Config)
	executor, err := remotecommand.NewSPDYExecutor(config, "POST", target)
	if err != nil {
		return err
	}
	var said bytes.Buffer
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: out, Stderr: &said})
	if err != nil && forbidden.Load() {
		return &survey.NotAllowedError{What: "you may not create pods/exec in namespace " + pod.Namespace}
	}
	if text := strings.TrimSpace(strings.TrimPrefix(said.String(), "shoal-node: ")); err != nil && text != "" {
		err = errors.New(view.Line(text))
	}
	if err != nil {
		return survey.Unreached("on "+pod.Spec.NodeName, err)
	}
	return nil
}

func (p *plugin) getCommand() *cobra.Command {
	var file, node string
	cmd := &cobra.Command{
		Use: "get DIGEST", Short: "Write content that a node holds to a file",
		Args: view.Arguments(1, 1, "-o FILE names the file to write"),
		Long: `get writes a blob or a manifest from a node that holds it to a file, once its digest has been checked. It
runs shoal-node in the agent's pod, so it takes the right to exec there.`,
		Example: "  kubectl shoal get sha256:4b… -o layer.tar\n  kubectl shoal get sha256:4b… -o - | tar t",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := view.Saved(file, p.Out); err != nil {
				return err
			}
			d, err := view.DigestNamed(program, args[0])
			if err != nil {
				return err
			}
			pod, err := p.holder(cmd.Context(), d, node)
			if err != nil {
				return err
			}
			from, to := io.Pipe()
			go func() { to.CloseWithError(p.agents.run(cmd.Context(), pod, []string{"get", d.String()}, nil, to)) }()
			defer func() { _ = from.Close() }()
			return view.Save(file, p.Out, d, from)
		},
	}
	cmd.Flags().StringVarP(&file, "output", "o", "", "the `file` to write; default, or -: standard output")
	p.nodeFlag(cmd, &node, "from this node; default: one that holds it")
	return cmd
}

// holder is the agent of a node that holds content.
func (p *plugin) holder(ctx context.Context, d digest.Digest, node string) (*corev1.Pod, error) {
	nodes, err := p.nodes(ctx, node)
	if err != nil {
		return nil, err
	}
	answers, err := askNodes[[]view.Blob](ctx, p, nodes, view.BlobsPath, url.Values{"digest": {d.String()}})
	if err != nil {
		return nil, err
	}
	var problem error
	for _, a := range answers {
		if a.Err != nil {
			problem = fmt.Errorf("; %s did not answer: %s", a.Node, view.Line(survey.Short(a.Err)))
			continue
		}
		if len(a.Value) == 0 {
			continue
		}
		for i := range nodes.running {
			if pod := &nodes.running[i]; pod.Spec.NodeName == a.Node {
				return pod, nil
			}
		}
	}
	if problem != nil {
		return nil, fmt.Errorf("no node that answers holds %s%w", d, problem)
	}
	if node != "" {
		p.say("%s does not hold %s; kubectl shoal where %s says who does", node, d, d)
	} else {
		p.say("none of %s holds %s", view.Count(len(answers), "node"), d)
	}
	return nil, errNotWell
}

// added is what add has put into the cache.
type added struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
	Node   string        `json:"node"`
}

func (p *plugin) addCommand() *cobra.Command {
	var node string
	cmd := &cobra.Command{
		Use: "add FILE", Short: "Put a file into the cache, under its digest, and print that",
		Args: view.Arguments(1, 1), ValidArgsFunction: completeFile,
		Long: `add puts a file into the cache of one node as a blob. Every other node takes it from there by its digest.
It is evicted like any other blob, unless it is pinned. It runs shoal-node in the agent's pod, so it takes the right to
exec there.`,
		Example: "  kubectl shoal add model.safetensors\n  kubectl shoal add model.safetensors --node node1",
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer func() { _ = f.Close() }()
			d, size, err := view.Sum(f)
			if err != nil {
				return err
			}
			nodes, err := p.nodes(cmd.Context(), node)
			if err != nil {
				return err
			}
			pod := &nodes.running[0]
			err = p.agents.run(cmd.Context(), pod, []string{"add", "--digest", d.String(), "--size",
				strconv.FormatInt(size, 10), "-"}, f, io.Discard)
			if err != nil {
				return err
			}
			p.say("%s is on %s", view.Bytes(size), pod.Spec.NodeName)
			return p.print(added{d, size, pod.Spec.NodeName}, func(t *view.Text) { t.Say("%s\n", d) })
		},
	}
	p.nodeFlag(cmd, &node, "on this node; default: any")
	return cmd
}
