package clients

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-cache/shoal/hack/httpget"
	"github.com/shoal-cache/shoal/test/hubtest"
	"github.com/shoal-cache/shoal/test/registrytest"
)

const modelName = "org/model"

// modelHub is a hub with a model, and an agent with a front for it.
type modelHub struct {
	*hubtest.Hub
	files map[string]hubtest.File
	env   []string // of an agent in front of it
	// front, admin are the agent's addresses.
	front, admin string
	swarm        string // where it listens for peers
}

// newModels makes a hub with a model, and what an agent in front of it is told by its environment.
func newModels(t *testing.T) *modelHub {
	t.Helper()
	m := &modelHub{Hub: hubtest.New(), front: freeAddress(t), admin: freeAddress(t), files: map[string]hubtest.File{
		"config.json":         {Data: hubtest.Text(`{"model_type": "shoal"}`)},
		"tokenizer.json":      {Data: hubtest.Random(7, 700<<10)},
		"model.safetensors":   {Data: hubtest.Random(1, 40<<20+17), LFS: true},
		"onnx/model ü.onnx":   {Data: hubtest.Random(2, 3<<20), LFS: true},
		"special #1 100%.txt": {Data: hubtest.Text("odd names")},
	}}
	t.Cleanup(m.Close)
	m.Repo("models", modelName).Commit("main", m.files)
	_, port, _ := strings.Cut(freeAddress(t), ":")
	m.swarm = "/ip4/127.0.0.1/tcp/" + port
	m.env = []string{
		"SHOAL_HUB_ENDPOINT=" + m.URL(), "SHOAL_HUB_LISTEN=" + m.front, "SHOAL_ADMIN_LISTEN=" + m.admin,
		"SHOAL_STORE_MINFREE=100MiB",
		"SHOAL_REGISTRY_LISTEN=" + freeAddress(t), "SHOAL_SWARM_LISTEN=" + m.swarm,
		"SHOAL_UPSTREAM_ALLOWADDRESSES=127.0.0.0/8",
	}
	return m
}

func startModelAgent(t *testing.T, m *modelHub, command []string) {
	t.Helper()
	start(t, m.env, func(ctx context.Context) error {
		_, err := httpget.Body(ctx, "http://"+m.admin+"/readyz")
		return err
	}, command[0], command[1:]...)
}

// startModels starts an agent in front of a hub of its own.
func startModels(t *testing.T) *modelHub {
	t.Helper()
	node := program(t, "shoal-node")
	m := newModels(t)
	startModelAgent(t, m, []string{node, "--hub-enabled", "--store-path", filepath.Join(t.TempDir(), "store")})
	return m
}

// installed is the path of a program of the machine's.
func installed(t *testing.T, name, from string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not here: %s", name, from)
	}
	return path
}

// right fails where a file is not the model's.
func (m *modelHub) right(t *testing.T, name, path string) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	require.Equal(t, sumOf(t, io.NewSectionReader(m.files[name].Data, 0, m.files[name].Data.Size())), sumOf(t, f), name)
}

func sumOf(t *testing.T, r io.Reader) string {
	t.Helper()
	sum := sha256.New()
	_, err := io.Copy(sum, r)
	require.NoError(t, err)
	return hex.EncodeToString(sum.Sum(nil))
}

func TestModel_CurlDownloadsAsHFHubDoes(t *testing.T) { //nolint:paralleltest // it starts agents of its own, and the processors are few
	m := startModels(t)
	curl, dir := installed(t, "curl", "apt-get install curl"), t.TempDir()
	url := "http://" + m.front + "/" + modelName + "/resolve/main/model.safetensors"
	// hf-hub asks for the first byte to learn the size, and reads on from where it was.
	head, err := run(t.Context(), nil, curl, "-sS", "-D", "-", "-o", "/dev/null", "-r", "0-0", url)
	require.NoError(t, err)
	require.Regexp(t, regexp.MustCompile(`(?i)content-range: bytes 0-0/41943057`), head)
	require.Regexp(t, regexp.MustCompile(`(?i)x-repo-commit: [0-9a-f]{40}`), head)
	path := filepath.Join(dir, "model")
	require.NoError(t, tryRun(t, nil, curl, "-sSf", "-o", path, "-r", "0-9999999", url))
	require.NoError(t, tryRun(t, nil, curl, "-sSf", "-o", path, "-C", "-", url))
	m.right(t, "model.safetensors", path)
	require.NoError(t, tryRun(t, nil, curl, "-sSf", "-o", path,
		"http://"+m.front+"/"+modelName+"/resolve/main/special%20%231%20100%25.txt"))
	m.right(t, "special #1 100%.txt", path)
}

