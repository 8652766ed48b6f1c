// Command images makes Shoal's container images without a container engine, and pushes them.
//
//	images build --program FILE.OS-ARCH… --name NAME --version V --revision SHA --created TIME --user UID --layout DIR
//	images push  --layout DIR [--insecure] REPOSITORY
//	images rootfs DIR
//
// build writes an OCI image layout: one index with an image for each program file, and for each image an SPDX document
// as a referrer. The same files, flags and version of this command give the same bytes.
//
// An image holds the program, the Mozilla root certificates, and nothing else; rootfs writes all but the program into a
// folder, for the Dockerfile.
//
// go-containerregistry makes the layers and the index. This command stays beside ko, which starts from a base image in
// a registry: here the whole root file system is made from this repository, so a build needs no registry.
package main

import (
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("images: ")
	if len(os.Args) < 2 {
		log.Fatal("usage: images build|push|rootfs …")
	}
	command, args := os.Args[1], os.Args[2:]
	var err error
	switch command {
	case "build":
		err = build(args)
	case "push":
		err = push(args)
	case "rootfs":
		err = rootfs(args)
	default:
		err = fmt.Errorf("%s is none of build, push, rootfs", command)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func build(args []string) error {
	f := flag.NewFlagSet("build", flag.ExitOnError)
	var m metadata
	f.StringVar(&m.name, "name", "", "the program's name, and the image's last path component")
	f.StringVar(&m.title, "description", "", "one sentence on what the image is")
	f.StringVar(&m.version, "version", "", "version, and the image's tag")
	f.StringVar(&m.revision, "revision", "", "source revision")
	f.StringVar(&m.user, "user", "65532:65532", "user and group the program runs as")
	created := f.String("created", "1970-01-01T00:00:00Z", "time of the source revision, RFC 3339")
	dir := f.String("layout", "", "folder of the OCI image layout to write")
	if err := f.Parse(args); err != nil {
		return err
	}
	at, err := time.Parse(time.RFC3339, *created)
	if err != nil {
		return fmt.Errorf("--created: %w", err)
	}
	m.created = v1.Time{Time: at.UTC()}
	if m.name == "" || m.version == "" || *dir == "" || f.NArg() == 0 {
		return fmt.Errorf("build needs --name, --version, --layout and at least one program file")
	}
	var programs []program
	for _, file := range f.Args() {
		p, err := parseProgram(file)
		if err != nil {
			return err
		}
		programs = append(programs, p)
	}
	digest, err := writeLayout(*dir, m, programs)
	if err != nil {
		return fmt.Errorf("write %s: %w", *dir, err)
	}
	fmt.Printf("%s:%s@%s\n", m.name, m.version, digest)
	return nil
}

// parseProgram reads the platform from a program file's name: shoal-node.linux-arm64.
func parseProgram(file string) (program, error) {
	_, suffix, _ := strings.Cut(filepath.Base(file), ".")
	goos, arch, ok := strings.Cut(suffix, "-")
	if !ok {
		return program{}, fmt.Errorf("%s: its name must end in .OS-ARCHITECTURE", file)
	}
	return program{file: file, platform: v1.Platform{OS: goos, Architecture: arch}}, nil
}

func push(args []string) error {
	f := flag.NewFlagSet("push", flag.ExitOnError)
	dir := f.String("layout", "", "folder of the OCI image layout to push")
	insecure := f.Bool("insecure", false, "the registry may speak plain HTTP")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *dir == "" || f.NArg() != 1 {
		return fmt.Errorf("push needs --layout and one repository")
	}
	var options []name.Option
	if *insecure {
		options = append(options, name.Insecure)
	}
	repository, err := name.NewRepository(f.Arg(0), options...)
	if err != nil {
		return err
	}
	return pushLayout(*dir, repository)
}

func rootfs(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("rootfs needs one folder")
	}
	for _, file := range baseFiles() {
		path := filepath.Join(args[0], file.path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, file.data, os.FileMode(file.mode)); err != nil {
			return err
		}
	}
	return nil
}
