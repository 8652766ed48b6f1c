// Package ports finds free ports for servers that others start.
package ports

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
)

// given are the ports handed out so far: a server that is about to start does not listen yet.
var (
	mu    sync.Mutex
	given = map[int]bool{}
)

// Loopback returns n ports on which nothing listens on 127.0.0.1, none of them twice in the life of the process. They
// lie below those that the kernel gives to outgoing connections, one of which could else take a port before its server
// does.
func Loopback(ctx context.Context, n int) ([]int, error) {
	mu.Lock()
	defer mu.Unlock()
	low, end := 20000, ephemeral()
	if low >= end {
		return nil, fmt.Errorf("free ports: the kernel gives all from %d on to outgoing connections", end)
	}
	ports := make([]int, 0, n)
	offset := rand.IntN(end - low)
	for i := 0; i < end-low && len(ports) < n; i++ {
		port := low + (offset+i)%(end-low)
		if given[port] || !free(ctx, port) {
			continue
		}
		given[port] = true
		ports = append(ports, port)
	}
	if len(ports) < n {
		return nil, fmt.Errorf("free ports: %d of %d from %d to %d", len(ports), n, low, end)
	}
	return ports, nil
}

func free(ctx context.Context, port int) bool {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	return err == nil && l.Close() == nil
}

// ephemeral is the first port that the kernel gives to outgoing connections: 32768 by default, and where it can't be
// read.
func ephemeral() int {
	first := 32768
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		var last int
		if _, err := fmt.Sscan(string(text), &first, &last); err != nil {
			return 32768
		}
	}
	return first
}
