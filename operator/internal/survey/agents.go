package survey

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"

	"github.com/shoal-cache/shoal/api/view"
)

// Agents reaches a port of an agent's pod.
type Agents interface {
	// Open gives a client, and what ends it.
	Open(ctx context.Context, pod *corev1.Pod, port string) (*view.Client, func(), error)
}

// atOnce is how many agents are asked at one time.
const atOnce = 16

// Answer is what an agent showed.
type Answer[T any] struct {
	Node  string
	Value T
	Err   error
}

// AskAll asks every agent the same, many at a time, each for as long as patience, and gives their answers in the order
// of the nodes' names.
func AskAll[T any](ctx context.Context, agents Agents, patience time.Duration, pods []corev1.Pod,
	ask func(context.Context, *view.Client) (T, error)) []Answer[T] {
	out := make([]Answer[T], len(pods))
	slots := make(chan struct{}, atOnce)
	var asking sync.WaitGroup
	for i := range pods {
		asking.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			out[i].Node = pods[i].Spec.NodeName
			c, end, err := agents.Open(ctx, &pods[i], "admin")
			if err != nil {
				out[i].Err = err
				return
			}
			defer end()
			out[i].Value, out[i].Err = ask(ctx, c)
		})
	}
	asking.Wait()
	slices.SortFunc(out, func(a, b Answer[T]) int { return strings.Compare(a.Node, b.Node) })
	return out
}

// Running are the pods of agents that run, or of one node alone.
func Running(pods []corev1.Pod, node string) []corev1.Pod {
	return slices.DeleteFunc(slices.Clone(pods), func(p corev1.Pod) bool {
		return p.Status.Phase != corev1.PodRunning || p.DeletionTimestamp != nil || node != "" &&
			p.Spec.NodeName != node
	})
}

// NotAllowedError is that the API server does not let its user do something, in words.
type NotAllowedError struct{ What string }

func (e *NotAllowedError) Error() string { return e.What }

// NotAllowed is why agents could not be asked, where it is that the API server does not let its user. Otherwise it is
// nil.
func NotAllowed[T any](answers []Answer[T]) error {
	for _, a := range answers {
		if refused, ok := errors.AsType[*NotAllowedError](a.Err); ok {
			return refused
		}
	}
	return nil
}

// KubeletError is that the API server does not reach the kubelet of an agent's node, through which agents are asked:
// nothing is known of the agent.
type KubeletError struct{ why error }

func (e *KubeletError) Error() string { return "the node's kubelet does not answer: " + e.why.Error() }

// dialing is what an API server says before why it does not reach a kubelet.
const dialing = "error dialing backend: "

// Unreached says what kept a port-forward or an exec from an agent, and what was attempted. Where a connection is
// upgraded the error is words alone.
func Unreached(attempted string, err error) error {
	if _, why, ok := strings.Cut(err.Error(), dialing); ok {
		err = &KubeletError{errors.New(why)}
	}
	return fmt.Errorf("%s: %w", attempted, err)
}

// Watched is the same configuration, and forbidden, which tells whether the API server has forbidden something since.
// Where a connection is upgraded, the error says so in words alone.
func Watched(config *rest.Config) (watched *rest.Config, forbidden *atomic.Bool) {
	forbidden = new(atomic.Bool)
	watched = rest.CopyConfig(config)
	watched.Wrap(func(next http.RoundTripper) http.RoundTripper { return watcher{next, forbidden} })
	return watched, forbidden
}

type watcher struct {
	http.RoundTripper
	forbidden *atomic.Bool
}

func (w watcher) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := w.RoundTripper.RoundTrip(r)
	if err == nil && resp.StatusCode == http.StatusForbidden {
		w.forbidden.Store(true)
	}
	return resp, err
}

// Forwarded reaches agents by port-forwards, for their admin address is the node's loopback.
type Forwarded struct {
	Config *rest.Config
	Core   kubernetes.Interface
}

// Open forwards a port of this machine to the pod's.
func (f *Forwarded) Open(ctx context.Context, pod *corev1.Pod, port string) (*view.Client, func(), error) {
	number := portOf(pod, port)
	if number == 0 {
		return nil, nil, fmt.Errorf("pod %s/%s names no port %s", pod.Namespace, pod.Name, port)
	}
	target := f.Core.CoreV1().RESTClient().Post().Resource("pods").
		Namespace(pod.Namespace).Name(pod.Name).SubResource("portforward").URL()
	config, forbidden := Watched(f.Config)
	transport, upgrader, err := spdy.RoundTripperFor(config)
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
		if forbidden.Load() {
			return nil, nil, &NotAllowedError{"you may not create pods/portforward in namespace " + pod.Namespace}
		}
		return nil, nil, Unreached("reach the agent on "+pod.Spec.NodeName, err)
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

// Shown is what an agent shows of its health.
type Shown struct {
	Node       view.Node
	Ready      error // why it is not ready
	Peers      []view.Peer
	Registries []view.Registry
}

// AskHealth asks an agent for it. An agent that is asked for registries asks those whether they answer.
func AskHealth(ctx context.Context, c *view.Client) (Shown, error) {
	s, err := AskQuietly(ctx, c)
	if err != nil {
		return s, err
	}
	// It has answered: that it knows nothing of registries in time does not make it silent.
	s.Registries, _ = AskRegistries(ctx, c)
	return s, nil
}

// AskRegistries asks an agent which registries answer it.
func AskRegistries(ctx context.Context, c *view.Client) ([]view.Registry, error) {
	return view.Get[[]view.Registry](ctx, c, view.RegistriesPath, nil)
}

// AskQuietly asks an agent for what it knows without asking anybody: all but the registries.
func AskQuietly(ctx context.Context, c *view.Client) (Shown, error) {
	var s Shown
	var err error
	if _, err = c.Text(ctx, "/healthz", nil); err != nil {
		return s, err
	}
	if s.Node, err = view.Get[view.Node](ctx, c, view.NodePath, nil); err != nil {
		return s, err
	}
	_, s.Ready = c.Text(ctx, "/readyz", nil)
	s.Peers, err = view.Get[[]view.Peer](ctx, c, view.PeersPath, nil)
	return s, err
}

// Short is why an agent gave no answer, without the address of the port-forward, which means nothing to anybody.
func Short(err error) string {
	if asked, ok := errors.AsType[*url.Error](err); ok {
		err = asked.Err
	}
	if down, ok := errors.AsType[*KubeletError](err); ok {
		return down.Error()
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "it gave no answer in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "its connection ended without an answer"
	}
	return forwardedAt.ReplaceAllString(err.Error(), "")
}

// forwardedAt is the address of a port-forward.
var forwardedAt = regexp.MustCompile(`http://127\.0\.0\.1:\d+`)
