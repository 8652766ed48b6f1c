package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"text/tabwriter"

	"github.com/shoal-cache/shoal/test/hubtest"
)

const (
	modelID    = "shoal/demo"
	lateAgents = 2
	// maxWindowed is how many copies the hub may send where no agent has room for a file.
	maxWindowed = 1.3
	// maxQuestions is how much Shoal promises that the hub is asked in a burst, in what one node without a cache asks.
	maxQuestions = 1.5
)

// demonstrateModel downloads one model through all agents at once, by the requests of huggingface_hub's
// snapshot_download, and then through two more agents that come late.
func demonstrateModel(ctx context.Context, children *processes, o options, dir string) error {
	say("making a model of %s in %d large files, and %d small ones", mebibytes(o.size), hubtest.ModelShards,
		hubtest.ModelSmall)
	hub := hubtest.New()
	defer hub.Close()
	size := hub.Model(modelID, o.size)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	alone, err := inProcess(ctx, self, "snapshot", hub.URL(), modelID)
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
			return inProcess(ctx, self, "snapshot", "http://"+a.hub, modelID)
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
	most, lateMay := maxUpstream, int64(0)
	if o.room > 0 && o.room < o.size/hubtest.ModelShards { // who comes late finds nothing that was kept
		most, lateMay = maxWindowed, int64(float64(size)*maxWindowed)
	}
	fmt.Printf("\nmodel %s, %d agents: the hub sent %s of large files, %.3f copies (promise: at most %.2f; "+
		"without a cache: %d)\n",
		mebibytes(size), working, mebibytes(sent), copies, most, working)
	fmt.Printf("and was asked %d times, where one node without a cache asks %d: %.2f (promise: at most %.1f; "+
		"without a cache: %d)\n",
		questions, one, ratio, maxQuestions, working)
	fmt.Printf("the %d agents that came late took %s of large files from it, and asked it %d times (promise: "+
		"at most %s)\n",
		lateAgents, mebibytes(lateSent), lateQuestions, mebibytes(lateMay))
	if copies > most {
		problems = append(problems, fmt.Errorf("promise broken: the hub sent %.3f copies", copies))
	}
	if ratio > maxQuestions {
		problems = append(problems, fmt.Errorf("promise broken: the hub was asked %.2f times as often", ratio))
	}
	if lateSent > lateMay {
		problems = append(problems, fmt.Errorf("promise broken: late agents took %d bytes from the hub", lateSent))
	}
	if len(problems) > 0 {
		for _, a := range agents {
			a.explain(ctx)
		}
	}
	return errors.Join(problems...)
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

// snapshot is the client's process: it downloads a model, and prints the commit and how many bytes came.
func snapshot(ctx context.Context, endpoint, id string) error {
	var total atomic.Int64
	commit, err := hubtest.Snapshot(ctx, endpoint, id, func(n int) { total.Add(int64(n)) })
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(pulled{Digest: commit, Bytes: total.Load()})
}
