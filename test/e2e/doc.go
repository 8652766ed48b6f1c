// Package e2e runs the whole product on a real Kubernetes cluster, as a user would: Helm, kubectl, pods.
//
// hack/e2e.sh makes the cluster, builds and pushes the images, and runs the package's test inside the cluster's
// network; hack/kind.sh does the same where Docker and kind exist. The test is one story, TestShoal, whose steps run in
// order, because each leaves the cluster as the next one needs it: installed, then pulling, then suffering, then
// upgraded, then uninstalled.
//
// What the suite does to the cluster from outside (nodes and registries off and on) goes through one program, named by
// SHOAL_E2E_RIG: hack/cluster/rig.sh describes its commands.
package e2e
