package pullsecret

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// providesCredentials matches the registries of clouds for which kubelets are set up with a credential provider, so
// that pods pull without a Secret: ECR, Artifact Registry, its predecessor, and ACR.
var providesCredentials = regexp.MustCompile(
	`\.dkr[.-]ecr[a-z-]*\..*\.amazonaws\.com(\.cn)?$|\.pkg\.dev$|^(.+\.)?gcr\.io$|\.azurecr\.(io|cn|us)$`)

// maxHosts are named of the registries that secrets have credentials for.
const maxHosts = 4

// Refused says why a registry may have refused who pulls from a repository with these credentials, and what to do:
// whether there was no secret, one of another registry, or one that the registry does not take. secrets is how many
// were named.
func (all Credentials) Refused(repository string, secrets int) string {
	host, _, _ := strings.Cut(repository, "/")
	if _, ok := all.For(repository); ok {
		return fmt.Sprintf("the registry refuses the credentials of the pull secret: "+
			"they are wrong, have expired, or may not read %s", repository)
	}
	if secrets == 0 {
		said := fmt.Sprintf("it was asked without credentials: "+
			"name a Secret with those of %s in spec.pullSecrets, or look whether the repository exists", host)
		if providesCredentials.MatchString(host) {
			said += "; pods pull from there with the kubelet's credential provider, which pins do not have"
		}
		return said
	}
	var hosts []string
	for _, e := range all {
		if !slices.Contains(hosts, e.host) {
			hosts = append(hosts, e.host)
		}
	}
	if len(hosts) == 0 {
		return fmt.Sprintf("the pull secrets could not be read or hold no credentials, so %s was asked without any",
			host)
	}
	slices.Sort(hosts)
	more := ""
	if len(hosts) > maxHosts {
		hosts, more = hosts[:maxHosts], " and others"
	}
	return fmt.Sprintf("the pull secrets have credentials for %s%s, and none for %s", strings.Join(hosts, ", "), more,
		repository)
}