func TestModel_Aria2DownloadsInParallelRanges(t *testing.T) { //nolint:paralleltest // it starts agents of its own, and the processors are few
	m := startModels(t)
	aria2, dir := installed(t, "aria2c", "apt-get install aria2"), t.TempDir()
	require.NoError(t, tryRun(t, nil, aria2, "-q", "-x16", "-s16", "-k1M", "-d", dir, "-o", "model",
		"http://"+m.front+"/"+modelName+"/resolve/main/model.safetensors"))
	m.right(t, "model.safetensors", filepath.Join(dir, "model"))
	_, sent := m.Count()
	require.LessOrEqual(t, float64(sent), 1.05*float64(m.files["model.safetensors"].Data.Size()))

	m.Set(hubtest.Trouble{Wrong: true})
	require.Error(t, tryRun(t, nil, aria2, "-q", "-x16", "-s16", "-k1M", "-m2", "--retry-wait=1", "--timeout=20", "-d",
		dir, "-o", "wrong",
		"http://"+m.front+"/"+modelName+"/resolve/main/onnx/model%20%C3%BC.onnx"), "the hub's bytes are wrong")
}

func TestModel_GoHuggingfaceDownloadsAll(t *testing.T) { //nolint:paralleltest // it starts agents of its own, and the processors are few
	m := startModels(t)
	delete(m.files, "special #1 100%.txt") // which this client does not escape
	delete(m.files, "onnx/model ü.onnx")
	m.Repo("models", modelName).Commit("main", m.files)
	dir := t.TempDir()
	out, err := run(t.Context(), []string{"HF_ENDPOINT=http://" + m.front}, program(t, "gohf"), modelName, dir)
	require.NoError(t, err)
	downloaded := 0
	for path := range strings.FieldsSeq(out) { // among the client's own words on how far it is
		if strings.HasPrefix(path, dir) {
			m.right(t, filepath.Base(path), path)
			downloaded++
		}
	}
	require.Equal(t, len(m.files), downloaded)
}

func TestModel_PythonDownloadsAsHuggingfaceHubDoes(t *testing.T) { //nolint:paralleltest // it starts agents of its own, and the processors are few
	m := startModels(t)
	python := installed(t, "python3", "apt-get install python3-requests")
	if _, err := run(t.Context(), nil, python, "-c", "import requests"); err != nil {
		t.Skip("python3 has no requests: apt-get install python3-requests")
	}
	dir := t.TempDir()
	_, err := run(t.Context(), []string{"HF_ENDPOINT=http://" + m.front}, python, "testdata/snapshot.py", modelName,
		dir)
	require.NoError(t, err)
	for name := range m.files {
		m.right(t, name, filepath.Join(dir, name))
	}
}

func TestModel_JavaScriptsHubDownloadsAll(t *testing.T) { //nolint:paralleltest // it starts agents of its own, and the processors are few
	m := startModels(t)
	modules := filepath.Join(filepath.Dir(program(t, "shoal-node")), "npm", "node_modules", "@huggingface", "hub")
	if _, err := os.Stat(modules); err != nil {
		t.Skip("@huggingface/hub is not here: make clients installs it where npm is")
	}
	node, dir := installed(t, "node", "apt-get install nodejs"), t.TempDir()
	delete(m.files, "special #1 100%.txt") // which this client does not escape
	m.Repo("models", modelName).Commit("main", m.files)
	script := fmt.Sprintf(`
import { listFiles, downloadFile } from %q;
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
const at = { repo: %q, hubUrl: %q };
for await (const f of listFiles({ ...at, recursive: true })) {
  if (f.type !== "file") continue;
  const path = join(%q, f.path);
  mkdirSync(dirname(path), { recursive: true });
  const blob = await downloadFile({ ...at, path: f.path });
  writeFileSync(path, Buffer.from(await blob.arrayBuffer()));
}`, filepath.Join(modules, "dist", "index.mjs"), modelName, "http://"+m.front, dir)
	path := filepath.Join(dir, "download.mjs")
	require.NoError(t, os.WriteFile(path, []byte(script), 0o600))
	require.NoError(t, tryRun(t, nil, node, path))
	for name := range m.files {
		m.right(t, name, filepath.Join(dir, name))
	}
}

