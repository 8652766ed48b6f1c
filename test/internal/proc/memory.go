package proc

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// ahead is how many bytes are let go before they are needed.
	ahead       = 256 << 20
	memoryPiece = 32 << 20
	memoryEvery = 20 * time.Millisecond
)

// Memory is held for a measurement, and let go while others take it. A virtual machine returns memory that is free to
// its host within seconds, and then pays for each page that it takes anew, some 3 s of processor time for a GiB. A
// contender that keeps what it pulls would pay that in the midst of a measurement, and one that meets pages which
// another has just let go would not.
type Memory struct {
	all  []byte
	held []byte // the end of all that has not been let go
	free int64  // bytes of the machine's that were free besides
	stop chan struct{}
	done chan struct{}
}

// HoldMemory takes n bytes, but no more than half of what is free, and lets them go as others take as much. The caller
// closes it.
func HoldMemory(n int64) (*Memory, error) {
	free, err := freeMemory()
	if err != nil {
		return nil, err
	}
	m := &Memory{stop: make(chan struct{}), done: make(chan struct{})}
	if n = min(n, free/2); n > 0 {
		m.all, err = unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE,
			unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_POPULATE)
		if err != nil {
			return nil, fmt.Errorf("take %d bytes of memory: %w", n, err)
		}
	}
	m.held, m.free = m.all, free-n
	go m.run()
	return m, nil
}

func (m *Memory) run() {
	defer close(m.done)
	tick := time.NewTicker(memoryEvery)
	defer tick.Stop()
	for {
		m.letGo()
		select {
		case <-tick.C:
		case <-m.stop:
			return
		}
	}
}

// letGo keeps as much free as there was, and what is needed ahead.
func (m *Memory) letGo() {
	free, err := freeMemory()
	if err != nil {
		return // at the latest Close gives all back
	}
	for ; free < m.free+ahead && len(m.held) > 0; free += memoryPiece {
		n := min(memoryPiece, len(m.held))
		_ = unix.Madvise(m.held[:n], unix.MADV_DONTNEED) // it fails for a range that is not mapped, and this one is
		m.held = m.held[n:]
	}
}

// Close gives back what is left.
func (m *Memory) Close() error {
	close(m.stop)
	<-m.done
	if m.all == nil {
		return nil
	}
	if err := unix.Munmap(m.all); err != nil {
		return fmt.Errorf("give back %d bytes of memory: %w", len(m.held), err)
	}
	return nil
}

// freeMemory is how many bytes of the machine's memory nobody uses.
func freeMemory() (int64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, fmt.Errorf("sysinfo: %w", err)
	}
	return int64(info.Freeram) * int64(info.Unit), nil
}
