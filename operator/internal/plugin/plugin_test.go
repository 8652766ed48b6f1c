package plugin

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/shoal-cache/shoal/api/apitest"
	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/operator/internal/survey"
)

var cluster1 *apitest.Cluster

func TestMain(m *testing.M) {
	log.SetLogger(logr.Discard()) // as the program does
	apitest.Main(m, func(c *apitest.Cluster) { cluster1 = c })
}

// served are agents that tests play: what each shows, by the node's name. One that is not there does not answer.
type served map[string]map[string]any

func (s served) Open(_ context.Context, pod *corev1.Pod, _ string) (*view.Client, func(), error) {
	views, ok := s[pod.Spec.NodeName]
	if !ok {
		return nil, nil, errors.New("it does not answer")
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		value, ok := views[r.URL.Path]
		switch {
		case r.URL.Path == "/healthz", r.URL.Path == "/readyz", r.URL.Path == "/metrics":
			_, _ = io.WriteString(w, "ok\n")
		case !ok:
			http.NotFound(w, r)
		default:
			_ = json.NewEncoder(w).Encode(value)
		}
	}))
	return &view.Client{HTTP: server.Client(), Base: server.URL}, server.Close, nil
}

// run plays shoal-node: what is added is kept in views under the digest, and given from there.
func (s served) run(_ context.Context, pod *corev1.Pod, args []string, in io.Reader, out io.Writer) error {
	views, last := s[pod.Spec.NodeName], args[len(args)-1]
	if args[0] == "add" {
		data, err := io.ReadAll(in)
		views[args[2]] = string(data)
		views[view.BlobsPath] = []view.Blob{{Digest: args[2]}}
		return err
	}
	text, ok := views[last].(string)
	if !ok {
		return errors.New("this machine does not hold " + last)
	}
	_, err := io.WriteString(out, text)
	return err
}

// spread are agents among whom what is added to one is at once on all.
type spread struct{ served }

func (s spread) run(ctx context.Context, pod *corev1.Pod, args []string, in io.Reader, out io.Writer) error {
	err := s.served.run(ctx, pod, args, in, out)
	for node, views := range s.served {
		blob := view.Blob{Digest: args[2], Size: 8 << 20}
		if node != pod.Spec.NodeName {
			blob.Fetch = &view.PullFetch{Took: time.Second, FromPeers: blob.Size,
				Peers: map[string]int64{"peer of " + pod.Spec.NodeName: blob.Size}}
		}
		views[view.BlobsPath] = []view.Blob{blob}
	}
	return err
}

// shut are agents whom the user may not ask.
type shut struct{ served }

func (shut) Open(context.Context, *corev1.Pod, string) (*view.Client, func(), error) {
	return nil, nil, &survey.NotAllowedError{What: "you may not create pods/portforward in namespace shoal-system"}
}

// kubectl runs the plugin as kubectl does.
func kubectl(t *testing.T, agents agents, args ...string) (code int, out, errOut string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(file, cluster1.Kubeconfig(), 0o600))
	streams, _, o, e := genericiooptions.NewTestIOStreams()
	p := &plugin{IOStreams: streams, version: "test", flags: genericclioptions.NewConfigFlags(true), agents: agents}
	code = p.run(t.Context(), append([]string{"--kubeconfig", file}, args...))
	return code, o.String(), e.String()
}

func TestHelp_NeedsNoCluster(t *testing.T) {
	t.Parallel()
	for _, verb := range []string{"", "status", "check", "top", "where", "ls", "why", "pin", "unpin", "pins", "preheat",
		"report", "test", "get", "add", "version"} {
		var out bytes.Buffer
		code := Run(t.Context(), "test", strings.Fields(verb+" --help"),
			genericiooptions.IOStreams{In: os.Stdin, Out: &out, ErrOut: &out})
		require.Equal(t, ExitWell, code, verb)
		require.Contains(t, out.String(), "kubectl shoal "+verb, "help has an example")
	}
}

