package hubtest

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // git names its objects so
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
)

// Data is the content of a file.
type Data interface {
	io.ReaderAt
	Size() int64
}

// Bytes is data at hand.
func Bytes(b []byte) Data { return bytes.NewReader(b) }

// Text is data at hand.
func Text(s string) Data { return strings.NewReader(s) }

// Random is n bytes, the same for the same seed. They are made as they are read, where they are many.
func Random(seed uint64, n int64) Data {
	r := &random{seed: seed, size: n}
	if n > manyBytes {
		return r
	}
	all := make([]byte, n)
	_, _ = r.ReadAt(all, 0) // never fails within the size
	return Bytes(all)
}

const manyBytes = 8 << 20

type random struct {
	seed uint64
	size int64
}

const randomBlock = 64 << 10

func (r *random) Size() int64 { return r.size }

func (r *random) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		if off >= r.size {
			return n, io.EOF
		}
		var key [32]byte
		binary.LittleEndian.PutUint64(key[:], r.seed)
		binary.LittleEndian.PutUint64(key[8:], uint64(off/randomBlock))
		var block [randomBlock]byte
		_, _ = rand.NewChaCha8(key).Read(block[:]) // never fails
		from := off % randomBlock
		c := copy(p[n:], block[from:min(randomBlock, from+r.size-off)])
		n, off = n+c, off+int64(c)
	}
	return n, nil
}

// File is a file of a commit.
type File struct {
	Data Data
	// LFS puts the file into large file storage.
	LFS bool
	// ClaimedSHA256 is what the hub says in place of the file's own digest.
	ClaimedSHA256 string
	// SHA256 is the file's own digest, where the caller knows it: to take it of a very large file is dear.
	SHA256 string
}

type file struct {
	File
	oid    string // of git: of the file, or of the pointer to it
	sha256 string // of what is in large file storage
}

func newFile(f File) *file {
	out := &file{File: f}
	if f.LFS {
		if out.sha256 = f.SHA256; out.sha256 == "" {
			sum := sha256.New()
			if _, err := io.Copy(sum, io.NewSectionReader(f.Data, 0, f.Data.Size())); err != nil {
				panic(err) // what is made or in memory can be read
			}
			out.sha256 = hex.EncodeToString(sum.Sum(nil))
		}
		if f.ClaimedSHA256 != "" {
			out.sha256 = f.ClaimedSHA256
		}
		pointer := fmt.Sprintf("version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n", out.sha256,
			f.Data.Size())
		out.oid = gitName(strings.NewReader(pointer), int64(len(pointer)))
		return out
	}
	out.oid = gitName(io.NewSectionReader(f.Data, 0, f.Data.Size()), f.Data.Size())
	return out
}

func gitName(r io.Reader, size int64) string {
	sum := sha1.New() //nolint:gosec // as above
	_, _ = fmt.Fprintf(sum, "blob %d\x00", size)
	if _, err := io.Copy(sum, r); err != nil {
		panic(err) // as above
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// Repo is a repository.
type Repo struct {
	hub      *Hub
	kind, id string

	mu       sync.Mutex
	commits  map[string]map[string]*file
	branches map[string]string
	private  bool
	gated    bool
	readers  map[string]bool // tokens
}

// Commit puts files onto a branch, or onto refs/pr/1 and the like, and gives the commit's name.
func (r *Repo) Commit(branch string, files map[string]File) string {
	made := make(map[string]*file, len(files))
	sum := sha1.New() //nolint:gosec // as above
	for _, p := range slices.Sorted(maps.Keys(files)) {
		made[p] = newFile(files[p])
		_, _ = fmt.Fprintf(sum, "%s %s\n", made[p].oid, p)
	}
	_, _ = fmt.Fprintf(sum, "%s/%s %s", r.kind, r.id, branch)
	sha := hex.EncodeToString(sum.Sum(nil))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.commits[sha], r.branches[branch] = made, sha
	return sha
}

// Rename gives the repository another id. By the old one the hub leads to the new one.
func (r *Repo) Rename(id string) {
	r.hub.mu.Lock()
	defer r.hub.mu.Unlock()
	delete(r.hub.repos, r.kind+"/"+r.id)
	r.hub.renamed[r.kind+"/"+r.id] = id
	r.id = id
	r.hub.repos[r.kind+"/"+id] = r
}

// SetPrivate hides the repository from all but the holders of tokens. No tokens make it public.
func (r *Repo) SetPrivate(tokens ...string) { r.restrict(&r.private, tokens) }

// SetGated lets only the holders of tokens read files. No tokens open it.
func (r *Repo) SetGated(tokens ...string) { r.restrict(&r.gated, tokens) }

func (r *Repo) restrict(how *bool, tokens []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	*how, r.readers = len(tokens) > 0, map[string]bool{}
	for _, t := range tokens {
		r.readers["Bearer "+t] = true
	}
}

func (r *Repo) commit(revision string) (sha string, files map[string]*file) {
	r.mu.Lock()
	defer r.mu.Unlock()
	sha = revision
	if s, ok := r.branches[revision]; ok {
		sha = s
	}
	return sha, r.commits[sha]
}

// tree lists files and folders in the order of git.
func tree(files map[string]*file) []map[string]any {
	folders := map[string]bool{}
	var out []map[string]any
	for p, f := range files {
		e := map[string]any{"type": "file", "oid": f.oid, "size": f.Data.Size(), "path": p}
		if f.LFS {
			e["lfs"] = map[string]any{"oid": f.sha256, "size": f.Data.Size(), "pointerSize": 135}
			e["xetHash"] = xetHash(f)
		}
		out = append(out, e)
		for d := path.Dir(p); d != "."; d = path.Dir(d) {
			folders[d] = true
		}
	}
	for d := range folders {
		out = append(out, map[string]any{"type": "directory", "oid": gitName(strings.NewReader(d), int64(len(d))),
			"size": 0, "path": d})
	}
	slices.SortFunc(out, func(a, b map[string]any) int {
		return strings.Compare(a["path"].(string), b["path"].(string))
	})
	return out
}

func xetHash(f *file) string {
	sum := sha256.Sum256([]byte("xet " + f.sha256))
	return hex.EncodeToString(sum[:])
}

// Files are those of a branch or commit, by path.
func (r *Repo) Files(revision string) map[string]File {
	_, files := r.commit(revision)
	out := make(map[string]File, len(files))
	for path, f := range files {
		out[path] = f.File
	}
	return out
}
