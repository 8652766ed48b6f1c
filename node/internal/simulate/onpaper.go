package simulate

import "math"

// Paper is what the DHT costs a node, computed, not simulated.
type Paper struct {
	// MeanRecords and MostRecords are provider records that a node keeps: on average, and for one blob that all nodes
	// hold and to whose key the node is near.
	MeanRecords, MostRecords int
	// ProvideMessages and ProvideBytes are what telling the DHT of one blob costs, both directions counted.
	ProvideMessages, ProvideBytes int
	// Rate is the bytes per second that a node sends and receives to keep all its blobs provided, and to answer
	// others.
	Rate float64
}

// Of the DHT: the Kademlia bucket size K, how many peers are queried at a time, and how often blobs are provided again
// (see swarm.Provide, on average).
const (
	bucketSize     = 20
	reprovideEvery = 33.75 * 60 // s
	// A query is answered with the bucketSize peers nearest to the key, about 100 bytes each with their addresses.
	queryBytes  = 100
	peerBytes   = 100
	recordBytes = 250
)

// OnPaper computes the DHT's load where each of some nodes holds some blobs, all the same. Each blob's record is kept
// by the K nodes nearest to its key. Providing it takes a lookup, in which about log2(N/K) peers further and further
// on and the K nearest are queried, and a message to each of the K.
func OnPaper(nodes, blobs int) Paper {
	k := min(bucketSize, nodes)
	queries := k + int(math.Ceil(math.Log2(max(2, float64(nodes)/float64(k)))))
	p := Paper{
		MeanRecords:     blobs * k,
		MostRecords:     nodes,
		ProvideMessages: 2*queries + k,
		ProvideBytes:    queries*(queryBytes+k*peerBytes) + k*recordBytes,
	}
	// On average a node answers as much as it asks.
	p.Rate = 2 * float64(blobs) * float64(p.ProvideBytes) / reprovideEvery
	return p
}
