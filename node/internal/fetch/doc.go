// Package fetch gets blobs: from the store, from peers and from upstream, in that order, one fetch for each digest
// however many callers there are, and streams them while they arrive.
//
// Files in the order in which a cold blob meets them:
//
//	fetcher.go   Open: a blob that the store has, a running fetch, or a new one
//	fetch.go     one running fetch: its file, its tie to the coordinator, its end. What to ask of whom a
//	             schedule.Participant chooses
//	upstream.go  reading the runs that the coordinator leased to this node
//	askers.go    with whose credentials; tokens that expire in the middle
//	reader.go    callers that follow the growing blob; the last chunk is held back until the digest is known to match
//	progress.go  how many bytes come, which tells a pull that is slow from one that is stuck
//	relief.go    the node itself reads what nobody brings to a caller that waits, before the caller is sent away
//	blame.go     a blob that does not match: read again by one for all, who keep what he claims as well, then
//	             alone; and who claimed a wrong chunk
//	doubt.go     peers that were wrong about a registry's content: they lied, or the registry misled them
//	source.go    whose bytes may be given in whose name
//	manifest.go  what manifests tell of the sizes and the order of other blobs
//	ahead.go     the next layers, before they are asked for
//	window.go    when the store has no room: a moving part of the blob, shared with the others like a whole one
//	through.go   where not even that helps: straight from upstream, kept nowhere
package fetch
