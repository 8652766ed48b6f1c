// Command cmd simulates bursts and prints what they cost, a line each, as a Markdown table:
//
//	go run ./node/internal/simulate/cmd -nodes 100,1000 -registry 40
package main

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/simulate"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	var cfg simulate.Config
	nodes := flag.String("nodes", "100,1000", "numbers of nodes, one run each")
	size := flag.Int64("size", 1024, "of the image in MiB")
	layers := flag.Int("layers", 1, "equal parts that the image has")
	parts := flag.String("parts", "", "proportions of the image's layers, as 6:3:1, where they are not equal")
	flag.BoolVar(&cfg.Shared, "shared", false,
		"what is under way shares the links, as on the rig of test/bench; for few nodes")
	flag.IntVar(&cfg.Parallel, "parallel", 0, "layers that a node pulls at one time (0: all)")
	ahead := flag.Int64("ahead", 0, "MiB of the layers after those that a node pulls that it gets as well")
	seconds := flag.Bool("seconds", false,
		"print for each second what came from the registry and what reached the nodes (with -shared)")
	link := flag.Float64("link", 10, "Gbit/s of a node's link, each way")
	registry := flag.Float64("registry", 10, "Gbit/s of the registry's link")
	streamRate := flag.Float64("stream", 0,
		"Gbit/s that the registry gives one request at the most (with -shared; 0: all)")
	behind := flag.Int64("behind", 0,
		"KiB of a chunk under way to a peer that go out before a message to it "+
			"(with -shared; 0: what twice 50 ms take)")
	flag.IntVar(&cfg.Zones, "zones", 1, "zones over which the nodes are spread")
	border := flag.Float64("border", 0,
		"Gbit/s of the link between a zone and all that is outside, each way (with -shared; 0: no limit)")
	flag.DurationVar(&cfg.Stagger, "stagger", 0, "time over which the nodes start")
	flag.Float64Var(&cfg.Deaths, "deaths", 0, "share of nodes that die during the pull")
	flag.BoolVar(&cfg.SilentDeaths, "silent", false, "those that die do so without a word")
	leaves := flag.Bool("leaves", false, "plan in leaves, as while an agent is connected that knows no pieces")
	flag.IntVar(&cfg.Schedule.GroupSize, "group", 0, "most nodes of a group (0: the agent's default)")
	flag.IntVar(&cfg.Schedule.UpstreamRuns, "upstream-runs", 0,
		"fewest runs that may be leased at one time (0: the agent's default)")
	flag.Float64Var(&cfg.TableCharge, "table-charge", 0,
		"virtual time that the coordinator takes for each second its table really took")
	flag.DurationVar(&cfg.MessageCost, "message-cost", 0, "time that the coordinator takes to write one message")
	flag.Uint64Var(&cfg.Seed, "seed", 1, "of all that is random")
	paper := flag.Int("paper", 0, "print instead what the DHT costs where each node holds so many blobs")
	profile := flag.String("cpuprofile", "", "file for a CPU profile")
	flag.Parse()
	if *profile != "" {
		f, err := os.Create(*profile)
		if err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	if !*leaves {
		cfg.Schedule.Grain = content.Pieces
	}
	equal := strings.TrimSuffix(strings.Repeat("1:", max(*layers, 1)), ":")
	var err error
	if cfg.Blobs, err = split(*size<<20, cmp.Or(*parts, equal)); err != nil {
		return err
	}
	cfg.ReadAhead, cfg.Behind = *ahead<<20, *behind<<10
	cfg.NodeRate, cfg.RegistryRate, cfg.StreamRate = *link*1e9, *registry*1e9, *streamRate*1e9
	cfg.BorderRate = *border * 1e9

	counts, err := numbers(*nodes)
	if err != nil {
		return err
	}
	if *paper > 0 {
		onPaper(counts, *paper)
		return nil
	}
	return simulated(cfg, counts, *seconds)
}

// numbers reads the value of -nodes.
func numbers(list string) (counts []int, err error) {
	for field := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(field)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("-nodes %q: %q is no number of nodes", list, field)
		}
		counts = append(counts, n)
	}
	return counts, nil
}

func printHead(head string) {
	fmt.Println(head)
	fmt.Println(strings.Repeat("| --- ", strings.Count(head, "|")-1) + "|")
}

