package mirror

import (
	"cmp"
	"fmt"
	"regexp"
	"strconv"
)

// release is a version of containerd.
type release struct{ major, minor, patch int }

func (r release) String() string { return fmt.Sprintf("%d.%d", r.major, r.minor) }

func (r release) before(other release) bool {
	return cmp.Or(cmp.Compare(r.major, other.major), cmp.Compare(r.minor, other.minor),
		cmp.Compare(r.patch, other.patch)) < 0
}

var (
	// firstTransfer is the first release whose CRI plugin pulls with the transfer service, which takes config_path,
	// list or not, for one directory.
	firstTransfer = release{2, 1, 0}
	// firstDefaultPath is the first release that has a config_path where the configuration sets none.
	firstDefaultPath = release{2, 2, 0}
	// firstMigrateEach is the first release that brings every file to the newest version before it merges them.
	firstMigrateEach = release{2, 3, 0}
)

// spans says which releases one of knownReleases stands for.
func (r release) spans() string {
	switch r {
	case knownReleases[0]:
		return "1.x"
	case knownReleases[len(knownReleases)-1]:
		return r.String() + " and later"
	}
	return r.String()
}

// knownReleases stand for all that treat a configuration differently, for a node whose containerd is not known.
var knownReleases = []release{{1, 7, newest}, {2, 0, newest}, firstTransfer, firstDefaultPath, firstMigrateEach}

// newest is higher than the last number of any release.
const newest = 1000

// globsHere tells of a release of containerd 1 that looks for what a relative pattern imports in its working directory,
// which for a service is the root, and not beside the file.
func (r release) globsHere() bool {
	return r.before(release{1, 6, 29}) || r.minor == 7 && r.before(release{1, 7, 16})
}

// refusesNewer tells of a release of containerd 1 that does not start with a version of the file that it does not know.
// Others take it for version 2.
func (r release) refusesNewer() bool {
	return !r.before(release{1, 7, 17}) || r.minor == 6 && !r.before(release{1, 6, 32})
}

var releasePattern = regexp.MustCompile(`(?:^|[\sv])(\d+)\.(\d+)\.(\d+)`)

// parseRelease finds the release in what containerd calls its version, such as "v2.4.2" or "1.6.20~ds1", or in what
// `containerd --version` prints.
func parseRelease(version string) (r release, ok bool) {
	m := releasePattern.FindStringSubmatch(version)
	if m == nil {
		return release{}, false
	}
	for i, to := range []*int{&r.major, &r.minor, &r.patch} {
		n, err := strconv.Atoi(m[i+1])
		if err != nil {
			return release{}, false
		}
		*to = n
	}
	return r, true
}
