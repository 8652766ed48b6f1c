package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/yaml"

	kruntime "k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"

	"github.com/shoal-cache/shoal/api/apitest"
	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/operator/internal/survey"
)

// alone runs the command without a cluster of the tests.
func alone(t *testing.T, args ...string) (code int, out, errOut string) {
	t.Helper()
	var o, e bytes.Buffer
	code = Run(t.Context(), "test", args, genericiooptions.IOStreams{In: os.Stdin, Out: &o, ErrOut: &e})
	require.NotContains(t, e.String(), "goroutine", "a stack")
	return code, o.String(), e.String()
}

// kubeconfig is one that names a server and a user.
func kubeconfig(t *testing.T, server, user string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: %q}}]
users: [{name: u, user: %s}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`, server, user), 0o600))
	return file
}

// silent is an API server that takes connections and says nothing.
func silent(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return "http://" + l.Addr().String()
}

// answering is an API server that answers everything with this.
func answering(t *testing.T, code int, body string) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func TestClock_IsTheAPIServersAndNotThatOfTheUsersMachine(t *testing.T) {
	t.Parallel()
	for what, off := range map[string]time.Duration{"ahead": -20 * time.Minute, "behind": 20 * time.Minute} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", time.Now().Add(off).UTC().Format(http.TimeFormat))
			w.WriteHeader(http.StatusNotFound)
		}))
		defer server.Close()
		file := kubeconfig(t, server.URL, "{token: t}")
		p := &plugin{flags: genericclioptions.NewConfigFlags(true), agents: served{}}
		p.flags.KubeConfig = &file
		_, err := p.look(t.Context())
		require.Error(t, err)
		require.WithinDuration(t, time.Now().Add(off), p.clock.Now(), time.Minute, "this machine is %s", what)
	}
}

func TestKubeconfig_WhateverIsOddAboutItIsNamed(t *testing.T) {
	t.Parallel()
	ended := `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Unauthorized","code":401}`
	broken := filepath.Join(t.TempDir(), "broken")
	require.NoError(t, os.WriteFile(broken, []byte("clusters: [}"), 0o600))
	good := kubeconfig(t, "http://127.0.0.1:1", "{token: t}")
	for what, c := range map[string]struct {
		args []string
		want string
	}{
		"a context that is not there": {[]string{"status", "--kubeconfig", good, "--context", "other"},
			`context "other" does not exist`},
		"a cluster that is not there": {[]string{"status", "--kubeconfig", good, "--cluster", "other"},
			`cluster "other" does not exist`},
		"a file that is none": {[]string{"status", "--kubeconfig", broken}, broken},
		"a login that has ended": {[]string{"status", "--kubeconfig",
			kubeconfig(t, answering(t, http.StatusUnauthorized, ended), "{token: old}")},
			"the API server does not take your credentials"},
		"a program to log in with that is not there": {[]string{"status", "--kubeconfig", kubeconfig(t,
			"https://127.0.0.1:1", "{exec: {apiVersion: client.authentication.k8s.io/v1, command: no-such-program, "+
				"interactiveMode: Never}}")},
			"the program that your kubeconfig names to log in with fails: exec: executable no-such-program not found"},
		"a server that is no API server": {[]string{"status", "--kubeconfig",
			kubeconfig(t, answering(t, http.StatusOK, "<html>"), "{token: t}")}, "kubectl shoal: "},
		"a server that is silent": {[]string{"status", "--kubeconfig", kubeconfig(t, silent(t), "{token: t}"),
			"--request-timeout", "300ms"}, "gave no answer in time; --request-timeout gives it longer"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			code, out, errOut := alone(t, c.args...)
			require.Equal(t, ExitFailed, code, errOut)
			require.Empty(t, out)
			require.Contains(t, errOut, c.want)
			require.True(t, strings.HasPrefix(errOut, "kubectl shoal: "), errOut)
		})
	}
}

