// Command reuse measures how much of a new version of a model's weights a node has already that holds the old version,
// by whole files, by fixed chunks of 1 MiB, and by chunks whose bounds the content defines. The weights are made:
// values of bfloat16 around zero, in tensors of a transformer's sizes, in files of the format safetensors. It prints
// the table of node/MODELS.md.
package main

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"time"
)

const (
	hidden = 1024
	shards = 4
)

// layers is how many layers the model has, of 32 MiB each.
var layers = flag.Int("layers", 16, "layers of the model, of 32 MiB each; at least 2")

// tensor is a name and its values, two bytes each.
type tensor struct {
	name string
	data []byte
}

// weights makes a model's tensors: of each layer attention (4 of hidden²) and feed-forward (3 of 4 hidden²).
func weights(seed uint64) []tensor {
	rng := rand.New(rand.NewPCG(seed, 1))
	var out []tensor
	for l := range *layers {
		for i, n := range []int{1, 1, 1, 1, 4, 4, 4} {
			data := make([]byte, 2*n*hidden*hidden)
			fill(data, rng)
			out = append(out, tensor{fmt.Sprintf("model.layers.%d.part%d.weight", l, i), data})
		}
	}
	return out
}

func fill(data []byte, rng *rand.Rand) {
	for i := 0; i < len(data); i += 2 {
		binary.LittleEndian.PutUint16(data[i:], bfloat(rng.NormFloat64()*0.02))
	}
}

func bfloat(v float64) uint16 { return uint16(math.Float32bits(float32(v)) >> 16) }

func value(b []byte) float64 {
	return float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(b)) << 16))
}

// change gives the tensors with those replaced that f returns other data for.
func change(all []tensor, f func(i int, data []byte) []byte) []tensor {
	out := make([]tensor, len(all))
	for i, t := range all {
		out[i] = tensor{t.name, f(i, t.data)}
	}
	return out
}

// files writes tensors into so many files: length of the header, header, data. comment makes the header longer.
func files(all []tensor, n int, comment string) [][]byte {
	total := 0
	for _, t := range all {
		total += len(t.data)
	}
	var out [][]byte
	for len(all) > 0 {
		header, body := map[string]any{"__metadata__": map[string]string{"format": "pt" + comment}}, []byte(nil)
		for len(all) > 0 && (len(body) == 0 || len(body)+len(all[0].data) <= total/n) {
			at := len(body)
			body = append(body, all[0].data...)
			header[all[0].name] = map[string]any{"dtype": "BF16", "data_offsets": []int{at, len(body)}}
			all = all[1:]
		}
		text, err := json.Marshal(header)
		if err != nil {
			panic(err) // of maps of strings and numbers
		}
		file := binary.LittleEndian.AppendUint64(nil, uint64(len(text)))
		out = append(out, append(append(file, text...), body...))
	}
	return out
}

// cut splits a file into chunks.
type cut func(file []byte) [][]byte

func whole(file []byte) [][]byte { return [][]byte{file} }

func fixed(file []byte) (out [][]byte) {
	for len(file) > 0 {
		n := min(1<<20, len(file))
		out, file = append(out, file[:n]), file[n:]
	}
	return out
}

var gear = func() (g [256]uint64) {
	rng := rand.New(rand.NewPCG(7, 7))
	for i := range g {
		g[i] = rng.Uint64()
	}
	return g
}()

// defined cuts where a rolling hash over the last 64 bytes says so: on average after 1<<bits bytes, not before a
// quarter of that nor after four times as much (FastCDC).
func defined(bits int) cut {
	least, most, mask := 1<<(bits-2), 1<<(bits+2), ^uint64(0)<<(64-bits)
	return func(file []byte) (out [][]byte) {
		for len(file) > 0 {
			n, h := min(least, len(file)), uint64(0)
			for ; n < len(file) && n < most; n++ {
				if h = h<<1 + gear[file[n]]; h&mask == 0 {
					break
				}
			}
			out, file = append(out, file[:n]), file[n:]
		}
		return out
	}
}