func TestFailures_AreOneLineWithoutAStack(t *testing.T) {
	t.Parallel()
	for what, args := range map[string][]string{
		"an output that is none":          {"status", "-o", "xml"},
		"a verb that is none":             {"stat"},
		"help of a verb that is none":     {"help", "nothing"},
		"a shell that is none":            {"completion", "nothing"},
		"a kubeconfig that is not there":  {"status", "--kubeconfig", "/nonexistent"},
		"an API server that is not there": {"status", "--server", "https://127.0.0.1:1"},
		"a name that is missing":          {"where"},
	} {
		var out, errOut bytes.Buffer
		code := Run(t.Context(), "test", args, genericiooptions.IOStreams{In: os.Stdin, Out: &out, ErrOut: &errOut})
		require.Equal(t, ExitFailed, code, what)
		require.Empty(t, out.String(), what)
		require.True(t, strings.HasPrefix(errOut.String(), "kubectl shoal: "), errOut.String())
		require.NotContains(t, errOut.String(), "goroutine", what)
	}
}

func TestFailures_SayWhatToDo(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"status extra":                        "status takes no arguments, and was given extra",
		"where":                               "where: IMAGE|DIGEST is missing, as in",
		"where a b":                           "where takes IMAGE|DIGEST alone, and was given a b\n",
		"ls node1":                            "ls takes no arguments, and was given node1; ls --node NODE is of one node",
		"get " + some + " layer.tar":          "layer.tar; -o FILE names the file to write",
		"report now.tar.gz":                   "report takes no arguments, and was given now.tar.gz; -f FILE names the file",
		"report -f /nowhere/x":                "there is no folder /nowhere\n",
		"get " + some + " -o /nowhere/x":      "kubectl shoal: there is no folder /nowhere\n",
		"get nginx -o -":                      "kubectl shoal where docker.io/library/nginx:latest prints it",
		"get sha256:cut -o -":                 `"sha256:cut" is no whole digest; kubectl shoal ls lists whole ones`,
		"pin nginx@sha256:cut":                `"nginx@sha256:cut" is no whole digest`,
		"preheat sha256:cut":                  `"sha256:cut" is no whole digest`,
		"test --image nginx@sha256:cut":       `--image: "nginx@sha256:cut" is no whole digest`,
		"top --once":                          "unknown flag: --once. kubectl shoal top --help lists what there is",
		"ls -x":                               "kubectl shoal ls --help lists what there is",
		"--bad":                               "kubectl shoal --help lists what there is",
		"where A:::":                          `"A:::" names no image`,
		"where sha256:555ed8912831":           `"sha256:555ed8912831" is no whole digest`,
		"why sha256:555ed8912831":             `"sha256:555ed8912831" is no whole digest`,
		"pin":                                 "pin: IMAGE… is missing, as in",
		"status --kubeconfig /dev/null":       "no kubeconfig names a cluster, and none answers at http://localhost:8080",
		"version 1":                           "version takes no arguments, and was given 1",
		"statsu":                              "kubectl shoal --help lists what there is",
		"help nothing":                        `unknown command "nothing" for "kubectl shoal". kubectl shoal --help`,
		"help completion bas":                 `did you mean bash? kubectl shoal --help lists what there is`,
		"status --bad":                        "kubectl shoal status --help lists what there is",
		"status --server https://127.0.0.1:1": "the API server does not answer at https://127.0.0.1:1",
	} {
		var out, errOut bytes.Buffer
		Run(t.Context(), "test", strings.Fields(args), genericiooptions.IOStreams{In: os.Stdin, Out: &out, ErrOut: &errOut})
		require.Contains(t, errOut.String(), want, args)
	}
}

func TestUnreached_NamesFilesOfKUBECONFIGThatThereAreNot(t *testing.T) {
	t.Parallel()
	there := filepath.Join(t.TempDir(), "config")
	require.NoError(t, os.WriteFile(there, nil, 0o600))
	require.Empty(t, misled(""))
	require.Empty(t, misled(there))
	require.Equal(t, " (KUBECONFIG says /none, and there is no such file)", misled(there+":/none:"))
}

