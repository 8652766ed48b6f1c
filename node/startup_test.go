package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/config"
	"github.com/shoal-cache/shoal/node/internal/store"
)

func TestStart_WhatKeepsAnAgentFromItIsToldWithTheKeyAndWhatToDo(t *testing.T) {
	t.Parallel()
	taken, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = taken.Close() })
	_, port, err := net.SplitHostPort(taken.Addr().String())
	require.NoError(t, err)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, []byte("x"), 0o600))
	open := filepath.Join(dir, "open")
	other, err := store.Open(t.Context(), store.Options{Path: open})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, other.Close()) })
	pipe := filepath.Join(dir, "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	damaged := filepath.Join(dir, "damaged")
	require.NoError(t, os.Mkdir(damaged, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(damaged, "identity.key"), []byte("x"), 0o600))

	for name, c := range map[string]struct {
		set  string // the line of the configuration; PORT is taken, and FILE is a file
		want []string
	}{
		"a file in place of the store": {"store: {path: FILE}", []string{"store.path: " + file, "no directory"}},
		"a store below a file":         {"store: {path: FILE/a}", []string{"store.path: " + file, "no directory"}},
		"a store where none can be":    {"store: {path: /proc/shoal}", []string{"store.path: /proc/shoal", "may write"}},
		"an identity that is damaged":  {"store: {path: DAMAGED}", []string{"identity.key", "no private key", "restore it"}},
		"another agent's store":        {"store: {path: OPEN}", []string{"store.path: " + open, "another process", "end"}},
		"another's port for registries": {"registry: {listen: '127.0.0.1:PORT'}",
			[]string{"registry.listen", port, "choose"}},
		"another's port to administer": {"admin: {listen: '127.0.0.1:PORT'}", []string{"admin.listen", port, "choose"}},
		"another's port for metrics":   {"metrics: {listen: '127.0.0.1:PORT'}", []string{"metrics.listen", port, "choose"}},
		"another's port for the hub": {"hub: {enabled: true, listen: '127.0.0.1:PORT'}",
			[]string{"hub.listen", port, "choose"}},
		"another's port for the swarm": {"swarm: {listen: [/ip4/127.0.0.1/tcp/0, /ip4/127.0.0.1/tcp/PORT]}",
			[]string{"swarm.listen[1]", port, "choose"}},
		"an address of no machine here": {"swarm: {listen: [/ip4/192.0.2.1/tcp/0]}",
			[]string{"swarm.listen[0]", "192.0.2.1", "this machine"}},
		"an authority that is not there": {"upstreams: [{registry: a.example, caFile: /nonexistent}]",
			[]string{"upstreams", "a.example", "caFile", "/nonexistent"}},
		"an authority that is none": {"upstreams: [{registry: a.example, caFile: FILE}]",
			[]string{"upstreams", "a.example", "caFile", file, "PEM"}},
		"an authority without an end": {"upstreams: [{registry: a.example, caFile: /dev/zero}]",
			[]string{"upstreams", "a.example", "caFile", "/dev/zero", "no regular file"}},
		"a client's certificate that nobody writes": {"upstreams: [{registry: a.example, clientCertFile: PIPE, clientKeyFile: FILE}]",
			[]string{"upstreams", "a.example", "clientCertFile", pipe, "no regular file"}},
		"a folder in place of a client's key": {"upstreams: [{registry: a.example, clientCertFile: FILE, clientKeyFile: /tmp}]",
			[]string{"upstreams", "a.example", "clientKeyFile", "/tmp", "is a directory"}},
		"a certificate of metrics without an end": {"metrics: {listen: '127.0.0.1:0', certFile: /dev/zero, keyFile: FILE}",
			[]string{"metrics.certFile", "/dev/zero", "no regular file"}},
		"a key of metrics that nobody writes": {"metrics: {listen: '127.0.0.1:0', certFile: FILE, keyFile: PIPE}",
			[]string{"metrics.keyFile", pipe, "no regular file"}},
		"a certificate of the hub without an end": {"hub: {enabled: true, listen: '127.0.0.1:0', certFile: /dev/zero, keyFile: FILE}",
			[]string{"hub.certFile", "/dev/zero", "no regular file"}},
		"a kubeconfig without an end": {"kubernetes: {enabled: true, nodeName: n, kubeconfig: /dev/zero}",
			[]string{"kubernetes.kubeconfig", "/dev/zero", "no regular file"}},
		"a kubeconfig that is not there": {"kubernetes: {enabled: true, nodeName: n, kubeconfig: /nonexistent}",
			[]string{"kubernetes.kubeconfig", "/nonexistent"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lines := map[string]string{
				"registry": "registry: {listen: '127.0.0.1:0'}", "admin": "admin: {listen: '127.0.0.1:0'}",
				"swarm": "swarm: {listen: [/ip4/127.0.0.1/tcp/0]}",
				"store": "store: {path: '" + t.TempDir() + "'}",
			}
			section, _, _ := strings.Cut(c.set, ":")
			lines[section] = strings.NewReplacer("PORT", port, "FILE", file, "OPEN", open, "DAMAGED", damaged,
				"PIPE", pipe).Replace(c.set)
			text := ""
			for _, line := range lines {
				text += line + "\n"
			}
			path := filepath.Join(t.TempDir(), "config.yaml")
			require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
			loaded, err := config.Load(path, nil, nil)
			require.NoError(t, err)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // it ends at once, unless it starts
			defer cancel()
			err = run(ctx, loaded)
			require.Error(t, err)
			for _, part := range c.want {
				require.ErrorContains(t, err, part)
			}
			require.NotContains(t, err.Error(), "\n", "it is one line")
		})
	}
}