// A server that is silent keeps nobody for longer than he wants to wait.
func TestWait_EndsInTimeAlsoWhereTheAPIServerIsSilent(t *testing.T) {
	t.Parallel()
	file := kubeconfig(t, silent(t), "{token: t}")
	for _, verb := range []string{"status", "check", "pin redis:7", "preheat redis:7"} {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			code, out, errOut := alone(t, append(strings.Fields(verb), "--kubeconfig", file, "--wait", "--timeout", "300ms")...)
			require.Less(t, time.Since(start), patience/2)
			require.Equal(t, ExitTimedOut, code, errOut)
			require.Empty(t, out)
			require.Contains(t, errOut, "the API server gave no answer within 300ms")
		})
	}
}

func TestFlags_ThatMakeNoSenseAreRefused(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"why --most 0":              "--most 0: want 1 or more",
		"why --most -1":             "--most -1: want 1 or more",
		"top --agent-timeout 0s":    "--agent-timeout 0s: want more than 0",
		"status --wait --timeout 0": "--timeout 0s: want more than 0",
		"pin redis:7 --ttl -1h":     "--ttl -1h0m0s: want 0",
		"pin redis:7 --replicas 0 --server http://127.0.0.1:1":        "--replicas 0: want 1 or more",
		"preheat redis:7 --replicas -3 --server http://127.0.0.1:1":   "--replicas -3: want 1 or more",
		"preheat redis:7 --ttl 0":                                     "--ttl 0: pins of preheat end after a while",
		"pin redis:7 --node-selector =,= --server http://127.0.0.1:1": "--node-selector",
		"status -o table":         `--output "table": want json, yaml or wide`,
		"top --agent-timeout ten": "invalid argument",
	} {
		code, out, errOut := alone(t, strings.Fields(args)...)
		require.Equal(t, ExitFailed, code, args)
		require.Empty(t, out, args)
		require.Contains(t, errOut, want, args)
	}
}

func TestCompletion_KnowsVerbsFlagsAndTheirValues(t *testing.T) {
	t.Parallel()
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		code, out, errOut := alone(t, "completion", shell)
		require.Equal(t, ExitWell, code, errOut)
		require.Contains(t, out, "kubectl-shoal", shell)
	}
	code, out, _ := alone(t, "__complete", "status", "-o", "")
	require.Equal(t, ExitWell, code)
	require.Equal(t, "json\nyaml\nwide\n:4\n", out)
	_, out, _ = alone(t, "__complete", "wh")
	require.Contains(t, out, "where\t")
	require.Contains(t, out, "why\t")
	_, out, _ = alone(t, "__complete", "status", "")
	require.Equal(t, ":4\n", out, "status takes no file")
	_, out, _ = alone(t, "__complete", "add", "")
	require.Equal(t, ":0\n", out, "add does")
	file := kubeconfig(t, silent(t), "{token: t}")
	_, out, _ = alone(t, "__complete", "--kubeconfig", file, "--request-timeout", "300ms", "why", "--node", "")
	require.Equal(t, ":1\n", out, "an API server that is silent completes nothing")
}

// TestRights_AreNamedByEachVerbThatLacksThem asks as somebody who may nothing, and then as one who may read the kinds
// of Shoal alone.
func TestRights_AreNamedByEachVerbThatLacksThem(t *testing.T) {
	t.Parallel()
	c := apitest.Require(t, cluster1)
	model := filepath.Join(t.TempDir(), "model")
	require.NoError(t, os.WriteFile(model, []byte("weights"), 0o600))
	for _, verb := range []string{"status", "status --wait", "check", "check --wait", "top", "where redis:7", "ls", "why",
		"report", "test", "get " + some, "add " + model, "pins", "pin redis:7", "pin redis:7 --wait", "unpin x",
		"preheat redis:7"} {
		code, out, errOut := kubectl(t, served{}, append(strings.Fields(verb), "--as", "nobody")...)
		require.Equal(t, ExitFailed, code, verb+errOut)
		require.Empty(t, out, verb)
		require.Regexp(t, `User "nobody" cannot (get|list) resource "(swarms|artifactpins)"`, errOut, verb)
		require.Contains(t, errOut, survey.RightsLink, verb)
	}
	code, out, errOut := kubectl(t, served{}, "check", "--pre", "--as", "nobody")
	require.Equal(t, ExitNotWell, code, errOut)
	require.Contains(t, out, "! You may not list nodes")
	require.Contains(t, out, "✗ NotAllowed: you may not create customresourcedefinitions")

	meta := metav1.ObjectMeta{Name: "reads-shoal"}
	require.NoError(t, c.Client.Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{
		APIGroups: []string{v1alpha1.GroupVersion.Group}, Resources: []string{"*"}, Verbs: []string{"get", "list"}}}}))
	require.NoError(t, c.Client.Create(t.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: meta,
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: meta.Name},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: "reader"}}}))
	for _, verb := range []string{"top", "where redis:7", "ls", "why", "test", "get " + some, "add " + model} {
		for again := time.Tick(100 * time.Millisecond); ; <-again { // until the API server has heard of the role
			code, _, errOut = kubectl(t, served{}, append(strings.Fields(verb), "--as", "reader")...)
			if !strings.Contains(errOut, "swarms") || t.Context().Err() != nil {
				break
			}
		}
		require.Equal(t, ExitFailed, code, verb)
		require.Contains(t, errOut, "you may not list pods in namespace shoal-system, where Shoal's agents are looked for")
		require.Contains(t, errOut, survey.RightsLink, verb)
	}
	_, out, errOut = kubectl(t, served{}, "status", "--as", "reader")
	require.Contains(t, out, "you may not list nodes, so nothing is said about them", errOut)
	require.NotContains(t, out, "running", "who may not see pods is not told that none runs")
}

