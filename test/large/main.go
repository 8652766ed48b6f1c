// Command large loads one very large file through one agent, as a client of a model hub does, and tells time, memory
// and room. The hub is made here, and the file is made as it is read: each chunk is a number and zeros.
//
//	make build && go run ./test/large -size 64GiB                       # through a window
//	make build && go run ./test/large -size 16GiB -capacity 20GiB       # kept
package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/test/hubtest"
	"github.com/shoal-cache/shoal/test/internal/proc"
)

const chunk = 1 << 20

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	cancel()
	if err != nil {
		fmt.Fprintln(os.Stderr, "large:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (err error) {
	flags := flag.NewFlagSet("large", flag.ContinueOnError)
	size := flags.String("size", "64GiB", "size of the file")
	capacity := flags.String("capacity", "1GiB", "what the agent may keep of models; less than the file: a window")
	program := flags.String("shoal", "bin/shoal-node", "the agent's executable")
	dir := flags.String("dir", "", "folder for the agent's store; default: a new one")
	if err := flags.Parse(args); err != nil {
		return err
	}
	quantity, err := resource.ParseQuantity(strings.TrimSuffix(*size, "B"))
	if err != nil {
		return fmt.Errorf("-size: %w", err)
	}
	n := quantity.Value()
	if *dir == "" {
		if *dir, err = os.MkdirTemp("", "shoal-large-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(*dir)) }()
	}
	file := numbered(n)
	fmt.Printf("taking the digest of %s\n", view.Bytes(n))
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(file, 0, file.Size())); err != nil {
		return err
	}
	hub := hubtest.New()
	defer hub.Close()
	hub.Repo("models", "org/large").Commit("main", map[string]hubtest.File{
		"model.bin": {Data: file, LFS: true, SHA256: hex.EncodeToString(sum.Sum(nil))},
	})
	a, err := start(ctx, *program, *dir, hub.URL(), *capacity)
	if err != nil {
		return err
	}
	defer a.Stop()
	return a.load(ctx, n, hex.EncodeToString(sum.Sum(nil)))
}

// numbered is a file whose chunks differ, and cost nothing to make.
type numbered int64

func (f numbered) Size() int64 { return int64(f) }

func (f numbered) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(f) {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), int64(f)-off))
	clear(p[:n])
	for first := off / chunk * chunk; first < off+int64(n); first += chunk {
		var number [8]byte
		binary.BigEndian.PutUint64(number[:], uint64(first/chunk)+1)
		if at := first - off; at >= 0 {
			copy(p[at:n], number[:])
		} else if -at < int64(len(number)) {
			copy(p[:n], number[-at:])
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// agent is one agent with a hub front.
type agent struct {
	*proc.Process
	front, admin string
	store        string
}

func start(ctx context.Context, program, dir, hub, capacity string) (*agent, error) {
	addresses := make([]string, 4)
	for i := range addresses {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		addresses[i] = l.Addr().String()
		if err := l.Close(); err != nil {
			return nil, err
		}
	}
	_, swarm, _ := strings.Cut(addresses[3], ":")
	a := &agent{front: "http://" + addresses[0], admin: "http://" + addresses[1], store: filepath.Join(dir, "store")}
	cmd := exec.CommandContext(ctx, program, "--hub-enabled", "--store-path", a.store,
		"--store-min-free", "1GiB", "--store-model-capacity", capacity, "--hub-endpoint", hub,
		"--hub-listen", addresses[0], "--admin-listen", addresses[1], "--registry-listen", addresses[2],
		"--swarm-listen", "/ip4/127.0.0.1/tcp/"+swarm, "--upstream-allow-addresses", "127.0.0.0/8")
	var err error
	if a.Process, err = proc.Start(cmd, filepath.Join(dir, "agent.log")); err != nil {
		return nil, err
	}
	for {
		resp, err := get(ctx, a.admin+"/readyz")
		if err == nil {
			_ = resp.Body.Close()
			return a, nil
		}
		if err := a.Exited(); err != nil {
			return nil, err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func get(ctx context.Context, at string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err == nil && resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		err = fmt.Errorf("GET %s: %s", at, resp.Status)
	}
	return resp, err
}

// load reads the file through the agent, checks it, and tells what that took.
func (a *agent) load(ctx context.Context, n int64, want string) error {
	began := time.Now()
	resp, err := get(ctx, a.front+"/org/large/resolve/main/model.bin")
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	fmt.Printf("X-HF-Warning: %s\n", strings.Join(resp.Header.Values("X-Hf-Warning"), " | "))
	sum, in := sha256.New(), &counted{Reader: resp.Body}
	done := make(chan struct{})
	var most int64
	go func() { // what the store takes meanwhile
		defer close(done)
		most = a.watch(ctx, in, n, began)
	}()
	buf := make([]byte, chunk)
	_, err = io.CopyBuffer(struct{ io.Writer }{sum}, in, buf)
	in.ended.Store(true)
	took := time.Since(began)
	<-done
	if err != nil {
		return fmt.Errorf("after %s: %w", view.Bytes(in.n.Load()), err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != want {
		return fmt.Errorf("the bytes are those of %s, want %s", got, want)
	}
	usage, err := a.Usage()
	if err != nil {
		return err
	}
	fmt.Printf("%s, every byte right, in %v (%.0f MiB/s)\nagent: %s of memory at most, %v of CPU; its store took %s "+
		"at most\n", view.Bytes(n), took.Round(time.Second), float64(n)/chunk/took.Seconds(),
		view.Bytes(usage.PeakRSS), usage.CPU.Round(time.Second), view.Bytes(most))
	return nil
}

// watch looks at the store each second until the answer has ended, and tells the most bytes that it had.
func (a *agent) watch(ctx context.Context, in *counted, n int64, began time.Time) (most int64) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for i := 1; !in.ended.Load() && ctx.Err() == nil; i++ {
		<-tick.C
		most = max(most, a.blocks())
		if i%30 == 0 {
			fmt.Printf("%8v %5.1f %%\n", time.Since(began).Round(time.Second), 100*float64(in.n.Load())/float64(n))
		}
	}
	return most
}

// blocks is what the agent's files take on disk. A file without a name is found by the agent's own descriptors.
func (a *agent) blocks() (bytes int64) {
	open, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", a.PID()))
	if err != nil {
		return 0
	}
	seen := map[uint64]bool{}
	count := func(path string) {
		var stat syscall.Stat_t
		if syscall.Stat(path, &stat) == nil && stat.Mode&syscall.S_IFMT == syscall.S_IFREG && !seen[stat.Ino] {
			seen[stat.Ino] = true
			bytes += stat.Blocks * 512
		}
	}
	for _, fd := range open {
		if at, err := os.Readlink(fd); err == nil && strings.HasPrefix(at, a.store) {
			count(fd)
		}
	}
	_ = filepath.WalkDir(a.store, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			count(path)
		}
		return nil // what has gone meanwhile takes nothing
	})
	return bytes
}

// counted counts what was read.
type counted struct {
	io.Reader
	n     atomic.Int64
	ended atomic.Bool
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(int64(n))
	return n, err
}