// A reader types what the page says, on a machine and on another.
func TestModel_EveryCommandOfModelsInFiveMinutesRuns(t *testing.T) { //nolint:paralleltest // it starts agents of its own, and the processors are few
	node := program(t, "shoal-node")
	page, err := os.ReadFile("../../node/MODELS.md")
	require.NoError(t, err)
	quick, _, found := strings.Cut(string(page), "## What a client gets")
	require.True(t, found)
	first, second := newModels(t), newModels(t)
	second.env = append(second.env, "SHOAL_HUB_ENDPOINT="+first.URL())
	env := append(slices.Clone(first.env), "PATH="+filepath.Dir(node)+":"+os.Getenv("PATH"))
	id, ran := "", 0
	words := strings.NewReplacer("/var/lib/shoal", t.TempDir(), "127.0.0.1:5054", first.front, "127.0.0.1:5051",
		first.admin,
		"openai-community/gpt2", modelName, "-o config.json", "-o "+filepath.Join(t.TempDir(), "config.json"))
	for line := range strings.Lines(quick) {
		command, indented := strings.CutPrefix(line, "    ")
		if !indented {
			continue
		}
		command, _, _ = strings.Cut(command, " #")
		command = strings.TrimSpace(command)
		name, value, exports := strings.Cut(strings.TrimPrefix(command, "export "), "=")
		switch args := strings.Fields(words.Replace(command)); {
		case strings.Contains(command, "--swarm-bootstrap"):
			args[3], args[5] = t.TempDir(), first.swarm+"/p2p/"+id
			startModelAgent(t, second, append([]string{node}, args[1:len(args)-1]...))
		case strings.HasSuffix(command, "&"):
			startModelAgent(t, first, append([]string{node}, args[1:len(args)-1]...))
		case strings.HasPrefix(command, "export ") && exports:
			env = append(env, name+"="+words.Replace(value))
		default:
			out, err := run(t.Context(), env, "sh", "-c", words.Replace(command))
			require.NoError(t, err)
			require.True(t, strings.HasPrefix(command, "curl -sSfL") || strings.TrimSpace(out) != "", command)
			if strings.HasPrefix(command, "shoal-node id") {
				id = strings.TrimSpace(out)
			}
		}
		ran++
	}
	require.GreaterOrEqual(t, ran, 6)
}

// quoted are the commands that the page quotes amid its text.
var quoted = regexp.MustCompile("`((?:curl|go run|ollama) [^`]+)`")

// What stands after the five minutes a reader types as well. Each command runs as it stands, at smaller sizes and other
// addresses, and one that no rule here knows fails.
func TestModel_EveryOtherCommandOfThePageRuns(t *testing.T) { //nolint:paralleltest // it starts agents of its own, and the processors are few
	node, ollamaget := program(t, "shoal-node"), program(t, "ollamaget")
	page, err := os.ReadFile("../../node/MODELS.md")
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(page), "## What a client gets")
	require.True(t, found)

	file := weights(3, 3<<20)
	files := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(file))
	}))
	t.Cleanup(files.Close)
	host := strings.TrimPrefix(files.URL, "http://")
	m := newModels(t)
	m.env = append(m.env, "SHOAL_HUB_URLS="+files.URL+"/models/")
	startModelAgent(t, m, []string{node, "--hub-enabled", "--store-path", filepath.Join(t.TempDir(), "store")})
	r := registrytest.New(t)
	artifact(t, r, "library/llama3.2", "application/vnd.docker.distribution.manifest.v2+json", "",
		"application/vnd.docker.container.image.v1+json", "application/vnd.ollama.image.tensor", weights(4, 2<<20))
	registry := modelAgents(t, r, "registry.ollama.test")[0].front

	words := strings.NewReplacer(
		"make build && ", "", "-size 64GiB -capacity 1GiB", "-size 80MiB -capacity 40MiB -shoal "+node,
		"-size 16GiB -capacity 20GiB", "-size 40MiB -capacity 1GiB -shoal "+node,
		"sha256/9f86d0…/https/files.example", "sha256/"+sumOf(t, bytes.NewReader(file))+"/http/"+host,
		"$HF_ENDPOINT", "http://"+m.front, "org/name/resolve/main/file", modelName+"/resolve/main/model.safetensors",
		"ollama pull --insecure 127.0.0.1:5050/library/llama3.2", ollamaget+" http://"+registry+" library/llama3.2 1 "+
			t.TempDir(),
		"hack/reuse", "hack/reuse -layers 2", "go run ./", "go run -C ../.. ./")
	var commands []string
	for line := range strings.Lines(rest) {
		if command, indented := strings.CutPrefix(line, "    "); indented {
			commands = append(commands, strings.TrimSpace(command))
		}
	}
	for _, match := range quoted.FindAllStringSubmatch(strings.ReplaceAll(rest, "\n", " "), -1) {
		commands = append(commands, strings.Join(strings.Fields(match[1]), " "))
	}
	for _, command := range commands {
		dir := t.TempDir()
		typed := words.Replace(command)
		require.NotEqual(t, command, typed, "no rule of this test knows it")
		if strings.HasPrefix(typed, "curl") {
			typed = "cd " + dir + " && " + typed
		}
		out, err := run(t.Context(), nil, "sh", "-c", typed)
		require.NoError(t, err, "%s\n%s", command, out)
		if strings.HasSuffix(command, "/weights.bin") {
			got, err := os.ReadFile(filepath.Join(dir, "weights.bin"))
			require.NoError(t, err)
			require.True(t, bytes.Equal(file, got))
		}
		if strings.HasSuffix(command, "resolve/main/file") {
			m.right(t, "model.safetensors", filepath.Join(dir, "model.safetensors"))
		}
	}
	require.GreaterOrEqual(t, len(commands), 5)
}

