// Package guard keeps a node's container runtime from waiting for an agent that does not answer.
//
// A runtime asks its mirrors in order. When nobody listens on the agent's port, the runtime goes on to the registry at
// once. When the port accepts connections and nobody answers, because the agent is stopped, starved or waits for a disk
// that hangs, the runtime waits for minutes, and some runtimes wait for ever. So the guard is a second process. It
// shares nothing with the agent but the node: no swarm, no store.
//
//	the agent            for               the guard
//	answers              -                 installs the mirror where it is missing, and keeps it installed
//	is away              -                 does nothing: the runtime is refused and goes on by itself
//	is silent            Options.Patience  ends the agent's process, so that open pulls break and go on elsewhere
//	is silent all the same                 removes the mirror, so that no new pull meets the agent, and ends it again
//
// When the guard is told to end it removes the mirror. What it does to files it does beside the looks, for the disk may
// hang.
//
// State is the decision, without I/O or clock. The rest looks, and does what State says.
package guard
