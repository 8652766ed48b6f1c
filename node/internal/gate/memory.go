package gate

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/lru"
)

const (
	memoryKey  = "gate"
	saveDelay  = time.Minute
	secretSize = 32
	version    = 5
	// beforeProofs is the first version that is read, and proofs the first whose proofs count: before, bytes that many
	// know, such as the start of some content, were enough for one. Who was accepted was so by the registry.
	beforeProofs, proofs = 2, 4
	// heard stands for the Unix time of what agents of before knew from others alone. It is forgotten.
	heard = 0
)

// saveSoon saves what the gate knows, once in saveDelay at most.
func (g *Gate) saveSoon() {
	if g.opts.Memory == nil {
		return
	}
	g.saving.Lock()
	defer g.saving.Unlock()
	if g.closed || g.timer != nil {
		return
	}
	g.timer = time.AfterFunc(saveDelay, func() {
		g.saving.Lock()
		defer g.saving.Unlock()
		if g.closed {
			return
		}
		g.timer = nil
		if err := g.save(); err != nil {
			g.log.Warn("accepted callers were not saved; a restart would forget them", "cause", err)
		}
	})
}

// Close ends the questions that run, and saves for the last time.
func (g *Gate) Close() error {
	g.end()
	g.running.Wait()
	g.saving.Lock()
	defer g.saving.Unlock()
	if g.closed || g.opts.Memory == nil {
		return nil
	}
	g.closed = true
	if g.timer != nil {
		g.timer.Stop()
	}
	return g.save()
}

func (g *Gate) save() error {
	if err := g.opts.Memory.Put(memoryKey, g.encode()); err != nil {
		return fmt.Errorf("save accepted callers: %w", err)
	}
	return nil
}

// said are what is remembered of callers, in the order in which the first byte of an entry's time numbers them from 1.
func (g *Gate) said() [3]*lru.Fair[mark, time.Time] {
	return [3]*lru.Fair[mark, time.Time]{g.accepted, g.tokens, g.refused}
}

// saidShift is where in the number of an entry's time stands which of said it is of. 0 is of a version that knew no
// difference: of any.
const saidShift = 56

// encode writes a version byte, the key of the marks, the number of callers, each with the Unix time and which of said
// it is of, and what was proved.
func (g *Gate) encode() []byte {
	b := append([]byte{version}, g.secret...)
	count := len(b)
	b = binary.BigEndian.AppendUint32(b, 0)
	var n uint32
	for i, said := range g.said() {
		for m, at := range said.All() {
			n++
			b = append(b, m[:]...)
			b = binary.BigEndian.AppendUint64(b, uint64(i+1)<<saidShift|uint64(max(at.Unix(), heard)))
		}
	}
	binary.BigEndian.PutUint32(b[count:], n)
	for m := range g.proven.All() {
		b = append(b, m[:]...)
	}
	return b
}

// load starts from what was saved, or afresh where that cannot be read.
func (g *Gate) load() {
	if g.opts.Memory == nil {
		return
	}
	b, ok := g.opts.Memory.Get(memoryKey)
	if !ok {
		return
	}
	if err := g.decode(b); err != nil {
		g.log.Warn("forgot the callers accepted in the last run", "error", err)
	}
}

func (g *Gate) decode(b []byte) error {
	const entry = len(mark{}) + 8
	if len(b) < 1+secretSize+4 || b[0] < beforeProofs || b[0] > version {
		return fmt.Errorf("saved callers: no version %d header in %d bytes", version, len(b))
	}
	counts := b[0] >= proofs
	secret, b := b[1:1+secretSize], b[1+secretSize:]
	n, b := int(binary.BigEndian.Uint32(b)), b[4:]
	said := g.said()
	if n > len(said)*maxAccepted || len(b) < n*entry || (len(b)-n*entry)%len(mark{}) != 0 {
		return fmt.Errorf("saved callers: %d of them and what was proved do not fit %d bytes", n, len(b))
	}
	copy(g.secret, secret)
	now := time.Now()
	for range n {
		word := binary.BigEndian.Uint64(b[len(mark{}):entry])
		unix := int64(word & (1<<saidShift - 1))
		for i := range said {
			if of := word >> saidShift; unix != heard && (of == 0 || of == uint64(i+1)) {
				said[i].Add(lru.Owner{}, mark(b[:len(mark{})]), content.KeptTime(unix, now))
			}
		}
		b = b[entry:]
	}
	for ; counts && len(b) > 0; b = b[len(mark{}):] {
		g.proven.Add(lru.Owner{}, mark(b[:len(mark{})]), struct{}{})
	}
	return nil
}