// Who may not forward ports learns just that. The agents are not to blame.
func requireShut(t *testing.T) {
	t.Helper()
	code, out, errOut := kubectl(t, shut{}, "check")
	require.Equal(t, ExitWell, code, out+errOut)
	require.Contains(t, out, "! Agents: not asked: you may not create pods/portforward in namespace shoal-system")
	require.NotContains(t, out, survey.ReasonAgentSilent)
	for _, verb := range []string{"top", "where redis:7", "ls", "why", "get " + some} {
		code, out, errOut := kubectl(t, shut{}, strings.Fields(verb)...)
		require.Equal(t, ExitFailed, code, verb)
		require.Empty(t, out, verb)
		require.Contains(t, errOut, "you may not create pods/portforward in namespace shoal-system", verb)
		require.Contains(t, errOut, survey.RightsLink, verb)
	}
}

func TestOutput_WhatAgentsSayForgesNoLine(t *testing.T) {
	t.Parallel()
	verbs := func(said string) map[string]func(*plugin, *view.Text) {
		found := []survey.Finding{{Reason: said, Grave: true, Node: "node1", Message: said, Mend: said, Link: said}}
		return map[string]func(*plugin, *view.Text){
			"status": func(p *plugin, w *view.Text) {
				p.writeState(w, survey.State{Findings: found, Nodes: []survey.NodeState{{Version: said, Zone: said}}})
			},
			"check": func(p *plugin, w *view.Text) { p.writeChecked(w, checked{Findings: found}) },
			"check, of what is well": func(p *plugin, w *view.Text) {
				p.writeChecked(w, checked{Looked: []looked{{What: said}}})
			},
			"where": func(p *plugin, w *view.Text) {
				p.writePlaces(w, "redis:7", []place{{Node: "node1", Problem: said}})
			},
			"top": func(_ *plugin, w *view.Text) {
				writeTop(w, []topRow{{Problem: said}, {Fetches: []view.Fetch{{Repository: said}}}}, time.Now())
			},
			"ls": func(p *plugin, w *view.Text) {
				p.writeListed(w, []listed{{Blob: view.Blob{MediaType: said}}})
			},
			"pins": func(_ *plugin, w *view.Text) {
				writePins(w, []v1alpha1.ArtifactPin{{Status: v1alpha1.ArtifactPinStatus{Summary: said}}})
			},
			"test": func(p *plugin, w *view.Text) { p.writeTested(w, []tested{{Problem: said}}, false) },
			"test, of a sender that nobody knows": func(p *plugin, w *view.Text) {
				p.writeTested(w, []tested{{Bytes: 1, From: map[string]int64{said: 1}}}, true)
			},
		}
	}
	const evil = "x\r\n✗ Forged:\t\x1b[2J\n    mend: \u009b2J"
	for verb := range verbs("") {
		written := func(said string) string {
			var out bytes.Buffer
			p := &plugin{IOStreams: genericiooptions.IOStreams{Out: &out}}
			write := verbs(said)[verb]
			require.NoError(t, p.print(nil, func(w *view.Text) { write(p, w) }))
			return out.String()
		}
		require.Equal(t, strings.Count(written("x"), "\n"), strings.Count(written(evil), "\n"), verb)
		require.NotRegexp(t, "[\x1b\r\u009b]", written(evil), verb)
		require.Contains(t, written(evil), `\u001b[2J`, verb)
	}
}

