package plugin

import (
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/operator/internal/survey"
)

var update = flag.Bool("update", false, "write what the verbs print to testdata")

const (
	mib  = 1 << 20
	some = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
)

// TestSessions_AreWhatAReaderExpects compares what the verbs print about a small cluster, byte for byte. Whoever
// changes a line reads all of it once more: go test ./operator/internal/plugin -run Sessions -update.
func TestSessions_AreWhatAReaderExpects(t *testing.T) {
	t.Parallel()
	finding := func(grave bool, reason, node, message string) survey.Finding {
		return survey.Finding{Reason: reason, Grave: grave, Node: node, Message: message, Mend: survey.Mend(reason),
			Link: survey.Link(reason)}
	}
	state := survey.State{
		Agents: 3, Ready: 2, Admitted: 3, Zones: []string{"zone-a", "zone-b"}, Pins: 2, Whole: 1,
		Sums: survey.Sums{Nodes: 3, Hits: 75, Requests: 100, Bytes: 6 << 30, Capacity: 60 << 30, Pinned: 300 * mib,
			Peers: 5 << 30, Upstream: 2 << 30, Saved: 9 << 30},
		Nodes: []survey.NodeState{
			{Name: "node1", Zone: "zone-a", Admitted: true, Mirror: "MirrorConfigured", Used: 2 << 30, Capacity: 20 << 30,
				Hits: 30, Requests: 40, Peers: 1 << 30, Upstream: 1 << 30, Saved: 3 << 30, Version: "1.2.0",
				Reported: 90 * time.Second},
			{Name: "node2", Zone: "zone-b", Admitted: true, Mirror: "ConfigPathList", Reported: -1},
		},
		Findings: []survey.Finding{
			finding(true, v1alpha1.ReasonConfigPathList, "node2", "config_path is \"/etc/containerd/certs.d:/etc/docker/certs.d\""),
			finding(true, v1alpha1.ReasonConfigPathList, "node3", "config_path is \"/etc/containerd/certs.d:/etc/docker/certs.d\""),
			finding(false, v1alpha1.ReasonNoRoomForModels, "node1", "org/model: \"model.safetensors\" has 900 bytes"),
		},
		Hidden: []string{"nodes"},
	}
	check := checked{Findings: state.Findings}
	check.looked(true, "API server: 3 peers, 3 node caches, 2 pins")
	check.looked(false, "Runtimes that are set up to ask their agent: 1 of 3")
	places := []place{
		{Node: "node1", Complete: true, Held: 30 * mib, Parts: 3, Known: 3, Digest: some},
		{Node: "node2", Held: 10 * mib, Parts: 1, Known: 3, Digest: some},
		{Node: "node3"},
		{Node: "node4", Problem: "it gave no answer in time"},
	}
	pull := view.Pull{Repository: "docker.io/library/redis", Reference: "7",
		Started: time.Date(2026, 7, 1, 12, 0, 0, 0, time.Local), Took: 3 * time.Second,
		Parts: []view.PullPart{
			{Kind: "manifest", Digest: some, Bytes: 1000, Code: "200", Resolve: 400 * time.Millisecond,
				Authorize: 400 * time.Millisecond, FirstByte: 410 * time.Millisecond, Took: 410 * time.Millisecond},
			{Kind: "blob", Digest: "sha256:b0", Bytes: 20 * mib, Code: "200", After: 500 * time.Millisecond,
				FirstByte: 30 * time.Millisecond, Took: 2500 * time.Millisecond,
				Fetch: &view.PullFetch{Discovery: 20 * time.Millisecond, Plan: 25 * time.Millisecond, Size: 20 * mib,
					FromPeers: 15 * mib, FromUpstream: 5 * mib, Peers: map[string]int64{"a": 15 * mib}, Outcome: "complete"}},
		}}
	// Three nodes got 128 MiB from the first and from each other in two seconds.
	perf := []tested{
		{Node: "node1", Took: 2 * time.Millisecond, Bytes: 128 * mib, Had: true},
		{Node: "node2", Took: 2400 * time.Millisecond, Fetched: 2 * time.Second, Bytes: 128 * mib, Peers: 128 * mib,
			From: map[string]int64{"node1": 64 * mib, "node3": 64 * mib}},
		{Node: "node3", Took: 2600 * time.Millisecond, Fetched: 2 * time.Second, Bytes: 128 * mib, Peers: 128 * mib,
			From: map[string]int64{"node1": 70 * mib, "node2": 58 * mib}},
		{Node: "node4", Problem: "it did not come in time"},
	}
	pin := v1alpha1.ArtifactPin{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "base"},
		Status: v1alpha1.ArtifactPinStatus{Ready: 1, Desired: 2, Summary: "docker.io/library/debian:stable-slim",
			Conditions: []metav1.Condition{{Type: v1alpha1.ConditionReady, Reason: v1alpha1.ReasonFetching}}}}
	fetch := view.Fetch{Digest: some, Repository: "docker.io/library/redis", Size: 100 * mib, Present: 25 * mib,
		FromPeers: 20 * mib, FromUpstream: 5 * mib, Readers: 1, Started: time.Now().Add(-90*time.Second - time.Millisecond)}

	for name, write := range map[string]func(*plugin, *view.Text){
		"status":      func(p *plugin, w *view.Text) { p.writeState(w, state) },
		"status-wide": func(p *plugin, w *view.Text) { p.output = view.Wide; p.writeState(w, state) },
		"check":       func(p *plugin, w *view.Text) { p.writeChecked(w, check) },
		"check-well": func(p *plugin, w *view.Text) {
			p.writeChecked(w, checked{Looked: check.Looked[:1], Findings: []survey.Finding{}})
		},
		"where": func(p *plugin, w *view.Text) { p.writePlaces(w, "redis:7", places) },
		"why":   func(_ *plugin, w *view.Text) { w.Pull("node1", pull) },
		"top": func(_ *plugin, w *view.Text) {
			writeTop(w, []topRow{{Node: "node1", Fetches: []view.Fetch{fetch}}, {Node: "node2"},
				{Node: "node3", Problem: "it gave no answer in time"}}, time.Now())
		},
		"ls": func(p *plugin, w *view.Text) {
			p.writeListed(w, []listed{{Blob: view.Blob{Digest: some, Size: 10 * mib, Pinned: true,
				MediaType: "application/vnd.oci.image.layer.v1.tar+gzip"}, Nodes: []string{"node1", "node2"}}})
		},
		"pins":      func(_ *plugin, w *view.Text) { writePins(w, []v1alpha1.ArtifactPin{pin}) },
		"test":      func(p *plugin, w *view.Text) { p.writeTested(w, perf[:3], false) },
		"test-perf": func(p *plugin, w *view.Text) { p.writeTested(w, perf, true) },
		"test-json": func(p *plugin, w *view.Text) {
			p.Out, p.output = w, view.JSON
			require.NoError(t, p.print(perf[1:2], nil))
		},
		"test-image": func(p *plugin, w *view.Text) {
			p.writeTested(w, []tested{{Node: "node1", Took: time.Second, Bytes: 8 * mib, Upstream: 8 * mib},
				{Node: "node2", Took: 2 * time.Second, Bytes: 8 * mib, Peers: 8 * mib}}, false)
		},
	} {
		var out view.Text
		write(&plugin{}, &out)
		file := filepath.Join("testdata", name+".txt")
		if *update {
			require.NoError(t, os.WriteFile(file, []byte(out.String()), 0o600))
		}
		want, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Equal(t, string(want), out.String(), name)
	}
}