// onPaper prints what the DHT costs where each node holds so many blobs.
func onPaper(counts []int, blobs int) {
	printHead("| nodes | records mean, most | messages and bytes to provide a blob | bytes/s per node |")
	for _, n := range counts {
		p := simulate.OnPaper(n, blobs)
		fmt.Printf("| %d | %d, %d | %d, %d | %.0f |\n", n, p.MeanRecords, p.MostRecords, p.ProvideMessages,
			p.ProvideBytes, p.Rate)
	}
}

// simulated runs a burst for each number of nodes, and prints what it cost.
func simulated(cfg simulate.Config, counts []int, seconds bool) error {
	printHead("| nodes | ideal s | first | median | last over ideal | longest wait for a layer's " +
		"first byte s | duplicates " +
		"| end s | registry copies | requests | busiest sent | peers median, most " +
		"| into a zone | reports | orders | assignments | control MB in, out | table CPU s (per GiB) | died | run s |")
	for _, n := range counts {
		cfg.Nodes = n
		start := time.Now()
		r, err := simulate.Run(cfg)
		if err != nil {
			return err
		}
		fmt.Printf("| %d | %.3f | %.2f | %.2f | %.2f | %s | %d | %.2f | %.3f | %d | %.2f | %d, %d | %.3f | %d | %d | "+
			"%d | %.1f, %.1f | %.1f (%.4f) | %d | %.0f |\n",
			n, r.Ideal.Seconds(), r.OverIdeal(r.First), r.OverIdeal(r.Median), r.OverIdeal(r.Last), waits(r.FirstByte),
			r.Duplicates, r.End.Seconds(), r.RegistryCopies,
			r.RegistryRequests, r.BusiestCopies, r.MedianPartners, r.MostPartners, r.CrossingCopies, r.Reports,
			r.Orders, r.Assignments,
			float64(r.ControlIn)/1e6, float64(r.ControlOut)/1e6, r.TableCPU.Seconds(), r.TableCPUPerGiB(), r.Died,
			time.Since(start).Seconds())
		if seconds {
			bySecond(r)
		}
	}
	return nil
}

// waits prints how long the first byte of each layer took; of many layers, the longest.
func waits(firstBytes []time.Duration) string {
	if len(firstBytes) > 4 {
		firstBytes = []time.Duration{slices.Max(firstBytes)}
	}
	var out []string
	for _, d := range firstBytes {
		out = append(out, fmt.Sprintf("%.1f", d.Seconds()))
	}
	return strings.Join(out, ", ")
}

// split cuts size in proportion to numbers that colons separate.
func split(size int64, proportions string) ([]int64, error) {
	var parts []int64
	total := int64(0)
	for field := range strings.SplitSeq(proportions, ":") {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("-parts %q: %q is no part", proportions, field)
		}
		parts, total = append(parts, n), total+n
	}
	for i, n := range parts {
		parts[i] = size * n / total
	}
	return parts, nil
}

// bySecond prints what came in each second: from the registry, and per node, and how much later than from the registry
// the last node had it.
func bySecond(r *simulate.Result) {
	type chunk struct{ blob, index int }
	first := map[chunk]time.Duration{}
	last := map[chunk]time.Duration{}
	fromRegistry, landed, lags, lag := map[int]int{}, map[int]int{}, map[int]int{}, map[int]time.Duration{}
	for _, l := range r.Landings {
		c := chunk{l.Blob, l.Chunk}
		if l.Upstream {
			fromRegistry[int(l.At.Seconds())]++
			first[c] = l.At
		}
		landed[int(l.At.Seconds())]++
		last[c] = l.At
	}
	for c, at := range first {
		s := int(at.Seconds())
		lags[s]++
		lag[s] += last[c] - at
	}
	fmt.Println("| second | chunks from the registry | chunks per node | mean s until the last node had it |")
	fmt.Println("| --- | --- | --- | --- |")
	for s := range int(r.End.Seconds()) + 1 {
		fmt.Printf("| %d | %d | %.1f | %.2f |\n", s, fromRegistry[s], float64(landed[s])/float64(r.Nodes),
			lag[s].Seconds()/float64(max(lags[s], 1)))
	}
}
