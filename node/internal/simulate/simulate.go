package simulate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/bits-and-blooms/bitset"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
)

// ErrUnfinished: there were nodes that did not get all blobs before Config.Limit.
var ErrUnfinished = errors.New("nodes did not finish")

const (
	// zoneLatency is the one-way time of a message within a zone, farLatency between zones, and registryLatency from
	// and to the registry.
	zoneLatency     = 200 * time.Microsecond
	farLatency      = 2 * time.Millisecond
	registryLatency = 2 * time.Millisecond
	// discovery is how long a coordinator looks for holders before it sends anyone upstream: a few round trips of a DHT
	// lookup. In an agent swarm.Options.DiscoveryGrace bounds it.
	discovery = 20 * time.Millisecond
)

// Config describes a burst. The zero value of a field means its default.
type Config struct {
	Nodes int
	// Blobs are the sizes in bytes of the image's layers, all pulled at once.
	Blobs []int64
	// NodeRate is the rate of a node's up-link and of its down-link, RegistryRate that of the registry's up-link, in
	// bits per second; default 10 Gbit/s each.
	NodeRate, RegistryRate float64
	// StreamRate is the most that one request gets of the registry, in bits per second, as of an object store; default:
	// all of its link. It counts where links are shared.
	StreamRate float64
	// Zones over which the nodes are spread in turn; default 1.
	Zones int
	// BorderRate is the rate, each way, of the link between a zone and all that is outside, the registry too, in bits
	// per second; default: no limit. It counts where links are shared.
	BorderRate float64
	// Shared has everything that is under way share its links, as TCP does on a slow network, in place of one chunk
	// after the other, and messages wait for Queue at either end of a busy link (default 50 ms), as in the rig of
	// test/bench.
	Shared bool
	Queue  time.Duration
	// Behind is how many bytes of a chunk that is under way to a peer go out before a message to it; default: what
	// takes twice the time of Queue.
	Behind int64
	// Parallel is how many blobs a node pulls at one time, in their order; default: all.
	Parallel int
	// ReadAhead is how many bytes of the blobs after one that a node pulls it begins to get as well; default 0: none.
	ReadAhead int64
	// Stagger is the time over which the starts of the nodes are spread evenly at random; default 0, all at once.
	Stagger time.Duration
	// Deaths is the share of nodes that die, each at a random time within the ideal time of its start. The coordinators
	// do not. SilentDeaths: their connections are not reset, they just say nothing any more.
	Deaths       float64
	SilentDeaths bool
	// TableCharge has the coordinator take that many times the CPU time that the table's calls really took, one call
	// after the other; default 0: none. A run with it is not reproducible. MessageCost is how long it takes to write
	// one message of orders, one after the other; default 0.
	TableCharge float64
	MessageCost time.Duration
	Schedule    schedule.Config
	Seed        uint64
	// Limit is the virtual time after which a run is given up; default 10 min.
	Limit time.Duration
}

func (c Config) withDefaults() Config {
	c.NodeRate = orDefault(c.NodeRate, 10e9)
	c.RegistryRate = orDefault(c.RegistryRate, 10e9)
	c.Zones = orDefault(c.Zones, 1)
	c.Queue = orDefault(c.Queue, 50*time.Millisecond)
	c.Parallel = orDefault(c.Parallel, max(len(c.Blobs), 1))
	c.Limit = orDefault(c.Limit, 10*time.Minute)
	return c
}

func orDefault[T int | float64 | time.Duration](v, d T) T {
	if v <= 0 {
		return d
	}
	return v
}

func (c Config) size() (total int64) {
	for _, b := range c.Blobs {
		total += b
	}
	return total
}

// ideal is the time that the image takes over the narrowest link.
func (c Config) ideal() time.Duration {
	rate := min(c.NodeRate, c.RegistryRate)
	if c.BorderRate > 0 {
		rate = min(rate, c.BorderRate)
	}
	return transfer(c.size(), rate/8)
}

