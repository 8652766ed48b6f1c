package simulate

import (
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoal-cache/shoal/node/internal/schedule"
)

// Bytes on the wire, rounded up from the swarm package's CBOR frames: an index takes up to 3 bytes, a claim its hash
// and an Ed25519 signature, a peer ID 38 bytes.
const (
	messageBytes    = 32
	assignmentBytes = 110
	leaseBytes      = 8
	claimBytes      = 110
	indexBytes      = 3
	suspicionBytes  = 42
)

// coordinator is one blob's room: the real table, a queue of reports before it and mailboxes of orders behind it.
type coordinator struct {
	sim   *simulation
	blob  *blob
	host  *node
	table *schedule.Table

	inbox   []func()
	working bool
	begun   bool
	boxes   []schedule.Orders // by node
	full    []int             // nodes whose box is not empty, in the order in which they came to be so
	told    []time.Duration   // when the last orders reach each node
	writing bool

	reports, orders, assignments int64
	bytesIn, bytesOut            int64
	cpu                          time.Duration
}

func newCoordinator(s *simulation, b *blob, host *node) *coordinator {
	cfg := s.cfg.Schedule
	cfg.Blob = fmt.Sprint(b.index)
	return &coordinator{
		sim: s, blob: b, host: host, table: schedule.New(cfg),
		boxes: make([]schedule.Orders, len(s.nodes)), told: make([]time.Duration, len(s.nodes)),
	}
}

// begin looks for holders, who are none, when the first participant comes.
func (c *coordinator) begin() {
	if c.begun {
		return
	}
	c.begun = true
	c.sim.after(discovery, func() { c.call(func() { c.table.Open(c.sim.clock()) }) })
	c.tick()
}

// tick keeps the table's time, every second as a room does.
func (c *coordinator) tick() {
	c.sim.after(time.Second, func() {
		c.call(func() { c.table.Tick(c.sim.clock()) })
		if c.sim.unfinished > 0 {
			c.tick()
		}
	})
}

// join, report and leave reach the coordinator now.
func (c *coordinator) join(n *node, j schedule.Join) {
	c.begin()
	c.bytesIn += messageBytes + 64
	c.reports++
	c.call(func() {
		if err := c.table.Join(c.sim.clock(), n.id, j); err != nil {
			panic(err) // only a size that differs fails, and all have the same
		}
	})
}

func (c *coordinator) report(n *node, r schedule.Report) {
	c.bytesIn += messageBytes + int64(len(r.Have)*indexBytes+len(r.Claims)*claimBytes+len(r.Suspects)*suspicionBytes)
	c.reports++
	c.call(func() {
		// It fails for one that has left: the report of a node that died was still on its way.
		_ = c.table.Report(c.sim.clock(), n.id, r)
	})
}

func (c *coordinator) leave(n *node) { c.call(func() { c.table.Leave(c.sim.clock(), n.id) }) }

// call has the table do something, once it has done what came before.
func (c *coordinator) call(do func()) {
	c.inbox = append(c.inbox, do)
	if !c.working {
		c.work()
	}
}

func (c *coordinator) work() {
	c.working = false
	for len(c.inbox) > 0 {
		do := c.inbox[0]
		c.inbox = c.inbox[1:]
		start := threadTime()
		do()
		took := threadTime() - start
		c.cpu += took
		c.deliver()
		if busy := time.Duration(float64(took) * c.sim.cfg.TableCharge); busy > 0 {
			c.working = true
			c.sim.after(busy, c.work)
			return
		}
	}
}

func (c *coordinator) deliver() {
	c.table.Take(func(to peerID, o schedule.Orders) {
		i := indexOf(to)
		if c.boxes[i].Empty() {
			c.full = append(c.full, i)
			c.boxes[i] = o
		} else {
			c.boxes[i].Merge(o)
		}
	})
	if !c.writing {
		c.write()
	}
}

// write sends what is in the mailboxes, one after the other.
func (c *coordinator) write() {
	c.writing = false
	for len(c.full) > 0 {
		n := c.sim.nodes[c.full[0]]
		c.full = c.full[1:]
		o := c.boxes[n.index]
		c.boxes[n.index] = schedule.Orders{}
		size := int64(messageBytes + len(o.Chunks)*assignmentBytes + len(o.Leases)*leaseBytes)
		c.orders++
		c.assignments += int64(len(o.Chunks))
		c.bytesOut += size
		took := c.sim.cfg.MessageCost
		if n != c.host {
			took += c.host.up.message(size)
		}
		c.told[n.index] = max(c.told[n.index], c.sim.now+took+c.sim.latency(c.host, n)) // after what was sent before
		c.sim.at(c.told[n.index], func() { n.obey(c.blob, o) })
		if took > 0 {
			c.writing = true
			c.sim.after(took, c.write)
			return
		}
	}
}

// threadTime is the CPU time that this goroutine's thread has used: on a busy machine the clock on the wall would
// count what others do.
func threadTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		panic(err) // every Linux has that clock
	}
	return time.Duration(ts.Nano())
}

// lockThread keeps the goroutine on its thread, for threadTime; the function returned undoes it.
func lockThread() func() {
	runtime.LockOSThread()
	return runtime.UnlockOSThread
}
