package report_test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/test/bench/internal/report"
)

const mib = 1 << 20

func sample() *report.Report {
	return &report.Report{Command: "bench -quick", Workloads: []report.Workload{
		{Name: "cold", Title: "cold burst", Runs: []report.Run{
			{
				Contender: "direct", Nodes: 4, Pulls: 4, Content: 100 * mib, Ideal: 10, First: 39, Median: 39.5,
				Last:          40,
				RegistryBytes: 400 * mib, ClientCPU: 1,
				Curves: []report.Curve{{Node: "h<0>", Points: [][2]float64{{0, 0}, {20, 50 * mib}, {40, 100 * mib}}}},
			},
			{
				Contender: "shoal", Nodes: 4, Pulls: 4, Content: 100 * mib, Ideal: 10, First: 11, Median: 11.5,
				Last:          12,
				RegistryBytes: 101 * mib, Busiest: 140 * mib, ContenderCPU: 3, ClientCPU: 1,
				Curves: []report.Curve{{Node: "h0", Points: [][2]float64{{0, 0}, {12, 100 * mib}}}},
			},
			{Contender: "spegel", Skipped: "no binary was given"},
		}},
	}}
}

func TestFiguresAreRatiosOfOneRun(t *testing.T) {
	t.Parallel()
	run := sample().Workloads[0].Runs[1]
	require.InDelta(t, 1.2, run.OverIdeal(), 1e-9)
	require.InDelta(t, 1.01, run.RegistryCopies(), 1e-9)
	require.InDelta(t, 1.4, run.BusiestCopies(), 1e-9)
	require.InDelta(t, 10.24, run.CPUPerGiB(), 1e-9)
	require.InDelta(t, 100*mib/12.0, run.Throughput(), 1e-6)
	require.Zero(t, report.Run{Last: 3}.OverIdeal(), "an unshaped run has no ideal")
}

func TestFirstBytes_TheLongestOfEachSizeStandsInTheTable(t *testing.T) {
	t.Parallel()
	run := report.Run{Contender: "shoal", Pulls: 2}
	run.Wait(96, 2)
	run.Wait(4, 0.5)
	run.Wait(4, 3.25)
	run.Wait(4, 1)
	var out strings.Builder
	require.NoError(t, (&report.Report{Workloads: []report.Workload{{Runs: []report.Run{run}}}}).WriteTable(&out))
	require.Contains(t, out.String(), "first byte of each blob, smallest first, after at most 3.2, 2.0 s")
}

func TestMedianIsOneOfTheValues(t *testing.T) {
	t.Parallel()
	require.Equal(t, 2, report.Median([]int{3, 1, 2}))
	require.Equal(t, 2, report.Median([]int{4, 2, 1, 3}))
	require.Equal(t, 7, report.Median([]int{7}))
	require.Zero(t, report.Median[int](nil))
	values := []int{3, 1, 2}
	report.Median(values)
	require.Equal(t, []int{3, 1, 2}, values, "the caller's order stays")
}

func TestTheCPUWasTheLimitWhenItWasBusyThroughout(t *testing.T) {
	t.Parallel()
	require.False(t, report.Run{Busy: 0.6, Saturated: 0.1}.CPUBound())
	require.True(t, report.Run{Busy: 0.95}.CPUBound())
	require.True(t, report.Run{Busy: 0.7, Saturated: 0.6}.CPUBound())
	require.InDelta(t, 0.5, report.Run{Busy: 0.75, Span: 10, CPUs: 2, ContenderCPU: 4, ClientCPU: 1}.Others(), 1e-9)
}

func verdicts(r *report.Report) map[string]bool {
	met := map[string]bool{}
	for _, t := range r.Targets {
		met[t.Workload+": "+t.Name] = t.Met()
	}
	return met
}

func TestTargetsAreJudgedAgainstTheSameRun(t *testing.T) {
	t.Parallel()
	r := sample()
	r.Judge()
	require.Equal(t, map[string]bool{
		"cold: pulls that failed":                   true,
		"cold: last node over ideal":                true,
		"cold: registry bytes over image":           true,
		"cold: sent by the busiest node over image": false,
		"cold: last node over direct":               true,
	}, verdicts(r))
}

