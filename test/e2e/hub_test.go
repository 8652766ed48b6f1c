package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/shoal-cache/shoal/test/hubtest"
)

// startHub starts a model hub at the address of this machine that is on the registry's network, as the nodes are.
func startHub(t *testing.T, beside registry) *hubtest.Hub {
	t.Helper()
	// Nothing is sent: the kernel only says from where it would be.
	route, err := new(net.Dialer).DialContext(t.Context(), "udp", beside.address)
	require.NoError(t, err)
	host, _, err := net.SplitHostPort(route.LocalAddr().String())
	require.NoError(t, err)
	require.NoError(t, route.Close())
	var listen net.ListenConfig
	l, err := listen.Listen(t.Context(), "tcp", net.JoinHostPort(host, "0"))
	require.NoError(t, err)
	h := hubtest.NewOn(l)
	t.Cleanup(h.Close)
	return h
}

// model makes a model repository with one large file, and returns the file's digest.
func (c *cluster) model(t *testing.T, id string, seed uint64) string {
	t.Helper()
	weights := hubtest.Random(seed, 16*mib)
	c.hub.Repo("models", id).Commit("main", map[string]hubtest.File{
		"config.json":       {Data: hubtest.Text(`{"model_type":"tiny"}`)},
		"model.safetensors": {Data: weights, LFS: true},
	})
	sum := sha256.New()
	_, err := io.Copy(sum, io.NewSectionReader(weights, 0, weights.Size()))
	require.NoError(t, err)
	return hex.EncodeToString(sum.Sum(nil))
}

// hubModels has pods of a labelled namespace load a model by a client that knows HF_ENDPOINT alone, and read one that
// is pinned while the hub is away.
func hubModels(t *testing.T, c *cluster) {
	pinned, files := c.model(t, "org/pinned", 2), map[string]hubtest.File{
		"config.json":                      {Data: hubtest.Text(`{"model_type":"tiny"}`)},
		"tokenizer.json":                   {Data: hubtest.Random(4, mib)},
		"model-00001-of-00002.safetensors": {Data: hubtest.Random(5, 7*mib), LFS: true},
		"model-00002-of-00002.safetensors": {Data: hubtest.Random(6, 8*mib+1), LFS: true},
	}
	c.hub.Repo("models", "org/read").Commit("main", files)
	c.kubectl(t, "label", "--overwrite", "namespace", workNamespace, "shoal.dev/hub=enabled")
	defer c.kubectl(t, "label", "namespace", workNamespace, "shoal.dev/hub-") // not a cleanup: its context has ended
	t.Cleanup(func() { c.delete(t, "artifactpin", "model") })
	_, unpinned := c.hub.Count()
	c.apply(t, `{apiVersion: shoal.dev/v1alpha1, kind: ArtifactPin, metadata: {name: model},
		spec: {artifacts: [{hub: {repository: org/pinned, revision: main, files: ["*.safetensors"]}}], replicas: 2}}`)
	img := c.public.pushFiles(t, "models", program(t, "probe", "SHOAL_E2E_PROBE"),
		program(t, "gohf", "SHOAL_E2E_HUB_CLIENT"))
	c.rollout(t, workload{name: "models", image: img.ref}, time.Minute)
	var pods struct{ Items []corev1.Pod }
	c.get(t, &pods, "pods", "-n", workNamespace, "-l", "app=models")
	require.Len(t, pods.Items, len(c.nodes))
	endpoint := ""
	for _, v := range pods.Items[0].Spec.Containers[0].Env {
		if v.Name == "HF_ENDPOINT" {
			endpoint = v.Value
		}
	}
	require.NotEmpty(t, endpoint, "the pods are given the agents' address")

	c.awaitPin(t, "model", 2, time.Minute)
	_, sent := c.hub.Count()
	require.LessOrEqual(t, sent-unpinned, int64(16*mib*105/100), "bytes that the hub sent for two nodes' pin")
	for i, pod := range pods.Items {
		_, before := c.hub.Count()
		c.loadByPod(t, pod, "org/read", files)
		_, after := c.hub.Count()
		tell(t, "the pod on %s has loaded a model of 16 MiB in %d files: the hub sent %s", pod.Spec.NodeName,
			len(files), mebibytes(after-before))
		most := int64(16 * mib * 105 / 100)
		if i > 0 {
			most = mib / 16 // for what changes, as how often it was loaded
		}
		require.LessOrEqual(t, after-before, most, "bytes that the hub sent for the pod on %s", pod.Spec.NodeName)
	}

	c.hub.Set(hubtest.Trouble{Down: true})
	defer c.hub.Set(hubtest.Trouble{})
	c.readByPods(t, pods.Items, endpoint+"/org/pinned/resolve/main/model.safetensors", pinned)
	tell(t, "with the hub away every pod reads the pinned model")
}