func TestOutput_WhatAgentsSayOfPinsForgesNoLineAndEndsNoCommand(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p := &plugin{IOStreams: genericiooptions.IOStreams{ErrOut: &out}}
	p.say("  %s: %s", "node1", "x\r\n✗ Forged\x1b[32m")
	require.Equal(t, "  node1: x ✗ Forged\\u001b[32m\n", out.String())
	for what, c := range map[string]struct {
		part, whole int64
		filled      int
	}{
		"half": {1, 2, 10}, "nothing of nothing": {0, 0, 0}, "more than all": {3, 2, 20}, "less than nothing": {-1, 2, 0},
		"more than can be": {600_000_000_000_000_000, 1, 20}, "as much as can be": {math.MaxInt64, math.MaxInt64, 20},
	} {
		require.Equal(t, c.filled, strings.Count(bar(c.part, c.whole), "#"), what)
	}
}

// forging is an agent whose answer has lines of its own.
type forging struct{ served }

func (forging) Open(context.Context, *corev1.Pod, string) (*view.Client, func(), error) {
	return nil, nil, errors.New("x\n✗ Forged")
}

func TestOutput_WhyAnAgentDoesNotAnswerForgesNoLine(t *testing.T) {
	t.Parallel()
	streams, _, _, errOut := genericiooptions.NewTestIOStreams()
	p := &plugin{IOStreams: streams, flags: genericclioptions.NewConfigFlags(true), agents: forging{},
		api: fake.NewClientBuilder().WithScheme(kindsOf(t)).WithObjects(agentPod()).Build()}
	require.Equal(t, ExitFailed, p.run(t.Context(), []string{"get", some}))
	require.Equal(t, 1, strings.Count(errOut.String(), "\n"), errOut)
	require.Contains(t, errOut.String(), "x ✗ Forged")
}

func TestTop_AListIsAListAlsoWhereItIsEmpty(t *testing.T) {
	t.Parallel()
	streams, _, out, errOut := genericiooptions.NewTestIOStreams()
	p := &plugin{IOStreams: streams, flags: genericclioptions.NewConfigFlags(true), agents: forging{},
		api: fake.NewClientBuilder().WithScheme(kindsOf(t)).WithObjects(agentPod()).Build()}
	require.Equal(t, ExitNotWell, p.run(t.Context(), []string{"top", "-o", "json"}), errOut)
	require.Contains(t, out.String(), `"fetches": []`)
}

// One node's agent runs, and one's does not. Who asks for what the nodes hold is told that one did not answer.
func TestNodes_OneWithoutAnAgentIsNamedByEachVerbThatAsksAll(t *testing.T) {
	t.Parallel()
	waits := agentPod()
	waits.Name, waits.Spec.NodeName, waits.Status.Phase = "waits", "node2", corev1.PodPending
	peer := &v1alpha1.Peer{ObjectMeta: metav1.ObjectMeta{Name: "node3"}}
	agents := served{"node1": {
		view.FetchesPath: []view.Fetch{}, view.BlobsPath: []view.Blob{}, view.PullsPath: []view.Pull{},
		view.ImagePath: view.Image{Complete: true, Digest: some, Parts: []view.ImagePart{{Held: true, Size: 1}}}}}
	for verb, want := range map[string]struct {
		code int
		says string
	}{
		"where redis:7": {ExitWell, "No answer came from 2 nodes, which may hold it too.\n"},
		"ls":            {ExitNotWell, "node3: no agent runs there"},
		"top":           {ExitNotWell, "node3   no agent runs there"},
		"why":           {ExitNotWell, "no agent that answers remembers a pull in the last two hours"},
		"get " + some:   {ExitFailed, "node3 did not answer: no agent runs there"},
	} {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			streams, _, out, errOut := genericiooptions.NewTestIOStreams()
			p := &plugin{IOStreams: streams, flags: genericclioptions.NewConfigFlags(true), agents: agents,
				api: fake.NewClientBuilder().WithScheme(kindsOf(t)).WithObjects(agentPod(), waits.DeepCopy(),
					peer.DeepCopy()).Build()}
			require.Equal(t, want.code, p.run(t.Context(), strings.Fields(verb)), out.String()+errOut.String())
			require.Contains(t, out.String()+errOut.String(), want.says)
		})
	}
}

