package mirror

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What distributions set of the keys that matter here, by what they publish; the rest of their files says nothing of
// mirrors. EKS: awslabs/amazon-eks-ami, nodeadm/internal/containerd/config2.template.toml. AKS: Azure/AgentBaker,
// aks-node-controller/parser/templates/containerd_no_GPU.toml.gtpl. Bottlerocket:
// bottlerocket-os/bottlerocket-core-kit, packages/containerd-2.1/containerd-config-toml_k8s_containerd_sock, and for
// the older one bottlerocket-os/bottlerocket, packages/containerd. GKE: "Customize containerd configuration in GKE
// nodes" and the field registryHosts of its API. kind: the patch of "Local Registry" in its guide. OpenShift: what its
// machine-config operator makes of an ImageDigestMirrorSet.
func TestFlavours_AreReadAsTheirContainerdReadsThem(t *testing.T) {
	t.Parallel()
	const (
		eks = "version = 3\n[plugins.'io.containerd.cri.v1.images']\ndiscard_unpacked_layers = true\n" +
			"[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/etc/containerd/certs.d:/etc/docker/certs.d\"\n"
		eksKeepsLayers = "version = 3\n[plugins.'io.containerd.cri.v1.images']\ndiscard_unpacked_layers = false\n" +
			"[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/etc/containerd/certs.d:/etc/docker/certs.d\"\n"
		aks = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"pause\"\n" +
			"[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n" +
			"[plugins.\"io.containerd.grpc.v1.cri\".registry.headers]\nX-Meta-Source-Client = [\"azure/aks\"]\n"
		aksNewName = "version = 2\noom_score = -999\n[plugins.\"io.containerd.cri.v1.images\"]\n" +
			"[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n" +
			"[plugins.\"io.containerd.cri.v1.images\".registry.headers]\nX-Meta-Source-Client = [\"azure/aks\"]\n"
		talos       = "version = 3\nimports = [\"/etc/cri/conf.d/cri.toml\"]\n"
		talosImport = "version = 3\n[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/etc/cri/conf.d/hosts\"\n"
		microk8s    = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/var/snap/microk8s/current/args/certs.d\"\n"
		oldMicrok8s = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = [\"https://registry-1.docker.io\"]\n"
		k3sDir      = "/var/lib/rancher/k3s/agent/etc/containerd"
		k3s         = "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = \"" + k3sDir +
			"/certs.d\"\n"
		docker = "disabled_plugins = [\"cri\"]\n"
		rocket = "version = 3\nimports = [\"/etc/containerd/config.d/*.toml\"]\n[plugins.\"io.containerd.cri.v1.images\"]\nuse_local_image_pull = false\n" +
			"[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n"
		oldRocket = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nenable_selinux = true\n" +
			"[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = [\"https://mirror.example\"]\n"
		gke       = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/hosts.d\"\n"
		gkeHost   = "server = 'my.customdomain.com'\n\n[host]\n  [host.'http://10.0.1.2:5000']\n    capabilities = ['pull', 'resolve']\n"
		kind      = "version = 3\n[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n"
		openShift = "unqualified-search-registries = [\"registry.access.redhat.com\", \"docker.io\"]\nshort-name-mode = \"\"\n" +
			"[[registry]]\n  prefix = \"\"\n  location = \"quay.io/openshift-release-dev/ocp-release\"\n  mirror-by-digest-only = true\n" +
			"  [[registry.mirror]]\n    location = \"mirror.example/openshift/release-images\"\n"
		rke2 = "mirrors:\n  docker.io:\n    endpoint:\n      - \"https://mirror.example:5000\"\nconfigs:\n  \"mirror.example:5000\":\n    tls:\n      ca_file: /etc/ssl/mirror.pem\n"
	)
	for name, c := range map[string]struct {
		runtime      Runtime
		registries   []string
		config, path string
		before       tree
		release      string
		want         []FindingKind
		changed      []string
		mended       bool // with FixConfigPath it is in force
	}{
		"EKS on Amazon Linux 2023": {
			before: tree{config: eks}, release: "2.1.5", changed: []string{certs + "_default/hosts.toml"},
		},
		"EKS on Amazon Linux 2023 that keeps layers": {
			before: tree{config: eksKeepsLayers}, release: "2.2.1", want: []FindingKind{ConfigPathList},
			changed: []string{certs + "_default/hosts.toml"}, mended: true,
		},
		"AKS": {before: tree{config: aks}, release: "1.7.28",
			changed: []string{certs + "_default/hosts.toml"}},
		"AKS with containerd 2": {before: tree{config: aks}, release: "2.0.5",
			changed: []string{certs + "_default/hosts.toml"}},
		"AKS with containerd 2, which names the plugin anew": {before: tree{config: aksNewName}, release: "2.1.5",
			changed: []string{certs + "_default/hosts.toml"}},
		"AKS with containerd 2.3": {before: tree{config: strings.Replace(aksNewName, "version = 2", "version = 4", 1)},
			release: "2.3.1", changed: []string{certs + "_default/hosts.toml"}},
		"Talos": {
			runtime: Talos, before: tree{"/etc/cri/containerd.toml": talos, "/etc/cri/conf.d/cri.toml": talosImport},
			release: "2.1.4",
			changed: []string{"/etc/cri/conf.d/hosts/_default/hosts.toml"},
		},
		"MicroK8s, whose docker.io has a directory": {
			runtime: MicroK8s, release: "1.7.28", before: tree{
				"/var/snap/microk8s/current/args/containerd.toml":              microk8s,
				"/var/snap/microk8s/current/args/certs.d/docker.io/hosts.toml": "server = \"https://docker.io\"\n[host.\"https://registry-1.docker.io\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
			},
			changed: []string{"/var/snap/microk8s/current/args/certs.d/_default/hosts.toml",
				"/var/snap/microk8s/current/args/certs.d/docker.io/hosts.toml"},
		},
		"MicroK8s, which names the folder of its revision": {
			runtime: MicroK8s, release: "1.7.28", before: tree{
				"/var/snap/microk8s/current/args/containerd.toml": strings.ReplaceAll(microk8s, "/current/", "/7394/")},
			changed: []string{"/var/snap/microk8s/current/args/certs.d/_default/hosts.toml"},
		},
		"MicroK8s, by its template": {
			runtime: MicroK8s, release: "1.7.28", before: tree{"/var/snap/microk8s/current/args/containerd.toml": strings.ReplaceAll(
				microk8s, "/var/snap/microk8s/current", "${SNAP_DATA}")},
			changed: []string{"/var/snap/microk8s/current/args/certs.d/_default/hosts.toml"},
		},
		"a relative config_path": {
			release: "2.4.2", before: tree{config: strings.ReplaceAll(configured, "/etc/containerd/", "")},
			want: []FindingKind{ConfigPathElsewhere}, changed: []string{certs + "_default/hosts.toml"},
		},
		"an old MicroK8s": {
			runtime: MicroK8s, release: "1.5.13",
			before:  tree{"/var/snap/microk8s/current/args/containerd.toml": oldMicrok8s},
			want:    []FindingKind{LegacyMirrors},
			changed: []string{"/var/snap/microk8s/current/args/certs.d/_default/hosts.toml"},
		},
		"k3s, as it writes containerd's files": {
			config: k3sDir + "/config.toml", path: k3sDir + "/certs.d", release: "2.1.5-k3s1",
			before: tree{k3sDir + "/config.toml": k3s,
				k3sDir + "/certs.d/docker.io/hosts.toml": "# File generated by k3s. DO NOT EDIT.\n"},
			changed: []string{k3sDir + "/certs.d/_default/hosts.toml", k3sDir + "/certs.d/docker.io/hosts.toml"},
		},
		"Bottlerocket": {before: tree{config: rocket, "/etc/containerd/config.d/": ""}, release: "2.1.5+bottlerocket",
			changed: []string{certs + "_default/hosts.toml"}},
		"Bottlerocket of 2023": {
			before: tree{config: oldRocket}, release: "1.6.28+bottlerocket", want: []FindingKind{LegacyMirrors},
			changed: []string{certs + "_default/hosts.toml"},
		},
		"GKE": {
			before:  tree{config: gke, "/etc/containerd/hosts.d/my.customdomain.com/hosts.toml": gkeHost},
			release: "1.7.28", path: "/etc/containerd/hosts.d",
			changed: []string{"/etc/containerd/hosts.d/_default/hosts.toml",
				"/etc/containerd/hosts.d/my.customdomain.com/hosts.toml"},
		},
		"GKE whose folder is not named": {
			before: tree{config: gke}, release: "1.7.28", path: "/etc/containerd/certs.d",
			want:    []FindingKind{ConfigPathElsewhere},
			changed: []string{certs + "_default/hosts.toml"},
		},
		"kind": {before: tree{config: kind}, release: "2.1.3", changed: []string{certs + "_default/hosts.toml"}},
		"OpenShift": {
			runtime: CRIO, registries: []string{"quay.io"}, want: []FindingKind{DigestsOnly},
			before:  tree{"/etc/containers/registries.conf": openShift, "/etc/containers/registries.conf.d/": ""},
			changed: []string{"/etc/containers/registries.conf.d/zz-shoal.conf"},
		},
		"RKE2": {
			runtime: RKE2, before: tree{"/etc/rancher/rke2/registries.yaml": rke2}, want: []FindingKind{RestartNeeded},
			changed: []string{"/etc/rancher/rke2/registries.yaml"},
		},
		"kubeadm on Docker's package": {
			before: tree{config: docker}, release: "1.7.28", want: []FindingKind{CRIDisabled, ConfigPathUnset},
			changed: []string{certs + "_default/hosts.toml"},
		},
		"containerd 2.2 with nothing": {
			before: tree{"/etc/containerd/": ""}, release: "2.2.0", want: []FindingKind{ConfigPathList},
			changed: []string{certs + "_default/hosts.toml"}, mended: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			runtime := Containerd
			if c.runtime != "" {
				runtime = c.runtime
			}
			o := node(t, runtime, c.before)
			o.Release, o.RuntimeConfig, o.Path, o.Registries = c.release, c.config, c.path, c.registries
			before := read(t, o.Root)
			result, err := Install(o)
			require.NoError(t, err)
			require.Equal(t, c.want, kinds(result), result.Findings)
			require.ElementsMatch(t, c.changed, result.Changed)
			if c.mended {
				mended := o
				mended.FixConfigPath = true
				_, err := Install(mended)
				require.NoError(t, err)
				status, err := Status(o)
				require.NoError(t, err)
				require.True(t, status.InForce(), status.Findings)
			}
			requireUndone(t, o, before)
		})
	}
}
