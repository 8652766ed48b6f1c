package hubtest

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
)

// write takes what clients upload: preupload says how each file is to come, which is in the commit itself, and commit
// makes one of the files that were there and those that come.
func (r *Repo) write(w http.ResponseWriter, req *http.Request, verb, branch string) {
	if req.Header.Get("Authorization") == "" {
		fail(w, http.StatusUnauthorized, "", "Invalid username or password.")
		return
	}
	d := json.NewDecoder(req.Body)
	if verb == "preupload" {
		var q struct {
			Files []map[string]any `json:"files"`
		}
		if err := d.Decode(&q); err != nil {
			fail(w, http.StatusBadRequest, "", err.Error())
			return
		}
		for _, f := range q.Files {
			f["uploadMode"], f["shouldIgnore"] = "regular", false
		}
		reply(w, map[string]any{"files": q.Files})
		return
	}
	files := r.Files(branch)
	for d.More() {
		var line struct {
			Key   string `json:"key"`
			Value struct {
				Path    string `json:"path"`
				Content string `json:"content"`
			} `json:"value"`
		}
		if err := d.Decode(&line); err != nil {
			fail(w, http.StatusBadRequest, "", err.Error())
			return
		}
		content, err := base64.StdEncoding.DecodeString(line.Value.Content)
		if err != nil {
			fail(w, http.StatusBadRequest, "", err.Error())
			return
		}
		if line.Key == "file" {
			files[line.Value.Path] = File{Data: Bytes(content)}
		}
	}
	sha := r.Commit(branch, maps.Clone(files))
	reply(w, map[string]any{"success": true, "commitOid": sha, "commitUrl": r.hub.URL() + "/" + r.id + "/commit/" + sha,
		"pullRequestUrl": nil})
}