// withPeer are a node's Peer and NodeCache, as its agent and the operator have left them.
func withPeer(node string) []client.Object {
	id := "12D3KooW" + node
	return []client.Object{
		&v1alpha1.Peer{ObjectMeta: metav1.ObjectMeta{Name: node}, Spec: v1alpha1.PeerSpec{PeerID: id},
			Status: v1alpha1.PeerStatus{Admitted: true, AdmittedPeerID: id}},
		&v1alpha1.NodeCache{ObjectMeta: metav1.ObjectMeta{Name: node}, Status: v1alpha1.NodeCacheStatus{
			Conditions: []metav1.Condition{{Type: v1alpha1.ConditionMirrorConfigured, Status: metav1.ConditionTrue,
				Reason: v1alpha1.ReasonMirrorConfigured}}}}}
}

// pretend runs the plugin among these objects, without an API server.
func pretend(t *testing.T, agents agents, objects []client.Object, args ...string) (code int, out, errOut string) {
	t.Helper()
	streams, _, o, e := genericiooptions.NewTestIOStreams()
	p := &plugin{IOStreams: streams, flags: genericclioptions.NewConfigFlags(true), agents: agents,
		api: fake.NewClientBuilder().WithScheme(kindsOf(t)).WithObjects(objects...).Build()}
	code = p.run(t.Context(), args)
	return code, o.String(), e.String()
}

func TestUninstalled_WhatPeersSayIsOfBefore(t *testing.T) {
	t.Parallel()
	for verb, says := range map[string]string{"check": "API server: 1 peer", "status": "Agents:  none runs\n"} {
		_, out, errOut := pretend(t, served{}, withPeer("node1"), verb)
		require.Contains(t, out, says, errOut)
		require.NotContains(t, out, "Runtimes that are set up", verb)
		require.NotContains(t, out, v1alpha1.ReasonMirrorConfigured, verb)
		require.NotContains(t, out, "true", verb)
		_, out, errOut = pretend(t, served{}, append(withPeer("node1"), agentPod()), verb)
		require.Regexp(t, "Runtimes that are set up to ask their agent: 1 of 1|"+v1alpha1.ReasonMirrorConfigured, out, errOut)
	}
}

func TestCheck_AnAgentOfANodeThatIsDownIsNotSaidToAnswer(t *testing.T) {
	t.Parallel()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1"}, Status: corev1.NodeStatus{
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown}}}}
	_, out, errOut := pretend(t, served{}, append(withPeer("node1"), agentPod(), node), "check")
	require.Contains(t, out, "! Agents that run and answer: 0 of 1", errOut)
	require.Contains(t, out, "✗ NodeNotReady: node1")
	require.NotContains(t, out, survey.ReasonAgentSilent)
}

func TestCheckBefore_GuessesNothingOfNodesWhoseAgentsKnow(t *testing.T) {
	t.Parallel()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1"}, Status: corev1.NodeStatus{
		NodeInfo: corev1.NodeSystemInfo{ContainerRuntimeVersion: "containerd://2.2.1", OperatingSystem: "linux"}}}
	unset := withPeer("node1")
	unset[1].(*v1alpha1.NodeCache).Status.Conditions[0].Status = metav1.ConditionFalse
	for what, c := range map[string]struct {
		there   []client.Object
		guessed bool
	}{
		"before an installation":        {nil, true},
		"an agent runs and knows":       {append(withPeer("node1"), agentPod()), false},
		"it knows that it is not set":   {append(unset, agentPod()), true},
		"the agent's is another node":   {append(withPeer("node2"), agentPod()), true},
		"what an installation has left": {withPeer("node1"), true},
	} {
		p := &plugin{api: fake.NewClientBuilder().WithScheme(kindsOf(t)).WithObjects(c.there...).Build()}
		d := &diagnosis{asks: p.asking(t.Context())}
		var r checked
		d.nodesBefore(t.Context(), []corev1.Node{*node}, &preflight{}, &r)
		require.Equal(t, c.guessed, len(d.found) == 1, "%s: %v", what, d.found)
		require.Len(t, r.Looked, 1)
	}
}