// Result is what a burst cost. Copies are bytes over the bytes of the image.
type Result struct {
	Nodes, Died int
	Ideal       time.Duration
	// First, Median and Last are when nodes were done, each from its own start.
	First, Median, Last time.Duration
	// End is when the last node was done, from the first start.
	End              time.Duration
	RegistryCopies   float64
	RegistryRequests int
	// BusiestCopies is what the node that sent most sent; Partners how many others a node asked or served.
	BusiestCopies                float64
	MedianPartners, MostPartners int
	// CrossingCopies is what entered a zone from other zones' nodes, for the zone that took most.
	CrossingCopies float64
	// Duplicates are chunks that came though the node had them.
	Duplicates int
	// FirstByte is, for each layer, how long that node waited for its first chunk which waited longest.
	FirstByte []time.Duration
	// Landings are all arrivals of chunks, in order.
	Landings []Landing
	// Reports and Orders are messages to and from all coordinators, Assignments what the orders held.
	Reports, Orders, Assignments int64
	ControlIn, ControlOut        int64 // bytes
	// TableCPU is the CPU time really spent in the tables, and Delivered how many bytes the nodes got by it.
	TableCPU  time.Duration
	Delivered int64
}

// OverIdeal is a time over the ideal one.
func (r *Result) OverIdeal(t time.Duration) float64 { return float64(t) / float64(r.Ideal) }

// TableCPUPerGiB is the tables' CPU time in seconds for each GiB that nodes got.
func (r *Result) TableCPUPerGiB() float64 {
	return r.TableCPU.Seconds() / (float64(r.Delivered) / (1 << 30))
}

// Landing is the arrival of a chunk at a node.
type Landing struct {
	At                time.Duration
	Node, Blob, Chunk int
	Upstream          bool
}

type peerID = peer.ID

type simulation struct {
	events
	cfg              Config
	nodes            []*node
	blobs            []*blob
	registry         *uplink
	registryRequests int
	stream           int // of the registry, counted on
	unfinished       int
	duplicates       int
	landings         []Landing
}

type blob struct {
	index       int
	firstByte   time.Duration // of the reader who waited longest for the first chunk
	size        int64
	cut         content.Cut
	coordinator *coordinator
}

// Run simulates a burst. It fails with ErrUnfinished.
func Run(cfg Config) (*Result, error) {
	defer lockThread()()
	cfg = cfg.withDefaults()
	s := &simulation{cfg: cfg, unfinished: cfg.Nodes}
	s.registry = newUplink(&s.events, cfg.RegistryRate/8)
	if cfg.Shared {
		s.registry.fabric, s.registry.slots, s.registry.perLine = &fabric{events: &s.events}, math.MaxInt, 1
		s.registry.lineRate = cfg.StreamRate / 8
	}
	random := rand.New(rand.NewPCG(cfg.Seed, 0))
	borders := make([]border, cfg.Zones)
	for i := range cfg.Nodes {
		s.nodes = append(s.nodes, &node{
			sim: s, index: i, id: idOf(i), zone: fmt.Sprint("zone-", i%cfg.Zones),
			up:   newUplink(&s.events, cfg.NodeRate/8),
			down: downlink{rate: cfg.NodeRate / 8}, died: alive, partners: bitset.New(uint(cfg.Nodes)),
			heard: map[int]int64{},
		})
		if cfg.Shared {
			up := s.nodes[i].up
			up.fabric, up.slots, up.perLine = s.registry.fabric, senders, sendersPerPeer
			if cfg.BorderRate > 0 {
				b := &borders[i%cfg.Zones]
				b.out.rate, b.in.rate = cfg.BorderRate/8, cfg.BorderRate/8
				up.border, s.nodes[i].down.border = b, b
			}
		}
	}
	hosts := map[*node]bool{}
	for i, size := range cfg.Blobs {
		b := &blob{index: i, size: size, cut: cfg.Schedule.Grain.Cut(size)}
		s.blobs = append(s.blobs, b)
		host := s.nodes[random.IntN(cfg.Nodes)] // whose ID is nearest to the digest, which is as good as random
		hosts[host] = true
		b.coordinator = newCoordinator(s, b, host)
		for _, n := range s.nodes {
			n.fetches = append(n.fetches, newFetch(n, b))
		}
	}
	starts := make([]time.Duration, cfg.Nodes)
	for i, n := range s.nodes {
		if cfg.Stagger > 0 {
			starts[i] = upTo(random, cfg.Stagger)
		}
		s.at(starts[i], n.start)
	}
	for _, i := range random.Perm(cfg.Nodes)[:int(cfg.Deaths*float64(cfg.Nodes))] {
		if n := s.nodes[i]; !hosts[n] {
			s.at(starts[i]+upTo(random, cfg.ideal()), n.die)
		}
	}
	for s.unfinished > 0 && s.now < cfg.Limit && s.step() {
	}
	r := s.result(starts)
	if s.unfinished > 0 {
		return r, fmt.Errorf("%d of %d after %s: %w", s.unfinished, cfg.Nodes, s.now, ErrUnfinished)
	}
	return r, nil
}

