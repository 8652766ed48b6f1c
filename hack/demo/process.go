package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// processes are the running children.
type processes struct{ running sync.WaitGroup }

// wait returns when all children have ended.
func (p *processes) wait() { p.running.Wait() }

// process is a child whose output goes to a file.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{}
	err   error // why, once ended is closed
}

// start runs a child until it ends or ctx does, which it is told by SIGTERM and, five seconds later, SIGKILL.
func (p *processes) start(ctx context.Context, logFile string, name string, args ...string) (*process, error) {
	log, err := os.Create(logFile)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	// A group of its own, so that Ctrl-C reaches it by this program and in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		_ = log.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	child := &process{cmd: cmd, ended: make(chan struct{})}
	p.running.Go(func() {
		child.err = cmd.Wait()
		_ = log.Close()
		close(child.ended)
	})
	return child, nil
}

// until asks ready every 50 ms until it returns nil, and fails when the child or ctx ends, or after 30 seconds.
func (p *process) until(ctx context.Context, what string, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.ended:
			return fmt.Errorf("%s ended: %w", what, p.err)
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w", what, err)
		case <-tick.C:
		}
	}
}