func TestHelp_LeavesOutWhatKubectlExplains(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	Run(t.Context(), "test", []string{"status", "--help"}, genericiooptions.IOStreams{In: os.Stdin, Out: &out, ErrOut: &out})
	require.NotContains(t, out.String(), "--tls-server-name")
	require.Contains(t, out.String(), "--context")
}

func TestTest_GivesTheRegistrysOwnWords(t *testing.T) {
	t.Parallel()
	image, err := imageOf("ngnix:1.29")
	require.NoError(t, err)
	for what, c := range map[string]struct{ status, body, want string }{
		"an image that is not there": {"404 Not Found",
			`{"errors":[{"code":"MANIFEST_UNKNOWN","message":"HEAD http://10.0.0.1/v2/ngnix: upstream answered 404"}]}`,
			"the registry has no docker.io/library/ngnix:1.29: see how it is spelt"},
		"one that may not be read": {"401 Unauthorized", `{"errors":[{"code":"UNAUTHORIZED","message":"log in"}]}`, "log in"},
		"no answer of a registry":  {"502 Bad Gateway", "<html>", "GET /manifests/1: 502 Bad Gateway"},
	} {
		require.EqualError(t, refused(image, "/manifests/1", c.status, []byte(c.body)), c.want, what)
	}
}

func TestTables_WhatIsTooLongForACellStandsBelowAndOnce(t *testing.T) {
	t.Parallel()
	const long = "the node's kubelet does not answer: dial tcp 10.0.0.3:10250: connect: connection refused"
	for verb, write := range map[string]func(*plugin, *view.Text){
		"where": func(p *plugin, w *view.Text) {
			p.writePlaces(w, "redis:7", []place{{Node: "n1", Problem: long}, {Node: "n2", Problem: "no agent runs there"},
				{Node: "n3", Problem: long}})
		},
		"top": func(_ *plugin, w *view.Text) {
			writeTop(w, []topRow{{Node: "n1", Problem: long}, {Node: "n2", Problem: "no agent runs there"},
				{Node: "n3", Problem: long}}, time.Now())
		},
		"test": func(p *plugin, w *view.Text) {
			p.writeTested(w, []tested{{Node: "n1", Problem: long}, {Node: "n2", Problem: "no agent runs there"},
				{Node: "n3", Problem: long}}, false)
		},
	} {
		var out view.Text
		write(&plugin{}, &out)
		require.Equal(t, 2, strings.Count(out.String(), ", see below"), "%s: %s", verb, out.String())
		require.True(t, strings.HasSuffix(out.String(), "\nn1, n3: "+long+"\n"), "%s: %s", verb, out.String())
		require.Regexp(t, "n2 .*no agent runs there", out.String(), verb)
		for line := range strings.Lines(strings.TrimSuffix(out.String(), "n1, n3: "+long+"\n")) {
			require.Less(t, len(line), 110, verb)
		}
	}
}

func TestTest_SaysNothingOfARegistryWhereItsOwnContentDidNotArrive(t *testing.T) {
	t.Parallel()
	var out view.Text
	(&plugin{}).writeTested(&out, []tested{{Node: "node1", Bytes: 8 << 20, Had: true},
		{Node: "node2", Problem: "it did not come in time"}}, false)
	require.Contains(t, out.String(), "it did not come in time")
	require.NotContains(t, out.String(), "registry sent")
}

func TestTest_ARateIsOfWhatCameWhileItCame(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		tested
		want string
	}{
		"all of it came": {tested{Took: 4 * time.Second, Fetched: 2 * time.Second, Bytes: 8 * mib, Peers: 8 * mib}, "4.0MiB/s"},
		"half of it was there from an earlier try": {tested{Took: 4 * time.Second, Fetched: 2 * time.Second, Bytes: 8 * mib,
			Peers: 3 * mib, Upstream: mib}, "2.0MiB/s"},
		"the agent tells nothing of its fetch": {tested{Took: 4 * time.Second, Bytes: 8 * mib, Peers: 8 * mib}, "-"},
	} {
		var out view.Text
		(&plugin{}).writeTested(&out, []tested{c.tested}, true)
		row := strings.Fields(strings.Split(out.String(), "\n")[1])
		require.Equal(t, c.want, row[3], "%s: %s", what, out.String())
	}
}

