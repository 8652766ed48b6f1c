package main

import (
	"bytes"
	"context"
	"crypto/sha1" //nolint:gosec // git names its objects so
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"text/tabwriter"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-cache/shoal/test/hubtest"
)

const (
	modelID    = "shoal/demo"
	shards     = 4
	smallFiles = 7
	// parallelFiles is how many files huggingface_hub downloads at a time.
	parallelFiles = 8
	lateAgents    = 2
	// maxQuestions is how much Shoal promises that the hub is asked in a burst, in what one node without a cache asks.
	maxQuestions = 1.5
)

// demonstrateModel downloads one model through all agents at once, by the requests of huggingface_hub's
// snapshot_download, and then through two more agents that come late.
func demonstrateModel(ctx context.Context, children *processes, o options, dir string) error {
	say("making a model of %s in %d large files, and %d small ones", mebibytes(o.size), shards, smallFiles)
	hub := hubtest.New()
	defer hub.Close()
	size := makeModel(hub, o.size)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	alone, err := runSnapshot(ctx, self, hub.URL())
	if err != nil {
		return fmt.Errorf("download from the hub itself: %w", err)
	}
	one, _ := hub.Count()
	hub.Forget()

	working := o.agents
	o.agents += lateAgents
	o.hub = hub.URL()
	say("starting %d agents", o.agents)
	agents, err := startAgents(ctx, children, o, dir, hub.URL())
	if err != nil {
		return err
	}
	var clients []client
	for _, a := range agents {
		clients = append(clients, client{a, "snapshot", func(ctx context.Context) (pulled, error) {
			return runSnapshot(ctx, self, "http://"+a.hub)
		}})
	}
	say("downloading through %d agents at once, then through %d more\n", working, lateAgents)
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	results := runClients(ctx, clients[:working], o.stagger)
	questions, sent := hub.Count()
	hub.Forget()
	results = append(results, runClients(ctx, clients[working:], 0)...)
	lateQuestions, lateSent := hub.Count()

	problems := reportModel(ctx, results, alone)
	copies, ratio := float64(sent)/float64(size), float64(questions)/float64(one)
	fmt.Printf("\nmodel %s, %d agents: the hub sent %s of large files, %.3f copies (promise: at most %.2f; "+
		"without a cache: %d)\n",
		mebibytes(size), working, mebibytes(sent), copies, maxUpstream, working)
	fmt.Printf("and was asked %d times, where one node without a cache asks %d: %.2f (promise: at most %.1f; "+
		"without a cache: %d)\n",
		questions, one, ratio, maxQuestions, working)
	fmt.Printf("the %d agents that came late took %s of large files from it, and asked it %d times (promise: "+
		"0 bytes)\n",
		lateAgents, mebibytes(lateSent), lateQuestions)
	if copies > maxUpstream {
		problems = append(problems, fmt.Errorf("promise broken: the hub sent %.3f copies", copies))
	}
	if ratio > maxQuestions {
		problems = append(problems, fmt.Errorf("promise broken: the hub was asked %.2f times as often", ratio))
	}
	if lateSent > 0 {
		problems = append(problems, fmt.Errorf("promise broken: late agents took %d bytes from the hub", lateSent))
	}
	if len(problems) > 0 {
		for _, a := range agents {
			a.explain(ctx)
		}
	}
	return errors.Join(problems...)
}

// makeModel puts the model on the hub, and gives the size of its large files.
func makeModel(hub *hubtest.Hub, size int64) int64 {
	files := map[string]hubtest.File{}
	for i := range shards {
		files[fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, shards)] = hubtest.File{
			Data: hubtest.Random(uint64(i)+1, size/shards+int64(i)), LFS: true,
		}
	}
	for i := range smallFiles {
		files[fmt.Sprintf("config-%d.json", i)] = hubtest.File{Data: hubtest.Text(fmt.Sprintf(`{"part": %d}`, i))}
	}
	hub.Repo("models", modelID).Commit("main", files)
	return size/shards*shards + shards*(shards-1)/2
}

