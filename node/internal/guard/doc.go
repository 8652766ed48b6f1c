// Package guard keeps a node's container runtime from waiting for an agent that does not answer.
//
// A runtime asks its mirrors in order. When nobody listens on the agent's port, the runtime goes on to the registry at
// once. When the port accepts connections and nobody answers, because the agent is stopped, starved or waits for a disk
// that hangs, the runtime waits for minutes, and some runtimes wait for ever. So the guard is a second process. It
// shares nothing with the agent but the node: no swarm, no store.
//
//	the agent                         for               the guard
//	answers                           -                 installs the mirror, and keeps it installed
//	is away                           -                 does nothing: the runtime is refused and goes on
//	says that it cannot serve         -                 removes the mirror, so that no new pull comes
//	is another program by now         -                 removes the mirror
//	answers, and is being looked for  -                 does nothing until it knows who answers
//	is silent                         Options.Patience  ends the agent's process, so that open pulls go on
//	has been ended, and is silent     Options.Every     removes the mirror
//	the same                          Options.Patience  ends the agent's process again
//
// An agent that says that it cannot serve is not ended. Its disk hangs, and it goes on with open pulls by the registry.
// A process that waits for a disk does not end before the disk does, and its connections stay open for as long.
//
// A node is unplugged within 10 s of the moment at which its agent stops or its disk hangs. The steps below take 5 to
// 7 s. The rest of the 10 s is for a machine that is busy: it holds up the guard, and what the guard does to files.
//
//	the agent stops                      the disk hangs under a read
//	until the next look    1 s           until the agent says so    4 s  (package store)
//	Patience               5 s           until the next look        1 s
//	the process is ended   6 s           the mirror is removed      5 s
//	if that did not help   1 s
//	the mirror is removed  7 s
//
// Once the guard has seen the agent's process listen, it takes no other for the agent, nor one that it cannot see.
// Where it has seen none it may be unable to, for it lacks the agent's process namespace or user. Then it goes by the
// answer alone.
//
// An agent that is slow is not silent. Each look may take as long as Patience, and looks do not wait for each other.
// Any answer ends the silence. The time for which the guard itself did not run does not count.
//
// When the guard is told to end it removes the mirror. What it does to files and processes it does beside the looks,
// because the disk may hang.
//
// State is the decision, without I/O or clock. The rest looks, and does what State says.
package guard
