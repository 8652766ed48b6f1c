// Package clients pulls through real agents with the clients that people have: containerd 1.6 and 2.x, podman, skopeo,
// crane, oras, a lazy snapshotter, and kubo. Each test starts a registry and agents as processes of their own, compares
// what the client ends up with to what was pushed, byte for byte, and counts what the registry had to send.
//
// hack/clients.sh (make clients) builds the programs and runs the tests; without it they are skipped.
package clients
