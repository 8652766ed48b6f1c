// Package roomtest measures for tests what a room is to bound.
package roomtest

import "runtime"

// Live is how many bytes of the heap are in use and cannot be collected.
func Live() int64 {
	runtime.GC()
	runtime.GC() // of what the first has finalized
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