// reportModel prints who moved what, and returns what is wrong with the downloads.
func reportModel(ctx context.Context, results []result, want pulled) (problems []error) {
	fmt.Println()
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "agent\ttime\tfrom the hub\tfrom peers\tto peers\tresult\t")
	for _, r := range results {
		verdict := "right"
		switch {
		case r.err != nil:
			verdict = "FAILED"
			problems = append(problems, fmt.Errorf("download through %s: %w", r.agent.name, r.err))
		case r.pulled != want:
			verdict = "WRONG"
			problems = append(problems, fmt.Errorf("download through %s: got %+v, want %+v", r.agent.name, r.pulled,
				want))
		}
		t, err := r.agent.traffic(ctx)
		if err != nil {
			problems = append(problems, fmt.Errorf("metrics of %s: %w", r.agent.name, err))
		}
		fmt.Fprintf(table, "%s\t%.1f s\t%s\t%s\t%s\t%s\t\n", r.agent.name, r.took.Seconds(),
			mebibytes(t.upstream), mebibytes(t.fromPeers), mebibytes(t.toPeers), verdict)
	}
	if err := table.Flush(); err != nil {
		problems = append(problems, err)
	}
	return problems
}

func runSnapshot(ctx context.Context, self, endpoint string) (pulled, error) {
	cmd := exec.CommandContext(ctx, self, "snapshot", endpoint, modelID)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return pulled{}, fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	var p pulled
	return p, json.Unmarshal(stdout.Bytes(), &p)
}

// snapshot is the client's process: it asks a hub for a model as snapshot_download of huggingface_hub 1.28 does, checks
// each file against its name at the hub, keeps nothing, and prints the commit and how many bytes came.
func snapshot(ctx context.Context, endpoint, id string) error {
	var info struct {
		SHA string `json:"sha"`
	}
	if err := askJSON(ctx, endpoint+"/api/models/"+id+"/revision/main", &info); err != nil {
		return err
	}
	var tree []struct{ Type, Path string }
	if err := askJSON(ctx, endpoint+"/api/models/"+id+"/tree/"+info.SHA+"?recursive=true&expand=false",
		&tree); err != nil {
		return err
	}
	var total atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallelFiles)
	for _, e := range tree {
		if e.Type != "file" {
			continue
		}
		group.Go(func() error {
			n, err := downloadFile(ctx, endpoint+"/"+id+"/resolve/"+info.SHA+"/"+e.Path)
			total.Add(n)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(pulled{Digest: info.SHA, Bytes: total.Load()})
}

func askJSON(ctx context.Context, url string, into any) error {
	resp, err := send(ctx, http.DefaultClient, http.MethodGet, url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(into)
}

// downloadFile asks for a file's header, then for the file, and checks it.
func downloadFile(ctx context.Context, url string) (int64, error) {
	head, err := send(ctx, within, http.MethodHead, url)
	if err != nil {
		return 0, err
	}
	_ = head.Body.Close()
	name, length := head.Header.Get("X-Linked-Etag"), head.Header.Get("X-Linked-Size")
	if name == "" {
		name, length = head.Header.Get("Etag"), head.Header.Get("Content-Length")
	}
	size, err := strconv.ParseInt(length, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("HEAD %s: size: %w", url, err)
	}
	resp, err := send(ctx, http.DefaultClient, http.MethodGet, url)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var sum hash.Hash
	if name = strings.Trim(name, `"`); len(name) == 2*sha256.Size {
		sum = sha256.New()
	} else {
		sum = sha1.New() //nolint:gosec // as above
		fmt.Fprintf(sum, "blob %d\x00", size)
	}
	n, err := io.Copy(sum, resp.Body)
	switch {
	case err != nil:
		return n, fmt.Errorf("GET %s: %w", url, err)
	case n != size || hex.EncodeToString(sum.Sum(nil)) != name:
		return n, fmt.Errorf("GET %s: %d bytes that are not those of %s, which has %d", url, n, name, size)
	}
	return n, nil
}

// within follows redirects within the hub, as clients do for a header.
var within = &http.Client{CheckRedirect: func(r *http.Request, via []*http.Request) error {
	if r.URL.Host != via[0].URL.Host {
		return http.ErrUseLastResponse
	}
	return nil
}}

func send(ctx context.Context, c *http.Client, method, url string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= http.StatusBadRequest {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("%s %s: %s", method, url, resp.Status)
	}
	return resp, nil
}
