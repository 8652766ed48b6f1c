package workload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"time"

	"github.com/shoal-cache/shoal/test/bench/internal/contender"
	"github.com/shoal-cache/shoal/test/bench/internal/report"
	"github.com/shoal-cache/shoal/test/hubtest"
	"github.com/shoal-cache/shoal/test/internal/proc"
)

const (
	modelName = "bench/model"
	// warmFile is the file that is read again and again of a node that has it.
	warmFile = "/" + modelName + "/resolve/main/model-00001-of-00004.safetensors"
	// lateNodes begin when the others are done.
	lateNodes = 2
	// warmRounds is how often both ways to read a warm file have their turn, warmBytes how much each reads in one.
	warmRounds, warmBytes = 5, 1 << 30
	plainListen           = "127.0.0.1:5060"
)

func model(s Settings) Workload {
	return Workload{
		Name: "model", Title: fmt.Sprintf("%d nodes load one model of %s at once, two more come late", s.Nodes,
			sizeName(s.Model)),
		Text: fmt.Sprintf("%d large files and %d small ones, by the requests of huggingface_hub's "+
			"snapshot_download. The origin is a model hub. Then one node gives a file that it has, beside "+
			"http.ServeFile of the same file, to a client on the same host.", hubtest.ModelShards, hubtest.ModelSmall),
		layout: layout{nodes: s.Nodes + lateNodes, rate: s.Rate, hub: true}, plain: true,
		only: []string{contender.Direct{}.Name(), contender.Shoal{}.Name()},
		run:  loadModel,
	}
}

func loadModel(ctx context.Context, b *bed) (report.Run, error) {
	orders := make([]order, len(b.hosts))
	for i := range orders {
		orders[i] = order{host: i, model: modelName}
	}
	first, late := orders[:len(orders)-lateNodes], orders[len(orders)-lateNodes:]
	run, err := b.measure(ctx, b.Model, transfer(b.Model, b.layout.rate), first)
	if err != nil {
		return run, err
	}
	run.Nodes = len(first)
	if len(b.contender.Hubs) == 0 {
		return run, nil
	}
	before, err := b.stats(ctx)
	if err != nil {
		return run, err
	}
	results, err := b.pull(ctx, late...)
	if err != nil {
		return run, err
	}
	after, err := b.stats(ctx)
	if err != nil {
		return run, err
	}
	for _, r := range results {
		run.Pulls++
		if r.Err != "" {
			run.Failed++
			run.Failures = append(run.Failures, r.Err)
		}
	}
	served := after.Sub(before)
	run.Late = &report.Late{Nodes: lateNodes, Bytes: served.Bytes, Requests: served.Requests}
	run.WarmRatio, err = b.warmRatio(ctx)
	return run, err
}

// warmRatio is how fast the agent of the first host gives a file that it has, in what http.ServeFile of the file in the
// agent's own store makes of it. The two take turns.
func (b *bed) warmRatio(ctx context.Context) (ratio float64, err error) {
	agent := b.contender.Hubs[0] + warmFile
	path, err := b.storedAt(ctx, agent)
	if err != nil {
		return 0, err
	}
	plain, err := proc.Start(b.hosts[0].Command(ctx, b.Program, "file", "-listen", plainListen, "-file", path),
		filepath.Join(b.Dir, "file.log"))
	if err != nil {
		return 0, err
	}
	defer plain.Stop()
	if err := b.await(ctx, func() error {
		_, err := b.read(ctx, "http://"+plainListen, 1)
		return err
	}, plain); err != nil {
		return 0, err
	}
	var theirs, ours []float64
	for range warmRounds {
		for _, side := range []struct {
			url   string
			rates *[]float64
		}{{"http://" + plainListen, &theirs}, {agent, &ours}} {
			rate, err := b.read(ctx, side.url, warmBytes)
			if err != nil {
				return 0, err
			}
			*side.rates = append(*side.rates, rate)
		}
	}
	return report.Median(ours) / report.Median(theirs), nil
}

// storedAt is where the agent of the first host keeps the file that it gives at a URL.
func (b *bed) storedAt(ctx context.Context, url string) (string, error) {
	resp, err := b.ask(ctx, http.MethodHead, url)
	if err != nil {
		return "", err
	}
	_ = resp.Body.Close()
	name := resp.Header.Get("X-Linked-Etag")
	if len(name) != 66 {
		return "", fmt.Errorf("HEAD %s: X-Linked-Etag %q is no sha256 in quotes", url, name)
	}
	pattern := filepath.Join(b.site.Dir, b.hosts[0].Name, "blobs", "sha256", "*", name[1:65])
	for deadline := time.Now().Add(10 * time.Second); ; {
		found, err := filepath.Glob(pattern)
		switch {
		case err != nil:
			return "", err
		case len(found) == 1:
			return found[0], nil
		case time.Now().After(deadline):
			return "", fmt.Errorf("%s: no such file: the agent has not kept it", pattern)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

// read reads a URL of the first host's again and again until it has at least so many bytes, and gives bytes in a
// second.
func (b *bed) read(ctx context.Context, url string, atLeast int64) (rate float64, err error) {
	began, total := time.Now(), int64(0)
	for total < atLeast {
		resp, err := b.ask(ctx, http.MethodGet, url)
		if err != nil {
			return 0, err
		}
		n, err := io.Copy(io.Discard, resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			return 0, fmt.Errorf("GET %s: %w", url, err)
		}
		if n == 0 {
			return 0, fmt.Errorf("GET %s: no bytes", url)
		}
		total += n
	}
	return float64(total) / time.Since(began).Seconds(), nil
}

// ask asks from within the first host.
func (b *bed) ask(ctx context.Context, method, url string) (*http.Response, error) {
	web := http.Client{Transport: &http.Transport{DialContext: b.hosts[0].DialContext, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := web.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		_ = response.Body.Close()
		return nil, fmt.Errorf("%s %s: %s", method, url, response.Status)
	}
	return response, nil
}
