package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"

	"github.com/shoal-cache/shoal/api/view"
)

// agents reaches the admin address of an agent's pod.
type agents interface {
	runner
	// open gives a client, and what ends it.
	open(ctx context.Context, pod *corev1.Pod, port string) (*view.Client, func(), error)
}

// atOnce is how many agents are asked at one time.
const atOnce = 16

// agentView is what an agent showed.
type agentView[T any] struct {
	Node  string
	Value T
	Err   error
}

// askAll asks every agent the same, many at a time, and gives their answers in the order of the nodes' names.
func askAll[T any](ctx context.Context, p *plugin, pods []corev1.Pod,
	ask func(context.Context, *view.Client) (T, error)) []agentView[T] {
	out := make([]agentView[T], len(pods))
	slots := make(chan struct{}, atOnce)
	var asking sync.WaitGroup
	for i := range pods {
		asking.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(ctx, p.tolerance)
			defer cancel()
			out[i].Node = pods[i].Spec.NodeName
			c, end, err := p.agents.open(ctx, &pods[i], "admin")
			if err != nil {
				out[i].Err = err
				return
			}
			defer end()
			out[i].Value, out[i].Err = ask(ctx, c)
		})
	}
	asking.Wait()
	slices.SortFunc(out, func(a, b agentView[T]) int { return compare(a.Node, b.Node) })
	return out
}

// running are the pods of agents that run, or of one node alone.
func running(pods []corev1.Pod, node string) []corev1.Pod {
	return slices.DeleteFunc(slices.Clone(pods), func(p corev1.Pod) bool {
		return p.Status.Phase != corev1.PodRunning || p.DeletionTimestamp != nil || node != "" &&
			p.Spec.NodeName != node
	})
}

// forwarded reaches agents by port-forwards, for their admin address is the node's loopback.
type forwarded struct {
	config *rest.Config
	core   kubernetes.Interface
}

func (f *forwarded) open(ctx context.Context, pod *corev1.Pod, port string) (*view.Client, func(), error) {
	number := portOf(pod, port)
	if number == 0 {
		return nil, nil, fmt.Errorf("pod %s/%s names no port %s", pod.Namespace, pod.Name, port)
	}
	target := f.core.CoreV1().RESTClient().Post().Resource("pods").
		Namespace(pod.Namespace).Name(pod.Name).SubResource("portforward").URL()
	transport, upgrader, err := spdy.RoundTripperFor(f.config)
	if err != nil {
		return nil, nil, err
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	failed := make(chan error, 1)
	var once sync.Once
	end := func() { once.Do(func() { close(stop) }) }
	forward, err := portforward.New(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost,
		target),
		[]string{fmt.Sprintf("0:%d", number)}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		return nil, nil, fmt.Errorf("reach the agent on %s: %w", pod.Spec.NodeName, err)
	}
	go func() { failed <- forward.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-failed:
		end()
		return nil, nil, fmt.Errorf("reach the agent on %s: %w", pod.Spec.NodeName, err)
	case <-ctx.Done():
		end()
		return nil, nil, fmt.Errorf("reach the agent on %s: %w", pod.Spec.NodeName, ctx.Err())
	}
	ports, err := forward.GetPorts()
	if err != nil || len(ports) == 0 {
		end()
		return nil, nil, errors.Join(fmt.Errorf("reach the agent on %s", pod.Spec.NodeName), err)
	}
	own := &http.Transport{}
	return &view.Client{HTTP: &http.Client{Transport: own}, Base: fmt.Sprintf("http://127.0.0.1:%d", ports[0].Local)},
		func() { own.CloseIdleConnections(); end() }, nil
}

// portOf is the number of a pod's port by its name.
func portOf(pod *corev1.Pod, name string) int32 {
	for _, c := range pod.Spec.Containers {
		for _, p := range c.Ports {
			if p.Name == name {
				return p.ContainerPort
			}
		}
	}
	return 0
}

// shown is what an agent shows of its health.
type shown struct {
	Node       view.Node
	Ready      error // why it is not ready
	Peers      []view.Peer
	Registries []view.Registry
	Asked      time.Time
}

func askHealth(ctx context.Context, c *view.Client) (shown, error) {
	var s shown
	var err error
	if _, err = c.Text(ctx, "/healthz", nil); err != nil {
		return s, err
	}
	s.Asked = time.Now()
	if s.Node, err = view.Get[view.Node](ctx, c, view.NodePath, nil); err != nil {
		return s, err
	}
	_, s.Ready = c.Text(ctx, "/readyz", nil)
	if s.Peers, err = view.Get[[]view.Peer](ctx, c, view.PeersPath, nil); err != nil {
		return s, err
	}
	if s.Registries, err = view.Get[[]view.Registry](ctx, c, view.RegistriesPath, nil); errors.Is(err,
		view.ErrNotShown) {
		err = nil
	}
	return s, err
}

// short is why an agent gave no answer, without the address of the port-forward, which means nothing to anybody.
func short(err error) string {
	if asked, ok := errors.AsType[*url.Error](err); ok {
		err = asked.Err
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "it gave no answer in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "its connection ended without an answer"
	}
	return err.Error()
}

func named(name string) url.Values { return url.Values{"name": {name}} }

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
