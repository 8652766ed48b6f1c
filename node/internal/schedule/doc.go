// Package schedule decides, for one blob, who asks whom for which chunk. It is the heart of Shoal: a Table takes in
// what the participants of a blob report and gives out orders to them; a Participant takes in a table's orders, and
// says what is to be asked of whom, read from the registry and reported. Both do no I/O, start no goroutine and read no
// clock, so that the coordinator of a swarm, a node on its own and the simulator run the very same code.
//
// # The plan
//
// A blob of n bytes that N nodes want should leave the registry once, and no node should send much more than n bytes.
// The bandwidth-optimal broadcast does that: scatter the chunks over the nodes, then let everyone take every chunk from
// the node that has it. So each chunk has a chunk home among the participants:
//
//  1. A participant that has room is leased a run of chunks that no one has been leased yet. It reads them from
//     upstream with one Range request, and claims each chunk as it arrives: index and SHA-256, signed by it.
//  2. A claim goes at once to everyone who needs the chunk, with the peer to ask for it: the chunk's home.
//  3. Where complete holders exist, homes take their chunks from them instead of from upstream; where there are at
//     least as many holders as nodes in need, everyone takes chunks from the holders themselves.
//
// Leases are handed out as participants report progress, not dealt in advance: a fast node gets more, a slow one less,
// one that joins late takes its share of what is left, and one that dies gives back little. Runs shrink as the
// blob nears its end (guided self-scheduling), so few requests serve a lone node and the tail of a burst stays short.
//
// At first one run is read, then as many as chunks have come: what readers wait for is the first chunk of each layer,
// and of all that is read at the same time each comes late.
//
// # Relays
//
// A home that many ask lets some of them pass its chunk on, before they have it. Nobody waits for one who waits for a
// third, since each link on the way is filled with other blobs. Who passes on is who has the least to send. A table
// sees one blob, so each report says how many chunks of all blobs the node owes others. Where that does not decide, a
// hash of blob and peer does, and not who came first, who would be the first at every blob of an image.
//
// # Leaves and pieces
//
// A plan is of chunks, and Config.Grain says what these are. In pieces more can be passed on sooner, and who reads a
// part of a blob reads less that nobody wants. Windows and runs are counted in leaves all the same, since links and
// registries do not become faster by it.
//
// # Groups
//
// Participants form groups of at most Config.GroupSize within a zone. A chunk enters each group once, by its group
// home, and enters each zone once: the first group home of a zone takes the chunk from another zone, the group homes
// after it take it from the zone. So a thin link between zones carries one copy, and in a swarm of thousands a node
// keeps connections to its group and a few others instead of to everyone.
//
// # Who is waited for
//
// What decides is who lives, and not how long something takes. While a reader of upstream says that it reads, the
// table tells those who need what it reads, and they go on waiting, up to an end. A peer that was asked for chunks and
// is silent is pinged; it is passed over when it takes far longer to answer than it and others took so far. Where
// several participants say so of a peer that does not report itself, nobody asks that peer for a while. A participant
// that says nothing of a lease is given none until it reports. Another gets what it has, where one may read. Where none
// may, upstream stands still for all, and each reads on where it was.
//
// # What is said, and what is so
//
// A size, a run and a holding are what a peer says until the digest has proved them. Plans keep a Table for each size
// that is said, so a wrong one holds up those that believe it. A Table costs what was sent to it: its sets are of
// pages, and it books a lease a little at a time.
//
// # Files
//
//	types.go                      claims, orders, reports: what a table and a participant tell each other
//	table.go                      the plan of one blob as its coordinator keeps it
//	table_parties.go              participants and holders, their groups, and who of them is dead
//	table_homes.go                who has which chunk, and whose word on it counts
//	table_suppliers.go            of whom each participant is told to ask for a chunk
//	table_leases.go               who reads which run from upstream
//	plan.go                       what can be handed out now
//	pace.go                       participants that hold few chunks at a time wait for each other
//	plans.go                      a table for each size that is said
//	participant.go                one node's part in the plan
//	participant_coordinator.go    its orders, and when it leaves who gives them
//	participant_chunks.go         what is here, and who is told
//	participant_readers.go        what readers need, and where they are
//	participant_wants.go          which chunk is asked for next
//	participant_peers.go          who is asked, and passed over
//	participant_leases.go         what this node reads from upstream
//	set.go                        sets of chunks
package schedule
