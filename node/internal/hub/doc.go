// Package hub is the front for clients of a model hub such as Hugging Face: the HTTP server that HF_ENDPOINT names.
// What is large or asked for by all nodes is had from the hub once for all of them; everything else it passes through.
//
// Files in the order in which a request meets them:
//
//	front.go       who may come at all; what is done with which request
//	path.go        what a URL asks for
//	repository.go  a revision's commit, the listing of its files, what is told of it
//	xet.go         taking Xet out of what is told
//	access.go      who may read it: the hub's word, for each caller's own token
//	file.go        one file: its header, its bytes, the proof that a repository has it
//	ending.go      the end of a file, for who asks for nothing else of it
//	stream.go      writing bytes that may still be arriving, and reading on where that breaks off
//	peek.go        the first few bytes, where those of the file stay away
//	room.go        what is said of a file that has no room here
//	locate.go      where the hub has the bytes of a large file for the moment
//	api.go         info, tree, paths-info and refs out of what is known
//	pass.go        everything else, to the hub and back
//	writes.go      what callers have changed at the hub, so that they meet it
//	url.go         a file of another host, named by its digest and its URL
//	pin.go         what of a repository a node that is to keep it holds
//	memo.go        what the hub said, remembered here and asked for all nodes
//	vouch.go       what counts of what other nodes say
//	origin.go      asking the hub
//	errors.go      how failures reach the client
//
// What is plain HTTP of it is in package reply.
//
// A file in large file storage is a blob under its sha256 as a layer of an image is: fetched in chunks, shared while it
// arrives, checked, kept. Its upstream is the file's URL at its commit. A file in git is named by its git object and
// comes whole; its name is checked by each node. Documents, such as the listing of a commit, are blobs of the store
// too, and a record in the memo says which.
//
// A branch is resolved once for a request, and the whole of it is answered at that commit. HEAD, 404 and paths-info
// come out of the listing. Xet is taken out of all answers, so that no client goes around the cache for a file that
// plain HTTP can carry.
//
// # Who may read
//
// The hub decides for each caller, asked with the caller's own token (or none). Its yes is remembered for minutes by
// the gate, across a restart too, as a keyed hash. What anyone may read is found out once for all nodes, and so is who
// has a token that is too long to be guessed: nodes hear of it by a hash for the one repository. While the hub cannot
// be asked, or throttles, those are let on whom it let on before, and no others. A repository that lists the digest of
// a file which this node or a peer has from elsewhere must prove that it has it. Tokens go to the hub's own origin.
//
// Between peers content is free, as everywhere in Shoal: an admitted peer is a node of the cluster, and signed URLs of
// files are shared with it. The bytes of files it cannot falsify. One of them may have been taken over: so what is told
// of a branch's commit, a commit's listing and whether anyone may read a repository counts once two nodes have signed
// that the hub told them so. vouch.go has what counts while the hub is away.
package hub