func TestAWarmPullIsJudgedAgainstPlainHTTPS(t *testing.T) {
	t.Parallel()
	r := &report.Report{Workloads: []report.Workload{{Name: "warm", Runs: []report.Run{
		{Contender: "https", Content: 1024 * mib, Last: 2, ContenderCPU: 1, ClientCPU: 1},
		{Contender: "https-kept", Content: 1024 * mib, Last: 2, ContenderCPU: 1, ClientCPU: 2},
		{Contender: "shoal", Content: 1024 * mib, Last: 2.5, ContenderCPU: 2.5, ClientCPU: 9},
		{Contender: "shoal-store", Content: 1024 * mib, Last: 2.5, ContenderCPU: 3.1, ClientCPU: 9},
	}}}}
	r.Judge()
	require.Equal(t, map[string]bool{
		"warm: pulls that failed": true, "warm: throughput over plain HTTPS": false, "warm: CPU over plain HTTPS": true,
		"warm: CPU agent to agent over https": false, "warm: CPU agent to agent over https-kept": true,
	}, verdicts(r))
}

func TestAModelIsJudgedByTheHubsPromises(t *testing.T) {
	t.Parallel()
	r := &report.Report{Workloads: []report.Workload{{Name: "model", Runs: []report.Run{
		{Contender: "direct", Content: 600 * mib, Last: 400, Pulls: 8, RegistryRequests: 8 * 31},
		{Contender: "shoal", Content: 600 * mib, Ideal: 50, Last: 60, Pulls: 10, RegistryBytes: 610 * mib,
			RegistryRequests: 40, Late: &report.Late{Nodes: 2, Bytes: 1}, WarmRatio: 0.95},
	}}}}
	r.Judge()
	require.Equal(t, map[string]bool{
		"model: pulls that failed": true, "model: last node over ideal": true, "model: hub's bytes over model": true,
		"model: bytes of late nodes from the hub": false, "model: warm throughput over http.ServeFile": true,
		"model: hub's requests over those of one node": true, "model: last node over direct": true,
	}, verdicts(r))
	var table strings.Builder
	require.NoError(t, r.WriteTable(&table))
	require.Contains(t, table.String(), "2 late nodes took 1 bytes from the origin in 0 requests; warm 0.95 of "+
		"http.ServeFile")
}

func TestWhereSomethingIsAmissCopiesAreJudged(t *testing.T) {
	t.Parallel()
	for name, most := range map[string]float64{"object-store": 1.05, "no-range": 1.02, "lying": 2.1, "killed": 1.1} {
		for copies, want := range map[float64]bool{most - 0.01: true, most + 0.01: false} {
			r := &report.Report{Workloads: []report.Workload{{Name: name, Runs: []report.Run{
				{Contender: "shoal", Content: 100 * mib, RegistryBytes: int64(copies * 100 * mib)},
			}}}}
			r.Judge()
			require.Equal(t, want, verdicts(r)[name+": registry bytes over image"], "%s with %g copies", name, copies)
		}
	}
}

func TestAnObjectStoreIsJudgedByTime(t *testing.T) {
	t.Parallel()
	for name, most := range map[string]report.Seconds{"object-store": 12.2, "object-store-single": 12.7} {
		for last, want := range map[report.Seconds]bool{most - 0.1: true, most + 0.1: false} {
			r := &report.Report{Workloads: []report.Workload{{Name: name, Runs: []report.Run{
				{Contender: "shoal", Ideal: 10, Last: last},
			}}}}
			r.Judge()
			require.Equal(t, want, verdicts(r)[name+": last node over ideal"], "%s in %g s", name, last)
		}
	}
}

func TestTheTableTellsOfAKilledHostAndOfPullsBegunAnew(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	require.NoError(t, (&report.Report{Workloads: []report.Workload{{Runs: []report.Run{
		{Contender: "shoal", Pulls: 2, Again: 3, Killed: "h1"},
	}}}}).WriteTable(&out))
	require.Contains(t, out.String(), "3 blobs were wrong, and read again from their start; h1 was killed")
}