func TestWhere_NamesWhatWasLookedFor(t *testing.T) {
	t.Parallel()
	agents := served{"node1": {view.ImagePath: view.Image{}}}
	for name, want := range map[string]string{
		"nginx": "All of docker.io/library/nginx:latest is on 0 of 1 node.\n" +
			"No node holds a part of it. A node knows the tags that were asked of it.\n",
		some:            "All of " + some + " is on 0 of 1 node.\nNo node holds a part of it.\n",
		"nginx@" + some: "All of docker.io/library/nginx@" + some + " is on 0 of 1 node.\nNo node holds a part of it.\n",
	} {
		_, out, errOut := pretend(t, agents, []client.Object{agentPod()}, "where", name)
		require.Equal(t, want, out, errOut)
	}
}

func kindsOf(t *testing.T) *kruntime.Scheme {
	t.Helper()
	scheme := kruntime.NewScheme()
	require.NoError(t, errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)))
	return scheme
}

func agentPod() *corev1.Pod {
	return &corev1.Pod{Spec: corev1.PodSpec{NodeName: "node1"}, Status: corev1.PodStatus{Phase: corev1.PodRunning},
		ObjectMeta: metav1.ObjectMeta{Name: "agent", Namespace: survey.DefaultNamespace, Labels: survey.AgentLabels}}
}

func operatorPod() *corev1.Pod {
	pod := agentPod()
	pod.Name, pod.Labels = "operator", survey.OperatorLabels
	return pod
}

// leaving are agents whose user presses Ctrl-C as soon as one is asked.
type leaving struct {
	leave func()
}

func (l leaving) Open(ctx context.Context, _ *corev1.Pod, _ string) (*view.Client, func(), error) {
	l.leave()
	return nil, nil, ctx.Err()
}

func (l leaving) run(ctx context.Context, _ *corev1.Pod, _ []string, _ io.Reader, _ io.Writer) error {
	l.leave()
	return ctx.Err()
}

func TestInterrupt_SaysNothingOfAgentsThatCouldNotAnswerAnyMore(t *testing.T) {
	t.Parallel()
	scheme, pod := kindsOf(t), agentPod()
	for verb, code := range map[string]int{"check": ExitFailed, "check --wait": ExitFailed, "top": ExitFailed,
		"top --watch": ExitWell, "where redis:7": ExitFailed, "ls": ExitFailed, "why": ExitFailed, "test": ExitFailed,
		"test --image redis:7": ExitFailed, "get " + some: ExitFailed} {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			ctx, leave := context.WithCancel(t.Context())
			streams, _, out, errOut := genericiooptions.NewTestIOStreams()
			p := &plugin{IOStreams: streams, flags: genericclioptions.NewConfigFlags(true), agents: leaving{leave: leave},
				api: fake.NewClientBuilder().WithScheme(scheme).WithObjects(pod.DeepCopy(), operatorPod()).Build()}
			require.Equal(t, code, p.run(ctx, strings.Fields(verb)), errOut)
			require.Empty(t, out.String())
			if code != ExitWell {
				require.Equal(t, "kubectl shoal: interrupted\n", errOut.String())
			}
		})
	}
}

// requireForms runs verbs with each form of output that is for programs.
func requireForms(t *testing.T, agents agents, verbs ...string) {
	t.Helper()
	for _, verb := range verbs {
		_, out, errOut := kubectl(t, agents, append(strings.Fields(verb), "-o", "json")...)
		require.True(t, json.Valid([]byte(out)), "%s: %s%s", verb, out, errOut)
		require.NotEqual(t, "null\n", out, verb)
		require.NotContains(t, out, ": null", "%s: a list is one also where it is empty", verb)
		_, out, errOut = kubectl(t, agents, append(strings.Fields(verb), "-o", "yaml")...)
		var value any
		require.NoError(t, yaml.Unmarshal([]byte(out), &value), "%s: %s%s", verb, out, errOut)
		require.NotNil(t, value, verb)
	}
}
