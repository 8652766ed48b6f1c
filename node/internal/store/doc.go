// Package store keeps blobs on disk: each whole under its digest once it is committed, and as a resumable ingest of
// chunks before. It offers them as files for the registry front, and as blocks for Bitswap, and evicts when full.
//
// # On disk
//
//	<path>/lock                       locked while a process has the store open; says how the last one left it
//	<path>/blobs/sha256/ab/<hex>      a committed blob, its bytes and nothing else
//	<path>/blobs/sha256/ab/<hex>.map  its map: CIDs of leaves and pieces, media type, time of commit; CBOR with a
//	                                  checksum
//	<path>/ingest/sha256/<hex>        a sparse file: each chunk at its offset in the blob
//	<path>/ingest/sha256/<hex>.<id>   the same, of a source that has not proved to have the blob
//	<path>/ingest/sha256/<hex>….chunks its journal: which chunks are present, under which CIDs
//	<path>/runtime/sha256/ab/<hex>.map the map of a blob whose bytes are in the runtime's content store
//	<path>/index.db                   bbolt: leaf, piece and node CID to blob; last uses. If lost it is made again
//	                                  from the maps; the last use of a blob is taken to be its commit then
//	<path>/state.db                   bbolt: pins and other packages' memories (KV, Notes). Synced at every change
//
// A name that ends in .tmp is a small file being replaced; recovery removes it.
//
// # Words
//
//   - own blob: one in blobs/. runtime blob: one that only the runtime's content store (containerd's layout,
//     blobs/sha256/<hex>) holds; it is read, never written. A digest is one or the other, own first.
//   - table: the committed blobs in memory, made from the files at start. A blob is visible if it is in the table; what
//     index.db says is a hint to be checked against it.
//   - leaf, piece, chunk: see content.Cut. An ingest is written in chunks that are leaves or pieces, as its Origin
//     says. Where one is resumed in the others, what is there is hashed anew. While the digest of the whole is
//     computed, so are the sums of the others. So a committed blob has both, unless a release committed it that knew no
//     pieces; then those are made when they are asked for, and by themselves some time after the start. What was
//     checked when is known of leaves.
//   - partial: an ingest that nobody has open. present: a chunk whose bytes and journal slot are written.
//   - doubtful: a chunk of an ingest that as a whole did not match its digest. The next ingest of the blob may recall
//     it, once somebody claims the same sum again.
//   - pool: images, or models. Each has a capacity of its own, and what comes into one evicts nothing of the other.
//     Both share the disk: who finds it full makes room in his own pool.
//   - window: an ingest of a blob that does not fit. It has slots for a few chunks, in a file without a name.
//   - boot: one run of the kernel. Within a boot the page cache outlives the process, so what was written but not
//     synced is there after a kill; across boots only what was synced.
//
// # Ingest
//
//  1. refuse if the digest is committed (ErrExists) or its ingest is open (ErrBusy)
//  2. fail (content.ErrNoSpace) if no eviction could make the whole size fit. Nothing is evicted yet, because a size is
//     somebody's word until the digest has been checked
//  3. open the source's file and journal; take over present chunks. Each is hashed before it is given out, and all in
//     the background; one that is not what the journal says is absent from then on
//  4. for each chunk, in any order: evict until it fits below the limits, or fail (content.ErrNoSpace); pwrite the
//     bytes; then pwrite the journal slot; then it is visible as a block. Above the high watermark the maintainer
//     evicts on meanwhile
//  5. behind the contiguous prefix a goroutine computes the blob's digest from the page cache
//
// # Commit
//
//  6. wait for the digest of step 5 and compare; on a mismatch the caller discards the ingest, or has its chunks be
//     doubtful: the journal is removed, and the next ingest takes over the file and signs its journal when the last
//     doubtful chunk has been written over
//  7. fsync the file
//  8. write the map to a .tmp, fsync it, rename it
//  9. put chunks and inner nodes into index.db (not synced)
//  10. rename the file from ingest/ to blobs/: from here on the blob exists; remove the journal
//  11. fsync the folder, which makes 8 and 10 durable
//  12. enter the blob into the table, tell OnEvent
//  13. remove the partial ingests of other sources
//
// A process killed before 10 leaves a complete partial ingest and perhaps a stray map; after 10 it leaves a blob with
// its map. Eviction is the reverse: out of the table, remove the blob, the index entries, the map.
//
// # Start
//
//  1. lock the directory
//
//  2. open state.db; if damaged, set it aside and start anew
//
//  3. open index.db if the last process closed cleanly, or was killed in this boot and every page reads well; else
//     start a new one
//
//  4. for each file in blobs/: known to the index with its size, or read its map and index it, or, without a good
//     map, hash it in the background and commit it if it matches its digest
//
//  5. remove maps without a blob, index records without a file, maps of runtime files that changed, and ingests without
//     a journal or with one that is not signed
//
//  6. hash partial ingests that have every chunk in the background, and commit those that match their digest
//
// Where the disk is too full for 3, partial ingests and the oldest blobs are removed first, for nothing else would.
//
// Nothing here reads a blob but the hashing of those that lost their map, so it takes time by the number of files and
// chunks, not by bytes.
//
// # When the disk fails
//
// A full disk or quota is content.ErrNoSpace, any other refusal of the system content.ErrStorage. Callers pass through
// what they cannot keep. Health tells what is wrong from the operation that failed until a small file can be written
// again, which is tried every 30 s. An operation that takes more than 10 s, or a read more than 4 s, counts as hanging;
// then nothing new is begun. Folders that were removed are made again. An index that is damaged while the store runs is
// made again from the maps; a damaged state.db is used no more until the next start.
//
// # What is checked when
//
// A blob's digest is checked before it is committed, and by Scrub. After that each chunk is checked against its sum in
// the map before any byte of it leaves the store, be it for a client or for a peer, unless all of this holds:
//
//   - it was hashed within the last hour. If the blob was given out whole within the last two minutes and is asked for
//     again, somebody may have found it wrong: then it is within the last minute
//   - the kernel's time of change says that nobody has written to the file since
//   - its pages have not left memory since, so that they did not come from the disk again. Linux tells from 6.5 on,
//     where a container may ask, and not of overlayfs. Where it does not, the hour is a minute, and the minute 10 s
//
// What went out is looked at once more before the last 32 KiB of an answer follow. So an answer that has a wrong byte
// in it does not end; as a rule none is sent. A block of at most 64 KiB is always hashed.
//
// Of an ingest a chunk is checked before it is written, and no more while the ingest is open: the digest of the whole,
// computed from the file, decides before the commit. What an earlier ingest has left, of this process or another, is
// hashed before any byte of it leaves the store. So to resume costs one more hash of what is there, beside the one for
// the digest: about 1.2 s of a core for each GiB. A reader waits for that of the chunk he reads alone.
//
// A blob that is found damaged, or whose file cannot be read, is dropped and counted, pinned or not. The chunk map of a
// runtime blob is computed once, at the first call of ChunkMap or for the first range, and its digest is checked in the
// same pass. Until then a reader of the whole gets its last bytes once the digest has matched.
package store
