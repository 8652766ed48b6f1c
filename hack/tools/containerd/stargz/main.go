// Command stargz serves the lazy snapshotter of the project of that name on a Unix socket, for containerd to use as a
// proxy plugin. It is what the project's own daemon, which has no release as a Go module, comes down to. It is no part
// of Shoal: the suite in test/clients pulls with it.
//
//	stargz SOCKET ROOT HOSTS    keeps its state below ROOT and reads hosts.toml files below HOSTS
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	snapshots "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/stargz-snapshotter/fs/config"
	"github.com/containerd/stargz-snapshotter/service"
	"github.com/containerd/stargz-snapshotter/service/resolver"
	"google.golang.org/grpc"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "stargz: want SOCKET, ROOT and HOSTS")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := serve(ctx, os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "stargz:", err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, socket, root, hosts string) error {
	// Files are read from the registry when somebody opens them and not ahead of that.
	lazy := &service.Config{Config: config.Config{NoPrefetch: true, NoBackgroundFetch: true, NoPrometheus: true}}
	snapshotter, err := service.NewStargzSnapshotterService(ctx, root, lazy,
		service.WithCustomRegistryHosts(resolver.RegistryHostsFromCRIConfig(ctx, resolver.Registry{ConfigPath: hosts})))
	if err != nil {
		return err
	}
	defer snapshotter.Close()
	listener, err := new(net.ListenConfig).Listen(ctx, "unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	snapshots.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	defer context.AfterFunc(ctx, server.GracefulStop)()
	return server.Serve(listener)
}
