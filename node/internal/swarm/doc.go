// Package swarm connects a node to the others: the libp2p host, who is let in, content routing on a private DHT, the
// Bitswap, and the coordinators of blobs. What to ask of whom is decided by package schedule; this package
// carries the reports and orders, and the blocks. Package hostile breaks its rules, for tests.
//
// Files in the order in which a cold blob meets them:
//
//	swarm.go       the host and the DHT
//	admission.go   whom the connection gater lets in: a peer that is not admitted gets no stream
//	guard.go       what one peer may cost, and what happens to one that goes beyond it
//	company.go     meeting those again that were away, and remembering who is here
//	join.go        finding a blob's coordinator, the live peer nearest to its digest; a session with it
//	coordinate.go  being one: a room for each blob, around a schedule.Table
//	union.go       two that coordinate one blob become one
//	discover.go    who holds a blob already: provider records, and asking the connected peers
//	bitswap.go     Bitswap: wants sent to the peers that the orders name, blocks handed to who waits for them
//	provide.go     telling the DHT what this node holds
//	files.go       which blob the root CID of a UnixFS file is
//	public.go      which repositories anyone may read, for nodes that cannot ask the registry
//	tags.go        the newest answer the swarm remembers for a tag
//	errand.go      what one node asks for all, and its home, the live peer nearest to the question
//	twin.go        whether another process uses this node's identity
//	wire.go        the messages of Shoal's own protocols
package swarm