// service stands for the Service of the hub fronts: a new connection goes to the agent of the node, and to another's
// where that one is away.
func service(t *testing.T, own, other string) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return // the test is over
			}
			agent, err := new(net.Dialer).Dial("tcp", own)
			if err != nil {
				agent, err = new(net.Dialer).Dial("tcp", other)
			}
			if err != nil {
				_ = client.Close()
				continue
			}
			join := func(to, from net.Conn) {
				_, _ = io.Copy(to, from) // however it ends, both end
				_ = to.Close()
				_ = from.Close()
			}
			go join(agent, client)
			go join(client, agent)
		}
	}()
	return "http://" + l.Addr().String()
}

// resumed downloads a file as huggingface_hub does since 1.20: where an answer is cut, or none comes, it asks for the
// rest, and gives up after the fifth time without a byte more. came is how many bytes it has.
func resumed(ctx context.Context, url string, size int64, came *atomic.Int64) (sum string, err error) {
	digest := sha256.New()
	for tries := 0; tries <= 5; tries++ {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return "", err
		}
		if came.Load() > 0 {
			req.Header.Set("Range", fmt.Sprintf("bytes=%d-", came.Load()))
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			n := int64(0)
			if resp.StatusCode == http.StatusOK && came.Load() == 0 || resp.StatusCode == http.StatusPartialContent {
				n, err = io.Copy(io.MultiWriter(digest, counter{came}), resp.Body)
			}
			_ = resp.Body.Close()
			if n > 0 {
				tries = 0
			}
		}
		if err == nil && came.Load() == size {
			return hex.EncodeToString(digest.Sum(nil)), nil
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	return "", fmt.Errorf("%d of %d bytes of %s", came.Load(), size, url)
}

// counter counts the bytes that are written to it.
type counter struct{ n *atomic.Int64 }

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

func TestModel_AnAgentThatIsKilledInMidDownloadCostsItsClientNothing(t *testing.T) { //nolint:paralleltest // it starts agents of its own, and the processors are few
	node := program(t, "shoal-node")
	own, other := newModels(t), newModels(t)
	folder := filepath.Join(t.TempDir(), "store")
	id, err := run(t.Context(), nil, node, "id", "--store-path", folder)
	require.NoError(t, err)
	agent := start(t, own.env, func(ctx context.Context) error {
		_, err := httpget.Body(ctx, "http://"+own.admin+"/readyz")
		return err
	}, node, "--hub-enabled", "--store-path", folder)
	other.env = append(other.env, "SHOAL_HUB_ENDPOINT="+own.URL())
	startModelAgent(t, other, []string{node, "--hub-enabled", "--store-path", filepath.Join(t.TempDir(), "store"),
		"--swarm-bootstrap", own.swarm + "/p2p/" + strings.TrimSpace(id)})

	const file, stopsAfter = "model.safetensors", 16 << 20
	size := own.files[file].Data.Size()
	own.Set(hubtest.Trouble{StopAfter: stopsAfter})
	var came [2]atomic.Int64
	var sums [2]string
	var group errgroup.Group
	for i, front := range []string{service(t, own.front, other.front), "http://" + other.front} {
		group.Go(func() (err error) {
			sums[i], err = resumed(t.Context(), front+"/"+modelName+"/resolve/main/"+file, size, &came[i])
			return err
		})
	}
	eventually(t, startTimeout, func() error {
		for i := range came {
			if n := came[i].Load(); n < stopsAfter/4 { // the rest may be of later parts of the file
				return fmt.Errorf("client %d has %d bytes", i, n)
			}
		}
		return nil
	})
	require.Less(t, came[0].Load(), size)
	require.NoError(t, agent.Kill())
	own.Set(hubtest.Trouble{})
	require.NoError(t, group.Wait())
	want := sumOf(t, io.NewSectionReader(own.files[file].Data, 0, size))
	require.Equal(t, [2]string{want, want}, sums)
	_, sent := own.Count()
	require.LessOrEqual(t, float64(sent), 1.3*float64(size), "the killed agent's client began where it had been")
}
