package contender

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/shoal-cache/shoal/test/internal/proc"
)

// Launched is a peer of several processes, such as Dragonfly or Kraken, that a program of the user's brings up: a
// binary, or a script around some. The program is started on every host, the first before the others, with these
// variables, and is to serve the OCI pull API on 127.0.0.1:5050 until SIGTERM:
//
//	BENCH_INDEX     number of this host, from 0 on; what there is one of (tracker, scheduler) goes to host 0
//	BENCH_ADDRESS   address of this host
//	BENCH_ADDRESSES addresses of all hosts, by commas
//	BENCH_ORIGIN    base URL of the origin registry
//	BENCH_REGISTRY  name of the origin registry in image references, sent as ?ns=
//	BENCH_DIR       empty directory for this host's files
type Launched struct {
	// Peer is the contender's name, Program the user's; there is none where it is empty.
	Peer, Program string
}

// Name implements Contender.
func (l Launched) Name() string { return l.Peer }

// Missing implements Contender.
func (l Launched) Missing() string {
	if l.Program == "" {
		return fmt.Sprintf("no binary was given; -%s takes the path of one", l.Peer)
	}
	if _, err := exec.LookPath(l.Program); err != nil {
		return fmt.Sprintf("%s cannot be run (%v)", l.Program, err)
	}
	return ""
}

// Start implements Contender.
func (l Launched) Start(ctx context.Context, site Site) (*Running, error) {
	var addresses []string
	for _, host := range site.Hosts {
		addresses = append(addresses, host.Addr.String())
	}
	running := &Running{}
	for i, host := range site.Hosts {
		dir, err := makeDir(site.Dir, host.Name)
		if err != nil {
			running.Stop()
			return nil, err
		}
		cmd := host.Command(ctx, l.Program)
		cmd.Env = append(cmd.Environ(), "BENCH_INDEX="+strconv.Itoa(i), "BENCH_ADDRESS="+host.Addr.String(),
			"BENCH_ADDRESSES="+strings.Join(addresses, ","), "BENCH_ORIGIN="+site.OriginURL(),
			"BENCH_REGISTRY="+Registry,
			"BENCH_DIR="+dir)
		process, err := proc.Start(cmd, filepath.Join(site.Dir, host.Name+".log"))
		if err != nil {
			running.Stop()
			return nil, err
		}
		running.Processes = append(running.Processes, process)
		running.Mirrors = append(running.Mirrors, "http://127.0.0.1:5050")
		if err := awaitOK(ctx, host, process, "http://127.0.0.1:5050/v2/"); err != nil {
			running.Stop()
			return nil, err
		}
	}
	return running, nil
}
