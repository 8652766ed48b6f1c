// Command gohf downloads all files of a model with go-huggingface from the hub that HF_ENDPOINT names, and prints where
// they are.
package main

import (
	"fmt"
	"os"

	"github.com/gomlx/go-huggingface/hub"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: gohf MODEL FOLDER")
		os.Exit(2)
	}
	repo := hub.New(os.Args[1]).WithCacheDir(os.Args[2]).WithProgressBar(false)
	var names []string
	for name, err := range repo.IterFileNames() {
		if err != nil {
			fmt.Fprintln(os.Stderr, "gohf:", err)
			os.Exit(1)
		}
		names = append(names, name)
	}
	paths, err := repo.DownloadFiles(names...)
	if err != nil {
		fmt.Fprintln(os.Stderr, "gohf:", err)
		os.Exit(1)
	}
	for _, path := range paths {
		fmt.Println(path)
	}
}
