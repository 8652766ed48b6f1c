package hub

import (
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/room/roomtest"
)

// takes is how many bytes f takes in all, whether they are given back or not.
func takes(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

//nolint:paralleltest // it counts what the process allocates
func TestListing_ManyElementsDoNotExhaustTheMemory(t *testing.T) {
	for name, element := range map[string]string{"numbers": "0,", "objects": "{},"} {
		t.Run(name, func(t *testing.T) {
			for _, size := range []int{maxListing, maxDoc} {
				doc := []byte("[" + strings.Repeat(element, size/len(element)-1) + element[:len(element)-1] + "]")
				require.Less(t, takes(func() {
					l, err := newListing(doc)
					require.NoError(t, err)
					require.True(t, l.large, "it is read page by page")
				}), uint64(16<<20))
			}
		})
	}
}

//nolint:paralleltest // it counts what the process allocates
func TestWithoutXet_TakesNoMoreMemoryThanTheDocument(t *testing.T) {
	for name, element := range map[string]string{
		"numbers": "0,", "objects": `{"a":1},`, "hashes": `{"xetHash":"a"},`, "large ones": `{"size":9,"xetHash":"a"},`,
		"deep": strings.Repeat(`{"xetHash":`, 5000) + "0" + strings.Repeat("}", 5000) + ",",
	} {
		t.Run(name, func(t *testing.T) {
			doc := []byte("[" + strings.Repeat(element, maxDoc/8/len(element)) + `{"xetHash":"b"}]`)
			require.Less(t, takes(func() {
				_, err := withoutXet(doc, 1)
				require.NoError(t, err)
			}), uint64(5*len(doc)))
		})
	}
}

func TestWithoutXet_LeavesAllElse(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ doc, want string }{
		"the first of the members":  {`{"xetHash":"a","b":1}`, `{"b":1}`},
		"the last":                  {`{"b":1,"xetHash":"a"}`, `{"b":1}`},
		"both of two":               {`{"xetHash":"a","xetEnabled":true,"b":[{}]}`, `{"b":[{}]}`},
		"all there is":              {`[{"xetHash":"a"},{"xetEnabled":true}]`, `[{},{}]`},
		"deep below":                {`{"a":[1,{"lfs":{"xetHash":"a","oid":"b"}},null]}`, `{"a":[1,{"lfs":{"oid":"b"}},null]}`},
		"with spaces":               {"{ \"a\" : \"x y\" ,\n\"xetHash\" : \"a\" }\n", `{"a":"x y"}`},
		"what looks like it":        {`["\"xetHash\":1,{","\\",{"a":"\\\"}","xetHash":{"b":[2]}}]`, `["\"xetHash\":1,{","\\",{"a":"\\\"}"}]`},
		"numbers as they are":       {`[1e400,0.10,-0,{"xetHash":null}]`, `[1e400,0.10,-0,{}]`},
		"a word":                    {`"\"xet"`, `"\"xet"`},
		"a file that is too large":  {`{"xetHash":"a","size":11}`, `{"size":11,"xetHash":"a"}`},
		"a file that is not":        {`{"xetHash":"a","size":10}`, `{"size":10}`},
		"a size that is none":       {`{"xetHash":"a","size":"11"}`, `{"size":"11"}`},
		"a large one with a folder": {`{"xetHash":{"c":1},"size":11}`, `{"size":11}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := withoutXet([]byte(tc.doc), 10)
			require.NoError(t, err)
			require.Equal(t, tc.want, string(got))
		})
	}
	for _, doc := range []string{`{"xetHash":"a"`, `{"xetHash":"a"}}`, `{"xetHash":}`, `"xet`} {
		_, err := withoutXet([]byte(doc), 0)
		require.Error(t, err, doc)
	}
}

func FuzzWithoutXet(f *testing.F) {
	f.Add([]byte(`{"a":[1,{"xetHash":"a","size":11}],"xetEnabled":true}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		got, err := withoutXet(doc, 10)
		if err == nil && json.Valid(doc) {
			require.True(t, json.Valid(got), "%s", got)
		}
	})
}

//nolint:paralleltest // it weighs the process
func TestListing_IsKeptForWhatItTakes(t *testing.T) {
	for name, file := range map[string]string{
		"short names": `{"type":"file","oid":"a","size":%d,"path":"%[1]d"}`,
		"files in large storage": `{"type":"file","oid":"` + strings.Repeat("a", 40) + `","size":%d,"path":"folder/` +
			`model-%[1]d-of-10000.safetensors","lfs":{"oid":"` + strings.Repeat("b", 64) + `","size":%[1]d}}`,
	} {
		t.Run(name, func(t *testing.T) {
			var files []string
			for i := range maxElements {
				files = append(files, fmt.Sprintf(file, i))
			}
			doc := []byte("[" + strings.Join(files, ",") + "]")
			before := roomtest.Live()
			l, err := newListing(doc)
			require.NoError(t, err)
			took := roomtest.Live() - before
			require.LessOrEqual(t, took, l.size())
			require.LessOrEqual(t, l.size(), 3*took, "else few are kept")
			runtime.KeepAlive(doc)
		})
	}
}
