package clients

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/hack/httpget"
	"github.com/shoal-cache/shoal/test/hubtest"
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