func upTo(r *rand.Rand, below time.Duration) time.Duration {
	return time.Duration(r.Int64N(int64(below)))
}

// clock is the virtual time as the table knows it.
func (s *simulation) clock() time.Time { return time.Unix(1e9, 0).Add(s.now) }

func (s *simulation) latency(a, b *node) time.Duration {
	if a == b {
		return 0
	}
	d := farLatency
	if a.zone == b.zone {
		d = zoneLatency
	}
	if !s.cfg.Shared {
		return d
	}
	if a.up.underWay > 0 {
		d += s.cfg.Queue
		if l := a.up.lines[b.index]; l != nil && l.underWay > 0 {
			d += s.buffered(a.up, l)
		}
	}
	if b.down.underWay > 0 {
		d += s.cfg.Queue
	}
	for _, p := range crossed(a.up.border, b.up.border) {
		if p.underWay > 0 {
			d += s.cfg.Queue
		}
	}
	return d
}

// buffered is how long a message waits in the sender's buffer, behind what is under way in the same line.
func (s *simulation) buffered(up *uplink, l *line) time.Duration {
	if s.cfg.Behind > 0 {
		return up.fabric.left(l, s.cfg.Behind)
	}
	return 2 * s.cfg.Queue
}

func (s *simulation) result(starts []time.Duration) *Result {
	size := float64(s.cfg.size())
	r := &Result{
		Nodes: len(s.nodes), Ideal: s.cfg.ideal(), RegistryCopies: float64(s.registry.sent) / size,
		RegistryRequests: s.registryRequests, Duplicates: s.duplicates, Landings: s.landings,
	}
	var times []time.Duration
	var partners []int
	crossed := map[string]int64{}
	for i, n := range s.nodes {
		if n.done > 0 {
			times = append(times, n.done-starts[i])
			r.End = max(r.End, n.done)
			r.Delivered += s.cfg.size()
		} else if n.died != alive {
			r.Died++
		}
		r.BusiestCopies = max(r.BusiestCopies, float64(n.up.sent)/size)
		partners = append(partners, int(n.partners.Count()))
		crossed[n.zone] += n.crossed
	}
	for _, c := range crossed {
		r.CrossingCopies = max(r.CrossingCopies, float64(c)/size)
	}
	slices.Sort(partners)
	r.MedianPartners, r.MostPartners = partners[len(partners)/2], partners[len(partners)-1]
	if len(times) > 0 {
		slices.Sort(times)
		r.First, r.Median, r.Last = times[0], times[len(times)/2], times[len(times)-1]
	}
	for _, b := range s.blobs {
		c := b.coordinator
		r.FirstByte = append(r.FirstByte, b.firstByte)
		r.Reports += c.reports
		r.Orders += c.orders
		r.Assignments += c.assignments
		r.ControlIn += c.bytesIn
		r.ControlOut += c.bytesOut
		r.TableCPU += c.cpu
	}
	return r
}

func idOf(i int) peerID { return peerID(binary.BigEndian.AppendUint32(nil, uint32(i))) }

func indexOf(id peerID) int { return int(binary.BigEndian.Uint32([]byte(id))) }

// sum stands for a chunk's hash.
func sum(b *blob, i int) (s schedule.Sum) {
	binary.BigEndian.PutUint32(s[:], uint32(b.index))
	binary.BigEndian.PutUint32(s[4:], uint32(i))
	return s
}
