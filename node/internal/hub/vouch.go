package hub

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// One node asks the hub for all, and any of them may have been taken over. So what others tell of the hub counts by its
// kind:
//
//   - What tells of branches, files and readers counts once two nodes have signed that the hub itself told them the
//     same, lately. Where one has, a second is sent to ask. Where they differ, each node asks for itself. What agents
//     of before tell is not signed, so a second node asks for it, too.
//   - That a repository has proved to have a file, and that the holder of a token may read, counts by the word of one,
//     in memory and for a while: such a node could give away itself what it opens.
//   - A file out of git is checked by its name, and so are the bytes at a URL.
//
// While the hub is away there is nobody to ask. What this node has from it goes first then, next what two others
// remember alike, and last what one remembers, for who knows nothing else. That is not kept.
const (
	openKind = "open"
	hasKind  = "has"
	gitKind  = "git"
	atKind   = "at"
	blobKind = "blob"
	// againKind begins the keys of what a second node asks.
	againKind = "again"

	// swornTTL is for how long the word of one other node counts where it does.
	swornTTL = time.Hour
	// latelyTTL is for how long other nodes are not asked again what they remember, while the hub is away.
	latelyTTL = 5 * time.Minute
	// clockSlack is how far apart the clocks of nodes may be for their signatures to count.
	clockSlack = time.Minute
	// agreed is how many nodes must have had it from the hub.
	agreed = 2
	// maxVouched is how many signatures are handed on with a record, and maxSigned the most bytes of one. voucherSize
	// is what it takes beside them.
	maxVouched  = 4
	maxSigned   = 256
	voucherSize = 64
)

// kindOf is the first part of a key.
func kindOf(key string) string {
	kind, _, _ := strings.Cut(key, "\x00")
	return kind
}

// takesTwo reports whether other nodes' word on what is under a key counts only where two say the same.
func takesTwo(key string) bool {
	switch kindOf(key) {
	case hasKind, callerKind, gitKind, atKind, blobKind:
		return false
	}
	return true
}

// sworn reports whether the word of one other node counts for a while, in memory.
func sworn(key string) bool { return slices.Contains([]string{hasKind, callerKind}, kindOf(key)) }

// voucher is a node's word that it has a record from the hub itself.
type voucher struct {
	// Unix is since when, in seconds.
	Unix      int64  `json:"unix"`
	By        []byte `json:"by"`
	Signature []byte `json:"signature"`
}

// vouchers are of few nodes. A list of more is refused while it is read: as many as a message has room for would take
// twenty times its memory.
type vouchers []voucher

var errVouchers = fmt.Errorf("more than %d nodes vouch", 2*maxVouched)

// UnmarshalJSON implements json.Unmarshaler.
func (v *vouchers) UnmarshalJSON(b []byte) error {
	*v = nil
	in := json.NewDecoder(bytes.NewReader(b))
	if first, err := in.Token(); err != nil || first == nil { // null is none
		return err
	} else if first != json.Delim('[') {
		return fmt.Errorf("%v where a list of those who vouch is expected", first)
	}
	for in.More() {
		if len(*v) == 2*maxVouched {
			return errVouchers
		}
		var one voucher
		if err := in.Decode(&one); err != nil {
			return err
		}
		*v = append(*v, one)
	}
	return nil
}

// statement is what is signed. Its label is that of no other kind of statement.
func statement(key string, r record, unix int64) []byte {
	return fmt.Appendf(nil, "shoal word of a hub 1\x00%d %q %t %q %q %d %q %t %q", unix, key, r.Yes, r.Commit,
		r.Digest, r.Size, r.Next, r.Large, r.Endless)
}

// vouch adds this node's word to a record that it has from the hub just now.
func (m *memo) vouch(key string, r record) record {
	if !takesTwo(key) {
		return r
	}
	now := time.Now().Unix()
	by, signature, err := m.shared.Sign(statement(key, r, now))
	if err != nil {
		m.log.Warn("other nodes are told without a signature", "error", err)
		return r
	}
	r.Vouched = append(slices.Clip(r.Vouched), voucher{now, by, signature})
	return r
}

// vouched are the words on a record that count: of nodes that are admitted, one of each, not older than maxAge.
func (m *memo) vouched(key string, r record, maxAge time.Duration) (good []voucher) {
	for _, v := range r.Vouched {
		known := slices.ContainsFunc(good, func(g voucher) bool { return string(g.By) == string(v.By) })
		age := time.Since(time.Unix(v.Unix, 0))
		// A word from the future would count as recent until its time comes, and for maxAge after it.
		late := maxAge < forever-clockSlack && (age > maxAge+clockSlack || age < -clockSlack)
		if !known && !late && len(good) < maxVouched && len(v.By)+len(v.Signature) <= maxSigned &&
			m.shared.Signed(v.By, statement(key, r, v.Unix), v.Signature) {
			good = append(good, v)
		}
	}
	return good
}

// newest chooses between what this node has from the hub, where known, and what others remember, one word of each. two:
// it is not the word of one other node alone.
func newest(own remembered, known bool, told []remembered) (best remembered, two, ok bool) {
	slices.SortFunc(told, func(a, b remembered) int { return b.at.Compare(a.at) })
	for i, r := range told {
		if (!known || r.at.After(own.at)) &&
			slices.ContainsFunc(told[:i], func(other remembered) bool { return same(other.record, r.record) }) {
			return r, true, true
		}
	}
	if !known && len(told) > 0 {
		return told[0], false, true
	}
	return own, true, known
}

// openest is newest of whether everybody may read, of which nobody is to go by what was so once. The newest no counts,
// whose ever it is. A later yes of others takes two, and one will do where nobody has said no.
func openest(own remembered, known bool, told []remembered) (best remembered, two, ok bool) {
	if known && !own.record.Yes || len(told) == 0 {
		return own, true, known
	}
	var no remembered
	for _, r := range told {
		if !r.record.Yes && r.at.After(no.at) {
			no = r
		}
	}
	later := slices.DeleteFunc(slices.Clone(told), func(r remembered) bool {
		return !r.record.Yes || r.at.Before(no.at)
	})
	slices.SortFunc(later, func(a, b remembered) int { return b.at.Compare(a.at) })
	switch {
	case known && !own.at.Before(no.at):
		return own, true, true
	case len(later) >= agreed:
		return later[agreed-1], true, true
	case no.at.IsZero() && len(later) > 0:
		return later[0], false, true
	}
	return no, false, true
}

// bytesOf is what a record takes on its way, but for its document.
func bytesOf(r record) int {
	n := len(r.Commit) + len(r.Digest) + len(r.Next) + len(r.URL) + len(r.Endless)
	for _, v := range r.Vouched {
		n += voucherSize + len(v.By) + len(v.Signature)
	}
	return n
}