// had is the share of the new files' bytes that lie in chunks of the old.
func had(before, after [][]byte, c cut) float64 {
	known := map[[sha256.Size]byte]bool{}
	for _, f := range before {
		for _, chunk := range c(f) {
			known[sha256.Sum256(chunk)] = true
		}
	}
	same, all := 0, 0
	for _, f := range after {
		for _, chunk := range c(f) {
			if all += len(chunk); known[sha256.Sum256(chunk)] {
				same += len(chunk)
			}
		}
	}
	return float64(same) / float64(all)
}

func main() {
	flag.Parse()
	if *layers < 2 {
		fmt.Fprintf(os.Stderr, "-layers is %d: it has to be at least 2, because one of the versions differs in the "+
			"last 2\n", *layers)
		os.Exit(2)
	}
	base := weights(1)
	rng := rand.New(rand.NewPCG(2, 2))
	anew := func(data []byte) []byte {
		out := make([]byte, len(data))
		fill(out, rng)
		return out
	}
	nudged := func(data []byte) []byte {
		out := make([]byte, len(data))
		for i := 0; i < len(data); i += 2 {
			binary.LittleEndian.PutUint16(out[i:], bfloat(value(data[i:])+rng.NormFloat64()*0.0005))
		}
		return out
	}
	quantized := func(data []byte) []byte {
		out := make([]byte, len(data)/2)
		for i := range out {
			out[i] = byte(int8(max(-127, min(127, math.Round(value(data[2*i:])/0.08*127)))))
		}
		return out
	}
	old := files(base, shards, "")
	versions := []struct {
		name  string
		files [][]byte
	}{
		{"full fine-tune: every value moves a little",
			files(change(base, func(_ int, d []byte) []byte { return nudged(d) }), shards, "")},
		{"fine-tune of attention alone, merged: 4 of 7 tensors in a layer, a quarter of the bytes",
			files(change(base, func(i int, d []byte) []byte {
				if i%7 < 4 {
					return nudged(d)
				}
				return d
			}), shards, "")},
		{fmt.Sprintf("the last 2 of %d layers trained on", *layers),
			files(change(base, func(i int, d []byte) []byte {
				if i/7 >= *layers-2 {
					return anew(d)
				}
				return d
			}), shards, "")},
		{"quantized to 8 bits",
			files(change(base, func(_ int, d []byte) []byte { return quantized(d) }), shards, "")},
		{"a shard appended", append(files(base, shards, ""), files(weights(3)[:7*2], 1, "")...)},
		{"the header of each file 96 bytes longer", files(base, shards, fmt.Sprintf("%96s", ""))},
		{"the same tensors in 7 files in place of 4", files(base, 7, "")},
	}
	cuts := []struct {
		name string
		cut  cut
	}{{"whole files", whole}, {"fixed, 1 MiB", fixed}, {"defined, 64 KiB", defined(16)},
		{"defined, 1 MiB", defined(20)}}
	fmt.Print("| new version |")
	for _, c := range cuts {
		fmt.Printf(" %s |", c.name)
	}
	fmt.Print("\n| --- |")
	for range cuts {
		fmt.Print(" --- |")
	}
	fmt.Println()
	for _, v := range versions {
		fmt.Printf("| %s |", v.name)
		for _, c := range cuts {
			fmt.Printf(" %.0f %% |", 100*had(old, v.files, c.cut))
		}
		fmt.Println()
	}
	start, size := time.Now(), 0
	for _, f := range old {
		size += len(f)
		defined(16)(f)
	}
	fmt.Printf("\n%d MiB; bounds by content alone take %.2f s of CPU a GiB here.\n", size>>20,
		time.Since(start).Seconds()/float64(size)*(1<<30))
}
