package store

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"github.com/ipfs/go-cid"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// journal is the file <ingest>.chunks: which chunks of the ingest are present, under which CIDs. It is a header and one
// slot for each chunk at a fixed place, so that a chunk is marked by one write of 36 bytes and a torn mark is no mark.
//
//	header: magic[8] pool[1] size[7] unused[36] crc32c[4] source[8]     64 bytes
//	slot i: sha256[32] crc32c[4] over (i, sha256)               36 bytes at 64 + 36·i
//
// Numbers are big endian. Earlier releases name a boot in what is unused. A slot whose checksum does not match, such as
// one of a hole, stands for an absent chunk.
type journal struct {
	disk   disk
	file   *os.File
	slots  []byte      // as they were when opened; nil after sign
	was    content.Cut // of the chunks that these slots are of
	cut    content.Cut
	origin Origin
	signed bool // the header says all this already
	fresh  bool // nothing was there to resume
}

const (
	journalSuffix = ".chunks"
	journalMagic  = "SHOALIN1" // chunks are leaves
	piecesMagic   = "SHOALIN2" // chunks are pieces
	journalHeader = 64
	journalSlot   = sumSize + 4
	// journalPool is the bit from which on the number that tells the size tells the pool.
	journalPool = 56
)

// openJournal opens or makes the journal. One that is of another size or source or damaged is started anew.
func openJournal(k disk, path string, cut content.Cut, origin Origin) (*journal, error) {
	f, err := k.create(path)
	if err != nil {
		return nil, err
	}
	j := &journal{disk: k, file: f, cut: cut, origin: origin}
	b, err := io.ReadAll(io.LimitReader(f, journalHeader+int64(content.Pieces.Cut(cut.Size()).Len())*journalSlot))
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	was, from, err := decodeJournalHeader(b)
	if err == nil && was.Size() == cut.Size() && origin.Source == from.Source {
		j.slots, j.was = b[journalHeader:], was
		j.signed = origin.Pool == from.Pool && was == cut
		return j, nil
	}
	j.was = cut
	if err := j.reset(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return j, nil
}

// reset empties the journal.
func (j *journal) reset() error {
	j.slots, j.signed, j.fresh = nil, false, true
	return j.disk.truncate(j.file, 0)
}

func decodeJournalHeader(b []byte) (cut content.Cut, from Origin, err error) {
	if len(b) < journalHeader || string(b[:8]) != journalMagic && string(b[:8]) != piecesMagic ||
		crc32.Checksum(b[:52], castagnoli) != binary.BigEndian.Uint32(b[52:]) {
		return cut, from, errors.New("no journal header")
	}
	n := binary.BigEndian.Uint64(b[8:]) & (1<<journalPool - 1)
	if n > content.MaxSize {
		return cut, from, fmt.Errorf("journal of a blob of %d bytes", n)
	}
	from = Origin{Source: Source(b[56:journalHeader]), Pool: Pool(b[8]).known()}
	if string(b[:8]) == piecesMagic {
		from.Grain = content.Pieces
	}
	return from.Grain.Cut(int64(n)), from, nil
}

// readJournal tells how a journal's blob is cut and for whom it is, and whether it marks every chunk as present.
func readJournal(f io.Reader) (cut content.Cut, from Origin, complete bool, err error) {
	r := bufio.NewReader(f)
	head := make([]byte, journalHeader)
	if _, err := io.ReadFull(r, head); err != nil {
		return cut, from, false, err
	}
	if cut, from, err = decodeJournalHeader(head); err != nil {
		return cut, from, false, err
	}
	slot := make([]byte, journalSlot)
	for i := range cut.Len() {
		if _, err := io.ReadFull(r, slot); err != nil {
			return cut, from, false, nil
		}
		if _, ok := decodeSlot(i, slot); !ok {
			return cut, from, false, nil
		}
	}
	return cut, from, true, nil
}

// sign writes the header, unless it says the same already.
func (j *journal) sign() error {
	j.slots = nil
	if j.signed {
		return nil
	}
	b := make([]byte, journalHeader)
	copy(b, journalMagic)
	if j.cut != content.CutLeaves(j.cut.Size()) {
		copy(b, piecesMagic)
	}
	binary.BigEndian.PutUint64(b[8:], uint64(j.cut.Size())|uint64(j.origin.Pool)<<journalPool)
	binary.BigEndian.PutUint32(b[52:], crc32.Checksum(b[:52], castagnoli))
	copy(b[56:], j.origin.Source[:])
	return j.disk.writeAt(j.file, b, 0)
}

// chunk is what the journal said of chunk i when it was opened.
func (j *journal) chunk(i int) (cid.Cid, bool) {
	if len(j.slots) < (i+1)*journalSlot {
		return cid.Undef, false
	}
	sum, ok := decodeSlot(i, j.slots[i*journalSlot:(i+1)*journalSlot])
	if !ok {
		return cid.Undef, false
	}
	return content.SumCID([sumSize]byte(sum)), true
}

func decodeSlot(i int, slot []byte) (sum []byte, ok bool) {
	sum = slot[:sumSize]
	return sum, binary.BigEndian.Uint32(slot[sumSize:]) == slotCRC(i, sum)
}

func (j *journal) set(i int, c cid.Cid) error {
	slot := cidSum(c)
	slot = binary.BigEndian.AppendUint32(slot, slotCRC(i, slot))
	return j.disk.writeAt(j.file, slot, journalHeader+int64(i)*journalSlot)
}

func (j *journal) clear(i int) error {
	return j.disk.writeAt(j.file, make([]byte, journalSlot), journalHeader+int64(i)*journalSlot)
}

// slotCRC covers the number too. Inverted, it is not 0 for a hole.
func slotCRC(i int, sum []byte) uint32 {
	return ^crc32.Update(crc32.Checksum(binary.BigEndian.AppendUint32(nil, uint32(i)), castagnoli), castagnoli, sum)
}

func (j *journal) close() error {
	if err := j.file.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// remove drops the journal of a committed ingest. If that fails recovery does it.
func (j *journal) remove() {
	_ = j.close()
	_ = j.disk.remove(j.file.Name())
}
