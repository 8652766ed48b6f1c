package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/store"
)

// What keeps an agent from starting is told with the key that it is about, and with what to do.

// storePathProblem is an error about what lies at store.path.
func storePathProblem(path string, err error) error {
	if err == nil {
		return nil
	}
	mend := "want a directory that the agent may write"
	_, ofDisk := errors.AsType[syscall.Errno](err)
	switch {
	case errors.Is(err, fs.ErrPermission):
		mend = fmt.Sprintf("let the agent's user, %d, write there, or choose another directory", os.Getuid())
	case errors.Is(err, syscall.EROFS):
		mend = "the file system is read-only; mount it for writing, or choose a directory of another"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, content.ErrNoSpace):
		mend = "the disk is full; make room on it, or choose a directory of another"
	case errors.Is(err, store.ErrInUse):
		mend = "end that one, perhaps another agent, or choose another directory"
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, fs.ErrExist):
		mend = "it, or a part of its path, is no directory; remove that, or choose another directory"
	case !ofDisk: // it says itself what to do, as of a damaged identity
		return fmt.Errorf("store.path: %s: %w", path, err)
	}
	return fmt.Errorf("store.path: %s: %w; %s", path, err, mend)
}

// listenProblem is an error of listening at an address that a key gives.
func listenProblem(key string, err error) error {
	mend := "want an address of this machine"
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		mend = "another process has this port, perhaps another agent; end that one, or choose another port"
	case errors.Is(err, fs.ErrPermission):
		mend = "the agent may not listen there; choose a port from 1024 on"
	}
	return fmt.Errorf("%s: %w; %s", key, err, mend)
}

// checkSwarmListen fails for the first of swarm.listen at which the agent cannot listen, though the machine has such
// addresses. Otherwise two agents would share a port: libp2p lets a user's processes do so.
func checkSwarmListen(addrs []ma.Multiaddr) error {
	var none []error
	for i, addr := range addrs {
		l, err := manet.Listen(addr)
		if err == nil {
			if err = l.Close(); err == nil {
				continue
			}
		}
		problem := listenProblem(fmt.Sprintf("swarm.listen[%d]: %s", i, addr), err)
		if errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, fs.ErrPermission) {
			return problem
		}
		none = append(none, problem) // as IPv6 on a machine without it
	}
	if len(none) < len(addrs) {
		return nil
	}
	return errors.Join(none...)
}