// makeOperator makes the pod of an operator that is ready.
func makeOperator(t *testing.T, c *apitest.Cluster) {
	t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "operator", Namespace: apitest.Namespace, Labels: survey.OperatorLabels},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "operator", Image: "shoal"}}}}
	require.NoError(t, c.Client.Create(t.Context(), pod))
	pod.Status.Phase = corev1.PodRunning
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "operator", Ready: true}}
	require.NoError(t, c.Client.Status().Update(t.Context(), pod))
}

// TestVerbs plays them in turn on one cluster: before there is anything, with two nodes, and with pins.
func TestVerbs(t *testing.T) {
	t.Parallel()
	c := apitest.Require(t, cluster1)
	ctx := t.Context()
	for _, args := range [][]string{{"top"}, {"where", "redis:7"}, {"ls"}, {"why"}, {"test"}, {"get", some}} {
		code, out, errOut := kubectl(t, served{}, args...)
		require.Equal(t, ExitFailed, code, args)
		require.Equal(t, "kubectl shoal: no agent runs in this cluster; see kubectl shoal check\n", errOut, args)
		require.Empty(t, out, args)
	}
	code, out, errOut := kubectl(t, served{}, "status")
	require.Equal(t, ExitNotWell, code, errOut)
	require.Contains(t, out, "NotInstalled", "before an installation")
	code, _, errOut = kubectl(t, served{}, "status", "--wait", "--timeout", "1s")
	require.Equal(t, ExitTimedOut, code, errOut)
	code, out, errOut = kubectl(t, served{}, "check", "--pre")
	require.Equal(t, ExitWell, code, out+errOut)
	require.Contains(t, out, "pod-security.kubernetes.io/enforce=privileged")

	require.NoError(t, c.Client.Create(ctx, &v1alpha1.Swarm{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SwarmName}}))
	agents := served{}
	operator := c.ClientFor(t, c.Impersonate("", apitest.OperatorServiceAccount))
	for i, node := range []string{"node1", "node2"} {
		peer := apitest.NewPeer(node, "12D3KooWBhSnGQkzYtGRVRGdQFDwNxQvXyqHLSSrkMfTwRjgDYa"+string(rune('K'+i)))
		agent := c.ClientFor(t, c.Impersonate(node, apitest.AgentServiceAccount))
		require.NoError(t, agent.Create(ctx, peer))
		judged := peer.DeepCopy()
		judged.Status = v1alpha1.PeerStatus{Admitted: true, AdmittedPeerID: peer.Spec.PeerID}
		require.NoError(t, operator.Status().Patch(ctx, judged, client.MergeFrom(peer)))
		cache := &v1alpha1.NodeCache{ObjectMeta: metav1.ObjectMeta{Name: node}}
		require.NoError(t, operator.Create(ctx, cache))
		at := metav1.Now()
		reported := cache.DeepCopy()
		reported.Status = v1alpha1.NodeCacheStatus{ReportedAt: &at,
			Counters: v1alpha1.CacheCounters{Hits: 3, Misses: 1}}
		require.NoError(t, agent.Status().Patch(ctx, reported, client.MergeFrom(cache)))
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "agent-" + node, Namespace: apitest.Namespace, Labels: survey.AgentLabels,
				Annotations: map[string]string{corev1.LastAppliedConfigAnnotation: `{"name":"MY_PAT","value":"hunter2"}`}},
			Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "agent", Image: "shoal",
				Env: []corev1.EnvVar{{Name: "MY_PAT", Value: "hunter2"}}}}},
		}
		require.NoError(t, c.Client.Create(ctx, pod))
		pod.Status.Phase = corev1.PodRunning
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "agent", Ready: true}}
		require.NoError(t, c.Client.Status().Update(ctx, pod))
		agents[node] = map[string]any{
			view.NodePath: view.Node{Version: "test", PeerID: "peer of " + node}, view.PeersPath: []view.Peer{{ID: "other"}}, view.RegistriesPath: []view.Registry{},
			view.FetchesPath: []view.Fetch{{Digest: "sha256:0123456789abcdef", Repository: "docker.io/library/redis",
				Size: 100, Present: 50, FromPeers: 50}},
			view.BlobsPath: []view.Blob{{Digest: "sha256:0123456789abcdef", Size: 100, Source: "store"}},
			view.ImagePath: view.Image{Name: "redis:7", Digest: "sha256:aa", Complete: i == 0,
				Parts: []view.ImagePart{{Digest: "sha256:aa", Size: 100, Held: i == 0}}},
			view.PullsPath: []view.Pull{{Repository: "docker.io/library/redis", Reference: "7", Started: time.Now(),
				Took:  3 * time.Second,
				Parts: []view.PullPart{{Kind: "manifest", Resolve: 2 * time.Second, Authorize: 2 * time.Second}}}},
		}
	}
	code, out, errOut = kubectl(t, spread{agents}, "test")
	require.Equal(t, ExitNotWell, code, "and at once")
	require.Empty(t, out)
	require.Contains(t, errOut, "test has a pin bring the bytes to the nodes, and no operator is ready")
	require.Contains(t, errOut, "OperatorMissing: there is no operator's pod")
	code, out, errOut = kubectl(t, agents, "check")
	require.Equal(t, ExitNotWell, code, errOut)
	require.Contains(t, out, "! Operators that are ready: 0 of 0")
	makeOperator(t, c)
	require.NoError(t, c.Client.Create(ctx, &v1alpha1.ArtifactPin{
		ObjectMeta: metav1.ObjectMeta{Name: "shoal", Namespace: apitest.Namespace,
			Labels: map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedByOperator}},
		Spec: v1alpha1.ArtifactPinSpec{Artifacts: []v1alpha1.Artifact{{Image: "shoal/shoal-node:1"}}}}))

	code, out, errOut = kubectl(t, agents, "status")
	require.Equal(t, ExitWell, code, out+errOut)
	require.Contains(t, out, "2 running, 2 ready, 2 admitted")
	require.Contains(t, out, "75% of 8 requests")
	code, out, _ = kubectl(t, agents, "status", "-o", "json")
	require.Equal(t, ExitWell, code)
	var s survey.State
	require.NoError(t, json.Unmarshal([]byte(out), &s))
	require.Equal(t, 2, s.Ready)
	code, out, errOut = kubectl(t, agents, "check")
	require.Equal(t, ExitWell, code, out+errOut)
	require.Contains(t, out, "Nothing is amiss.")
	require.Contains(t, out, "✓ Operators that are ready: 1 of 1")
	require.Contains(t, out, "✓ Agents that run and answer: 2 of 2")
	code, out, _ = kubectl(t, agents, "check", "-o", "json")
	require.Equal(t, ExitWell, code)
	require.Contains(t, out, `"findings": []`, "a list also where nothing is amiss")
	code, out, _ = kubectl(t, served{"node1": agents["node1"]}, "check")
	require.Equal(t, ExitNotWell, code)
	require.Contains(t, out, "✗ AgentSilent: node2: its agent does not answer")
	require.Contains(t, out, "! Agents that run and answer: 1 of 2")
	require.Contains(t, out, "kubectl delete pod -n shoal-system agent-node2")
	code, out, errOut = kubectl(t, served{"node1": agents["node1"]}, "check", "--wait", "--timeout", "1s")
	require.Equal(t, ExitTimedOut, code)
	require.Contains(t, errOut, "waiting until nothing is wrong, for 1s at most")
	require.Contains(t, out, "✗ AgentSilent: node2", "it says what it has waited for")

	requireShut(t)
	requireForms(t, agents, "status", "check", "check --pre", "top", "where redis:7", "ls", "why", "why nginx", "pins",
		"pin redis:7 --name form", "pins", "unpin form", "unpin form", "version", "report -f "+filepath.Join(t.TempDir(), "r"))
	code, out, errOut = kubectl(t, agents, "check", "--agents-namespace", "elsewhere")
	require.Equal(t, ExitNotWell, code, out+errOut)
	require.Contains(t, out, "there is neither an agent's pod nor a DaemonSet of agents in namespace elsewhere")

	code, out, _ = kubectl(t, agents, "where", "redis:7")
	require.Equal(t, ExitWell, code)
	require.Contains(t, out, "All of docker.io/library/redis:7 is on 1 of 2 nodes.")
	require.NotContains(t, out, "node2", "who holds nothing is left out")
	code, out, _ = kubectl(t, agents, "where", "redis:7", "-o", "wide")
	require.Equal(t, ExitWell, code)
	require.Contains(t, out, "node2", "but for those who want all")
	code, out, _ = kubectl(t, agents, "ls", "-o", "wide")
	require.Equal(t, ExitWell, code)
	require.Contains(t, out, "node1,node2")
	code, out, _ = kubectl(t, agents, "why", "redis:7", "--node", "node2")
	require.Equal(t, ExitWell, code)
	require.Contains(t, out, "on node2")
	require.Contains(t, out, "the registry took 2s to say what the tag names")
	code, _, errOut = kubectl(t, agents, "why", "nginx")
	require.Equal(t, ExitNotWell, code)
	require.Contains(t, errOut, "no agent remembers a pull of docker.io/library/nginx:latest in the last two hours")
	require.Contains(t, errOut, "kubectl shoal check, or the name is misspelt.")
	code, out, _ = kubectl(t, agents, "why", "nginx", "-o", "json")
	require.Equal(t, ExitNotWell, code)
	require.Equal(t, "[]\n", out, "a list for scripts also where there is nothing")
	code, out, _ = kubectl(t, served{"node1": agents["node1"]}, "why", "redis:7")
	require.Equal(t, ExitNotWell, code, "what is not all that agents remember says so")
	require.Contains(t, out, "on node1")
	code, _, errOut = kubectl(t, served{"node1": agents["node1"]}, "why", "nginx")
	require.Equal(t, ExitNotWell, code)
	require.Contains(t, errOut, "no agent that answers remembers a pull of docker.io/library/nginx:latest in the last two hours")
	require.NotContains(t, errOut, "the runtime did not ask")
	code, out, errOut = kubectl(t, served{"node1": agents["node1"]}, "ls")
	require.Equal(t, ExitNotWell, code, "a list that is not whole says so")
	require.Contains(t, out, "sha256:0123456789abcdef")
	require.Contains(t, errOut, "node2: it does not answer")
	code, out, _ = kubectl(t, served{"node1": agents["node1"]}, "top")
	require.Equal(t, ExitNotWell, code, "the same of what moves")
	require.Contains(t, out, "it does not answer")
	code, out, _ = kubectl(t, agents, "pin", "docker.io/library/redis:7", "-o", "yaml", "--name", "seven")
	require.Equal(t, ExitWell, code)
	require.Contains(t, out, "kind: ArtifactPin")
	require.NotContains(t, out, "managedFields")
	code, out, _ = kubectl(t, agents, "pins", "-o", "json")
	require.Equal(t, ExitWell, code)
	require.Contains(t, out, `"kind": "ArtifactPin"`)
	code, _, _ = kubectl(t, agents, "unpin", "seven")
	require.Equal(t, ExitWell, code)
	code, out, _ = kubectl(t, agents, "top")
	require.Equal(t, ExitWell, code)
	require.Contains(t, out, "50%")

	code, out, errOut = kubectl(t, agents, "pin", "docker.io/library/redis:7", "--replicas", "2")
	require.Equal(t, ExitWell, code, errOut)
	require.Contains(t, out, "artifactpin default/pin-redis-7-")
	code, _, errOut = kubectl(t, agents, "pin", "https://Redis")
	require.Equal(t, ExitFailed, code)
	require.Contains(t, errOut, `"https://Redis" names no image`)
	code, _, errOut = kubectl(t, agents, "preheat", "docker.io/library/redis:8", "--wait", "--timeout", "1s", "--name",
		"warm")
	require.Equal(t, ExitTimedOut, code, "nobody brings it here")
	require.Contains(t, errOut, "artifactpin default/warm made")
	var warm v1alpha1.ArtifactPin
	require.NoError(t, c.Client.Get(ctx, types.NamespacedName{Namespace: "default", Name: "warm"}, &warm))
	require.Equal(t, v1alpha1.AllNodes, warm.Spec.Replicas.StrVal)
	require.Equal(t, 6*time.Hour, warm.Spec.Expiry.TTL.Duration, "it ends by itself")
	code, _, errOut = kubectl(t, agents, "preheat", "redis:8", "--name", "warm", "--ttl", "7h")
	require.Equal(t, ExitWell, code, errOut)
	again := warm
	require.NoError(t, c.Client.Get(ctx, client.ObjectKeyFromObject(&warm), &again))
	require.Equal(t, warm.UID, again.UID, "the copies stay those of the same pin")
	require.InDelta(t, 7*time.Hour, again.Spec.Expiry.TTL.Duration, float64(30*time.Minute))
	code, out, _ = kubectl(t, agents, "pins")
	require.Equal(t, ExitWell, code)
	require.Contains(t, out, "0/0")
	expire := func(name string, generation int64) {
		p := &v1alpha1.ArtifactPin{}
		require.NoError(t, c.Client.Get(ctx, types.NamespacedName{Namespace: "default", Name: name}, p))
		p.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionExpired, Status: metav1.ConditionTrue,
			Reason: v1alpha1.ReasonExpired, LastTransitionTime: metav1.Now(), ObservedGeneration: generation}}
		require.NoError(t, c.Client.Status().Update(ctx, p))
	}
	for _, args := range [][]string{{"preheat", "redis:8", "--name", "old"},
		{"pin", "redis:8", "--name", "kept", "--ttl", "1h"}} {
		code, _, errOut = kubectl(t, agents, args...)
		require.Equal(t, ExitWell, code, errOut)
		expire(args[3], 1)
	}
	code, _, errOut = kubectl(t, agents, "preheat", "redis:8", "--name", "longer")
	require.Equal(t, ExitWell, code, errOut)
	expire("longer", 0) // as it was before somebody gave it more time
	code, _, errOut = kubectl(t, agents, "preheat", "redis:8", "--name", "new")
	require.Equal(t, ExitWell, code, errOut)
	_, out, _ = kubectl(t, agents, "pins")
	require.NotContains(t, out, "old", "a preheat that has ended goes with the next")
	require.Contains(t, out, "kept", "what others made stays")
	require.Contains(t, out, "longer", "one that was changed since has not ended")
	code, _, errOut = kubectl(t, agents, "unpin", "kept", "new", "longer")
	require.Equal(t, ExitWell, code, errOut)
	code, _, errOut = kubectl(t, agents, "pin", "redis:7", "--replicas", "2")
	require.Equal(t, ExitWell, code, errOut)
	code, out, errOut = kubectl(t, agents, "unpin", "redis:7", "warm")
	require.Equal(t, ExitWell, code, errOut)
	require.Equal(t, 2, strings.Count(out, "deleted"))
	code, _, errOut = kubectl(t, agents, "unpin", "warm")
	require.Equal(t, ExitNotWell, code)
	require.Contains(t, errOut, "no pin in namespace default has the name warm, or keeps that image alone; kubectl shoal "+
		"pins -A lists them")

	model := filepath.Join(t.TempDir(), "model")
	require.NoError(t, os.WriteFile(model, []byte("weights"), 0o600))
	code, out, errOut = kubectl(t, agents, "add", model, "--node", "node2")
	require.Equal(t, ExitWell, code, errOut)
	added := strings.TrimSpace(out)
	require.Equal(t, digest.FromString("weights").String(), added, "the digest alone, for scripts")
	requireForms(t, agents, "add "+model)
	agents["node1"][view.BlobsPath] = []view.Blob{}
	saved := filepath.Join(t.TempDir(), "saved")
	code, _, errOut = kubectl(t, agents, "get", added, "-o", saved)
	require.Equal(t, ExitWell, code, errOut)
	require.FileExists(t, saved)
	code, out, _ = kubectl(t, agents, "get", added)
	require.Equal(t, ExitWell, code)
	require.Equal(t, "weights", out)
	agents["node2"][added] = "other bytes"
	code, _, errOut = kubectl(t, agents, "get", added, "-o", saved+"2")
	require.Equal(t, ExitFailed, code)
	require.Contains(t, errOut, "do not match")
	require.NoFileExists(t, saved+"2", "nothing wrong is left under the name")
	agents["node2"][view.BlobsPath] = []view.Blob{}
	code, _, errOut = kubectl(t, agents, "get", added)
	require.Equal(t, ExitNotWell, code)
	require.Contains(t, errOut, "none of 2 nodes holds")
	code, _, errOut = kubectl(t, agents, "get", added, "--node", "node1")
	require.Equal(t, ExitNotWell, code)
	require.Equal(t, "node1 does not hold "+added+"; kubectl shoal where "+added+" says who does\n", errOut)

	code, out, errOut = kubectl(t, spread{agents}, "test")
	require.Equal(t, ExitWell, code, out+errOut)
	require.Equal(t, 1, strings.Count(out, "right"), out)
	require.Equal(t, 1, strings.Count(out, "had it from you"), out)
	require.Contains(t, out, "Copies that nodes sent: node1 1.00.", "by the nodes' names")
	code, out, errOut = kubectl(t, spread{agents}, "test", "-o", "json")
	require.Equal(t, ExitWell, code, out+errOut)
	var all []tested
	require.NoError(t, json.Unmarshal([]byte(out), &all))
	require.Equal(t, map[string]int64{"node1": 8 << 20}, all[1].From)
	require.Equal(t, time.Second, all[1].Fetched)
	agents["node2"][view.BlobsPath] = []view.Blob{}
	code, out, errOut = kubectl(t, agents, "test", "--timeout", "5s")
	require.Equal(t, ExitNotWell, code)
	require.Contains(t, out, "it did not come in time")
	require.Contains(t, errOut, "no operator has looked at the pin that was to bring it")
	var left v1alpha1.ArtifactPinList
	require.NoError(t, c.Client.List(ctx, &left, client.InNamespace("default")))
	require.Empty(t, left.Items, "nothing stays pinned")

	file := filepath.Join(t.TempDir(), "report.tar.gz")
	agents["node1"][view.PullsPath] = []view.Pull{{Parts: []view.PullPart{{Problem: "GET https://me:hunter2@registry.example/v2/"}}}}
	code, out, errOut = kubectl(t, agents, "report", "-f", file)
	require.Equal(t, ExitWell, code, errOut)
	require.Contains(t, out, "files")
	text := unpack(t, file)
	require.Contains(t, text, "2 running, 2 ready, 2 admitted")
	require.Contains(t, text, "https://REMOVED@registry.example")
	require.NotContains(t, text, "hunter2")
	for _, part := range []string{"cachepolicies.yaml", "nodes.yaml", "events.yaml", "pods/operators.yaml", "Kubernetes v1."} {
		require.Contains(t, text, part)
	}
}

func unpack(t *testing.T, file string) string {
	t.Helper()
	f, err := os.Open(file)
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	zipped, err := gzip.NewReader(f)
	require.NoError(t, err)
	var all strings.Builder
	for r := tar.NewReader(zipped); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all.String()
		}
		require.NoError(t, err)
		data, err := io.ReadAll(r)
		require.NoError(t, err)
		all.WriteString(h.Name + "\n" + string(data))
	}
}