// program is a layer of an image: the program that a setting names, under a name of its own.
func program(t *testing.T, name, at string) map[string][]byte {
	t.Helper()
	data, err := os.ReadFile(setting(t, at))
	require.NoError(t, err)
	return map[string][]byte{name: data}
}

// loadByPod has a pod load a model with go-huggingface, and compares every byte.
func (c *cluster) loadByPod(t *testing.T, pod corev1.Pod, model string, files map[string]hubtest.File) {
	t.Helper()
	in := []string{"-n", workNamespace, "exec", pod.Name, "--"}
	out, loaded := c.kubectl(t, append(in, "/gohf", model, "/models")...), 0
	for path := range strings.FieldsSeq(out) { // among the client's own words on how far it is
		if !strings.HasPrefix(path, "/models/") {
			continue
		}
		want, ok := files[filepath.Base(path)]
		require.True(t, ok, "%s is a file of the model", path)
		got, err := run(t.Context(), "", "kubectl", append(in, "/probe", "cat", path)...)
		require.NoError(t, err)
		data, err := io.ReadAll(io.NewSectionReader(want.Data, 0, want.Data.Size()))
		require.NoError(t, err)
		require.True(t, string(data) == got, "%s of the pod on %s, %d bytes, is as the hub has it", path,
			pod.Spec.NodeName, len(got))
		loaded++
	}
	require.Equal(t, len(files), loaded, "files that the pod on %s has", pod.Spec.NodeName)
}

// readByPods has each of the pods read a URL, and compares the digest.
func (c *cluster) readByPods(t *testing.T, pods []corev1.Pod, url, digest string) {
	t.Helper()
	for _, pod := range pods {
		got := c.rig.exec(t, pod.Spec.NodeName, "sh", "-c",
			fmt.Sprintf("curl -s -m 30 'http://%s:8080/get?url=%s' | sha256sum", pod.Status.PodIP, url))
		require.Equal(t, digest+"  -", got, "what the pod on %s read", pod.Spec.NodeName)
	}
}

// agentKilledInModel ends an agent while a client on its node reads a model through the Service of the agents. The
// client asks for the rest, as huggingface_hub does, and gets it from another node's agent or from the new one.
func agentKilledInModel(t *testing.T, c *cluster) {
	const stopsAfter = 6 * mib
	sum := c.model(t, "org/killed", 3)
	address := c.kubectl(t, "get", "service", "-n", shoalNamespace, "shoal-hub", "-o", "jsonpath={.spec.clusterIP}")
	read := fmt.Sprintf(`rm -f /run/model
		for i in $(seq 60); do curl -sSf -m 60 -C - -o /run/model http://%s/org/killed/resolve/main/model.safetensors && break
		sleep 1; done; sha256sum < /run/model; rm -f /run/model`, strings.TrimSpace(address))
	_, before := c.hub.Count()
	sent := func() int64 {
		_, n := c.hub.Count()
		return n - before
	}
	c.hub.Set(hubtest.Trouble{StopAfter: stopsAfter})
	defer c.hub.Set(hubtest.Trouble{})
	killed, other := c.nodes[len(c.nodes)-1], c.nodes[0]
	var group errgroup.Group
	for _, node := range []string{killed, other} {
		group.Go(func() error {
			got, err := c.rig.tryExec(t.Context(), node, "sh", "-c", read)
			if err == nil && got != sum+"  -" {
				err = fmt.Errorf("%s read %s, want %s", node, got, sum)
			}
			return err
		})
	}
	eventually(t, time.Minute, func() error {
		if n := sent(); n < stopsAfter-1 {
			return fmt.Errorf("the hub has sent %d bytes", n)
		}
		return nil
	})
	c.killAgent(t, killed)
	start := time.Now()
	c.hub.Set(hubtest.Trouble{})
	require.NoError(t, group.Wait())
	tell(t, "both nodes had the model %s after the agent of one was killed; the hub sent %s of %s",
		time.Since(start).Round(100*time.Millisecond), mebibytes(sent()), mebibytes(16*mib))
	require.LessOrEqual(t, sent(), int64(16*mib*3/2), "what the killed agent had is with the other")
	c.awaitAgents(t)
	c.awaitMirror(t, killed)
}
