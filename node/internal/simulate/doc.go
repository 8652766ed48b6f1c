// Package simulate runs the scheduling code of package schedule, unchanged, over thousands of virtual nodes in virtual
// time, to see what a swarm costs that is larger than any rig. One event loop stands for all nodes; the same seed
// gives the same run.
//
// # What is real
//
// Each blob's coordinator is a schedule.Table, and each node's part in a blob a schedule.Participant. Their calls, and
// what the table's cost in CPU time, are those of an agent.
//
// # What is modelled
//
//   - Links. A node has an up-link and a down-link. An up-link sends one chunk at a time, to each peer that waits for
//     one in its turn, as the Bitswap server does; a chunk occupies the receiver's down-link for as long as its rate
//     says, in the order in which chunks were sent. What the receiver's link cannot take yet waits in the network
//     without holding the sender up; the window of each node bounds it. The network between has no other limit.
//     Where Config.Shared is set, all that is under way shares the links instead, as TCP has it on a slow network: what
//     begins together ends together, parts of chunks count as signs of progress, and messages wait in the queues of
//     busy links, and behind some of the chunk that is under way to the same peer (Config.Behind). So a rig of few
//     nodes is modelled (test/bench); headers, which take 4 to 5 % of such links, are not.
//   - The registry has an up-link of its own, shared chunk by chunk by the runs that are read from it.
//     Config.StreamRate bounds what each run gets.
//   - Messages (reports, orders, wants) take the latency between two nodes. Orders leave the coordinator through its
//     up-link, ahead of chunks; those that pile up for one participant reach it as one message, as its mailbox has it.
//   - A node pulls the layers in their order, some at a time, and reads each from its start. It gets some of those that
//     come after them ahead (Config.ReadAhead), as an agent does. It reads as many runs from the registry at one
//     time as an agent does. A want that is sent again raises the priority of a chunk that waits, and has one that has
//     gone sent again, as boxo's server does.
//
// # What is not
//
// Processors (unless Config.TableCharge and Config.MessageCost are set), disks, hashing, lost packets, the DHT (see
// OnPaper) and the failure of a coordinator. So a result is what the schedule and the links allow: a lower bound.
package simulate
