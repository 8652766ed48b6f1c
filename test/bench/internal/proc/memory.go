package proc

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// BackMemory makes sure that the machine has n bytes of memory to give at once: it takes them and gives them back. A
// virtual machine may have returned its free memory to its host, and then pays for each page that it takes anew, some 3 s
// of processor time for a GiB. A contender that keeps what it pulls would pay that in the midst of a measurement, and one
// that meets pages which another has just let go would not. No more than half of what is available is taken.
func BackMemory(n int64) error {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("sysinfo: %w", err)
	}
	n = min(n, int64(info.Freeram)*int64(info.Unit)/2)
	if n <= 0 {
		return nil
	}
	b, err := unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("take %d bytes of memory: %w", n, err)
	}
	if err := unix.Munmap(b); err != nil {
		return fmt.Errorf("give back %d bytes of memory: %w", n, err)
	}
	return nil
}