func TestASmallImageOnOneNodeMayCostFiftyMilliseconds(t *testing.T) {
	t.Parallel()
	for last, want := range map[report.Seconds]bool{1.04: true, 1.06: false} {
		r := &report.Report{Workloads: []report.Workload{{Name: "small-single", Runs: []report.Run{
			{Contender: "direct", Last: 1}, {Contender: "shoal", Last: last},
		}}}}
		r.Judge()
		require.Equal(t, want, verdicts(r)["small-single: seconds more than direct"])
	}
}

func TestTimesAreToStayFlatAsNodesGrow(t *testing.T) {
	t.Parallel()
	r := &report.Report{}
	for name, last := range map[string]report.Seconds{"nodes-2": 10, "nodes-4": 11, "nodes-8": 15} {
		r.Workloads = append(r.Workloads, report.Workload{Name: name,
			Runs: []report.Run{{Contender: "shoal", Last: last}}})
	}
	r.Judge()
	last := r.Targets[len(r.Targets)-1]
	require.Equal(t, "nodes", last.Workload)
	require.InDelta(t, 1.5, last.Got, 1e-9)
	require.False(t, last.Met())
}

func TestWhatWasSkippedOrBrokeOffIsNotCompared(t *testing.T) {
	t.Parallel()
	r := sample()
	require.Nil(t, r.Find("cold", "spegel"))
	require.NotNil(t, r.Find("cold", "direct"))
	require.Nil(t, r.Find("warm", "direct"))
	r.Workloads[0].Runs[1].Problem = "agent ended"
	r.Judge()
	require.Empty(t, r.Targets)
}

func TestTheTableHasALineForEachContenderAndSaysWhyOneIsMissing(t *testing.T) {
	t.Parallel()
	r := sample()
	r.Judge()
	var out bytes.Buffer
	require.NoError(t, r.WriteTable(&out))
	require.Regexp(t, `(?m)^direct +39\.00 +39\.50 +40\.00 +4\.00 +4\.00`, out.String())
	require.Regexp(t, `(?m)^spegel .*skipped: no binary was given`, out.String())
	require.Regexp(t, `(?m)^cold +sent by the busiest node over image +1\.40 +at most 1\.30 +missed`, out.String())
}

func TestThePageIsWholeAndEscapesNames(t *testing.T) {
	t.Parallel()
	r := sample()
	r.Judge()
	var out bytes.Buffer
	require.NoError(t, r.WriteHTML(&out))
	page := out.String()
	require.Contains(t, page, `polyline.c-pull-through { stroke: var(--pull-through); }`)
	require.NotContains(t, page, "h<0>")
	require.NotContains(t, page, "ZgotmplZ")
	require.NotContains(t, page, "src=", "the page needs nothing else")

	_, svg, found := strings.Cut(page, "<svg")
	require.True(t, found)
	svg, _, found = strings.Cut(svg, "</svg>")
	require.True(t, found)
	decoder := xml.NewDecoder(strings.NewReader("<svg" + svg + "</svg>"))
	lines := 0
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		if start, ok := token.(xml.StartElement); ok && start.Name.Local == "polyline" {
			lines++
		}
	}
	require.Equal(t, 2, lines, "one curve for each node")
}

func TestJSONIsReadBackAsItWas(t *testing.T) {
	t.Parallel()
	r := sample()
	r.Judge()
	var out bytes.Buffer
	require.NoError(t, r.WriteJSON(&out))
	var back report.Report
	require.NoError(t, json.Unmarshal(out.Bytes(), &back))
	require.Equal(t, *r, back)
}

func TestALongCurveKeepsItsEnds(t *testing.T) {
	t.Parallel()
	var points [][2]float64
	for i := range 1001 {
		points = append(points, [2]float64{float64(i), float64(2 * i)})
	}
	curve := report.NewCurve("h0", points)
	require.Len(t, curve.Points, 300)
	require.Equal(t, points[0], curve.Points[0])
	require.Equal(t, points[1000], curve.Points[299])
	require.Equal(t, points[:5], report.Thin(points[:5], 300))
}
