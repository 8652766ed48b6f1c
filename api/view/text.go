package view

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/distribution/reference"
)

// Bytes writes a size with one binary unit, as 132.0MiB.
func Bytes(n int64) string {
	if n < 0 {
		return "?"
	}
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	value, unit := float64(n), 0
	for value >= 1024 && unit < len(units)-1 {
		value /= 1024
		unit++
	}
	if unit == 0 {
		return fmt.Sprintf("%dB", n)
	}
	return fmt.Sprintf("%.1f%s", value, units[unit])
}

// Duration writes a time as people do: 9s, 1.2s, 340ms, 2h3m.
func Duration(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + Duration(-d)
	case d == 0:
		return "0s"
	case d < time.Millisecond:
		return "<1ms"
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < 10*time.Second:
		return strings.TrimSuffix(fmt.Sprintf("%.1f", d.Seconds()), ".0") + "s"
	case d < time.Minute:
		return fmt.Sprintf("%.0fs", math.Round(d.Seconds()))
	case d < time.Hour:
		return withoutZero(d.Round(time.Second).String(), "0s")
	case d < 48*time.Hour:
		return withoutZero(withoutZero(d.Round(time.Minute).String(), "0s"), "0m")
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// withoutZero takes a last unit of which there are none off a duration: 1m0s is 1m, and 1m30s stays.
func withoutZero(text, zero string) string {
	rest, ok := strings.CutSuffix(text, zero)
	if !ok || rest[len(rest)-1] >= '0' && rest[len(rest)-1] <= '9' {
		return text
	}
	return rest
}

// Ago writes how long ago something was, in whole seconds: what is told of it is no more exact.
func Ago(d time.Duration) string {
	if d < time.Second {
		return "now"
	}
	return Duration(d.Truncate(time.Second)) + " ago"
}

// Count writes a number of things: 1 pin, 2 pins, 3 copies.
func Count[N int | int32](n N, one string) string {
	switch stem, y := strings.CutSuffix(one, "y"); {
	case n == 1:
		return "1 " + one
	case y && !strings.HasSuffix(stem, "a"):
		return fmt.Sprintf("%d %sies", n, stem)
	}
	return fmt.Sprintf("%d %ss", n, one)
}

// Are writes a number of things and the verb that goes with it: 1 copy is, 2 copies are.
func Are[N int | int32](n N, one string) string {
	if n == 1 {
		return Count(n, one) + " is"
	}
	return Count(n, one) + " are"
}

// Ratio writes a part of a whole in percent; a dash where there is no whole.
func Ratio(part, whole int64) string {
	if whole <= 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f%%", 100*float64(part)/float64(whole))
}

// Short is a digest as it fits in a column.
func Short(digest string) string {
	algorithm, hex, ok := strings.Cut(digest, ":")
	if !ok || len(hex) <= 12 {
		return digest
	}
	return algorithm + ":" + hex[:12]
}

// Text is what people are shown. It is written when all of it is there, so that nothing fails before.
type Text struct{ strings.Builder }

// Say adds to it as fmt.Printf does.
func (t *Text) Say(format string, args ...any) { _, _ = fmt.Fprintf(t, format, args...) }

// Table adds rows in aligned columns, the first row being the header.
func (t *Text) Table(rows [][]string) {
	w := tabwriter.NewWriter(t, 6, 4, 3, ' ', 0)
	for _, row := range rows {
		cells := slices.Clone(row)
		for i, c := range cells {
			cells[i] = cmp.Or(Line(c), "-")
		}
		_, _ = fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	_ = w.Flush()
}

// Pull tells how a pull went, and what took longest. node may be empty.
func (t *Text) Pull(node string, p Pull) {
	local, peers, upstream := p.Sources()
	where := ""
	if node != "" {
		where = " on " + node
	}
	state := fmt.Sprintf("took %s", Duration(p.Took))
	if p.Running {
		state = fmt.Sprintf("is running for %s", Duration(p.Took))
	}
	t.Say("%s%s, %s: %s\n  %s from this node, %s from peers, %s from the registry\n", Line(p.Image()), Line(where),
		p.Started.Local().Format("15:04:05"), state, Bytes(local), Bytes(peers), Bytes(upstream))
	for _, s := range p.Why() {
		t.Say("  %s\n", Line(s))
	}
	rows := [][]string{{"  PART", "KIND", "BYTES", "AFTER", "RESOLVE", "AUTHORIZE", "FIRST BYTE", "TOOK", "DISCOVERY",
		"PLAN", "FROM PEERS", "FROM REGISTRY", "ANSWER"}}
	for _, part := range p.Parts {
		row := []string{"  " + Short(part.Digest), part.Kind, Bytes(part.Bytes), Duration(part.After),
			optional(part.Resolve), optional(part.Authorize), optional(part.FirstByte), Duration(part.Took), "", "", "",
			"", part.Code}
		if f := part.Fetch; f != nil {
			row[8], row[9], row[10], row[11] = optional(f.Discovery), optional(f.Plan), Bytes(f.FromPeers),
				Bytes(f.FromUpstream)
		}
		rows = append(rows, row)
	}
	if p.Dropped > 0 {
		rows = append(rows, []string{fmt.Sprintf("  and %d requests more", p.Dropped)})
	}
	t.Table(rows)
}

func optional(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return Duration(d)
}

// notable is how long a step takes before it is named as a reason.
const notable = 250 * time.Millisecond

// worthSharing is the size from which it is worth a word that a blob came from the registry alone.
const worthSharing = 1 << 20

// Why names what made a pull slow or kept it from the cache, the gravest first, in sentences.
func (p Pull) Why() []string {
	var said []string
	say := func(format string, args ...any) {
		if s := fmt.Sprintf(format, args...); !slices.Contains(said, s) {
			said = append(said, s)
		}
	}
	for _, part := range p.Parts {
		if part.Problem != "" {
			say("%s %s was answered with %s: %s", part.Kind, Short(part.Digest), part.Code, part.Problem)
		}
	}
	for _, part := range p.Parts {
		if part.Resolve >= notable {
			say("the registry took %s to say what the tag names", Duration(part.Resolve))
		}
		if d := part.Authorize - part.Resolve; d >= notable {
			say("the registry took %s to say whether the caller may read %s", Duration(d), Short(part.Digest))
		}
		f := part.Fetch
		if f == nil {
			continue
		}
		whole := f.FromPeers + f.FromUpstream + f.Kept
		switch {
		case f.Outcome == "passed through":
			say("%s went straight through from the registry: the store has no room for it, or its disk fails",
				Short(part.Digest))
		case whole > 0 && f.FromPeers == 0 && f.FromUpstream >= worthSharing && part.Kind == "blob":
			say("%s came from the registry alone: no other node held it or had asked for it by then",
				Short(part.Digest))
		}
		if f.Discovery >= notable {
			say("it took %s to find out who else has or wants %s", Duration(f.Discovery), Short(part.Digest))
		}
		if d := f.Plan - f.Discovery; f.Plan > 0 && d >= notable {
			say("the coordinator of %s took %s to say what to ask of whom", Short(part.Digest), Duration(d))
		}
		if f.Problem != "" {
			say("the fetch of %s failed: %s", Short(part.Digest), f.Problem)
		}
	}
	if slowest := p.slowest(); slowest != nil && slowest.Took >= notable {
		from := "this node's disk"
		if f := slowest.Fetch; f != nil {
			from = fmt.Sprintf("%s from %s, %s from the registry", Bytes(f.FromPeers), Count(len(f.Peers), "peer"),
				Bytes(f.FromUpstream))
		}
		say("longest: %s %s took %s for %s (%s/s): %s", slowest.Kind, Short(slowest.Digest), Duration(slowest.Took),
			Bytes(slowest.Bytes),
			Bytes(int64(float64(slowest.Bytes)/slowest.Took.Seconds())), from)
	}
	if len(said) == 0 {
		say("nothing was slow: all of it was here or came at once")
	}
	return said
}

func (p Pull) slowest() *PullPart {
	var slowest *PullPart
	for i := range p.Parts {
		if slowest == nil || p.Parts[i].Took > slowest.Took {
			slowest = &p.Parts[i]
		}
	}
	return slowest
}

// Blobs lists blobs.
func (t *Text) Blobs(blobs []Blob, now time.Time) {
	rows := [][]string{{"DIGEST", "SIZE", "WHERE", "PINNED", "USED", "TYPE"}}
	for _, b := range blobs {
		used := ""
		if !b.Used.IsZero() {
			used = Ago(now.Sub(b.Used))
		}
		rows = append(rows, []string{b.Digest, Bytes(b.Size), b.Source,
			map[bool]string{true: "yes", false: "no"}[b.Pinned], used, b.MediaType})
	}
	t.Table(rows)
}

// Image lists the parts of an image.
func (t *Text) Image(i Image) {
	if i.Digest == "" {
		t.Say("%s: this node does not know the tag\n", Line(i.Name))
		return
	}
	state := "not complete"
	if i.Complete {
		state = "complete"
	}
	t.Say("%s is %s: %s here (%s)\n", Line(i.Name), Line(i.Digest), Bytes(i.Held()), state)
	rows := [][]string{{"PART", "KIND", "PLATFORM", "SIZE", "HERE"}}
	for _, p := range i.Parts {
		rows = append(rows, []string{p.Digest, p.Kind, p.Platform, Bytes(p.Size),
			map[bool]string{true: "yes", false: "no"}[p.Held]})
	}
	t.Table(rows)
}

// Matches reports whether a pull is of what a person names: an image as he writes it, a repository, a digest of a part.
// An empty name matches every pull.
func (p Pull) Matches(name string) bool {
	if name == "" || name == p.Image() || name == p.Repository || name == p.Reference {
		return true
	}
	if ref, err := reference.ParseDockerRef(name); err == nil {
		if ref.String() == p.Image() || ref.Name() == p.Repository && reference.IsNameOnly(plain(name)) {
			return true
		}
		if digested, ok := ref.(reference.Canonical); ok && ref.Name() == p.Repository { // it may have come by its tag
			name = digested.Digest().String()
		}
	}
	return slices.ContainsFunc(p.Parts, func(part PullPart) bool { return part.Digest == name })
}

// plain is a reference without the tag that ParseDockerRef adds.
func plain(name string) reference.Named {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil
	}
	return ref
}
