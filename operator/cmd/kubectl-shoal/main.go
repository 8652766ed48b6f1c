// Kubectl-shoal is a plugin of kubectl: it says whether the cache of a cluster works, and why not. With it in the PATH,
// "kubectl shoal" runs it.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/shoal-cache/shoal/operator/internal/plugin"
)

// version is set by the linker.
var version = "dev"

func main() {
	// What the libraries say between the lines is for nobody here. One that is told of no logger says so after half a
	// minute, with a stack.
	klog.SetLogger(logr.Discard())
	log.SetLogger(logr.Discard())
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // who asks a second time does not wait for what is cleaned up
	code := plugin.Run(ctx, version, os.Args[1:],
		genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr})
	stop()
	os.Exit(code)
}
