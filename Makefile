# Everything a developer or CI does here, by name. `make` alone lists it.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -o errexit -o nounset -o pipefail -c

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# Arguments for the program that a target runs: make demo ARGS="--agents 16 --kill-one".
ARGS ?=

export CGO_ENABLED ?= 0
GO_BUILD := go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)"
GOLANGCI_LINT := go tool -modfile=hack/tools/golangci-lint/go.mod golangci-lint

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} \
		/^##@ / {printf "\n%s\n", substr($$0, 5)} \
		/^[a-zA-Z0-9_-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Build

.PHONY: build
build: ## Build bin/shoal-node, bin/shoal-operator and bin/kubectl-shoal
	$(GO_BUILD) -o bin/shoal-node ./node
	$(GO_BUILD) -o bin/shoal-operator ./operator
	$(GO_BUILD) -o bin/kubectl-shoal ./operator/cmd/kubectl-shoal
	install -m 755 hack/kubectl_complete-shoal bin/    # kubectl completes by it

.PHONY: images
images: ## Build the container images without a container engine; ARGS="push REGISTRY/PATH" pushes them
	hack/images.sh $(ARGS)

.PHONY: release-dry-run
release-dry-run: ## Make all that a release has, for amd64 and arm64, below bin/release, and publish nothing
	hack/release.sh

.PHONY: generate
generate: ## Make again what is made from the API and the chart's values
	hack/generate.sh
	hack/chart-docs.sh

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin

##@ Test

# The race detector needs a C compiler; without one the tests run without it, and say so. It would wait for a second at the
# end of each process, which is a minute in all, for races in what still runs then.
.PHONY: test
test: ## Run every test that needs only Go, with the race detector
	@if command -v "$$(go env CC)" >/dev/null; then \
		set -x; CGO_ENABLED=1 GORACE="atexit_sleep_ms=50 $${GORACE-}" go test -race -timeout 20m ./... $(ARGS); \
	else \
		echo "no C compiler, so no race detector (apt-get install gcc libc6-dev)"; \
		set -x; go test -timeout 20m ./... $(ARGS); \
	fi

.PHONY: chart-test
chart-test: ## Lint the chart with every ci/ values file and run its unit tests
	hack/chart-test.sh

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME (default 30s) each
	hack/fuzz.sh

.PHONY: lint
lint: ## Run golangci-lint
	$(GOLANGCI_LINT) run $(ARGS)

.PHONY: verify
verify: ## Check format, lint with vet, and that generated files are up to date
	hack/verify.sh

.PHONY: conformance
conformance: ## Run the OCI distribution-spec conformance suite against a registry front
	go test -count=1 -run ConformsToTheDistributionSpecification -v ./node/internal/registry $(ARGS)

.PHONY: containerds
containerds: ## Build the versions of containerd that make clients and the tests of the mirror run, once
	hack/containerds.sh

.PHONY: clients
clients: ## Pull with containerd, podman, skopeo, crane, oras, stargz and kubo (root)
	hack/clients.sh $(ARGS)

.PHONY: planted
planted: ## Plant nine faults, seven of them in real agents, and see that what check goes by finds each
	$(GO_BUILD) -o bin/shoal-node ./node
	SHOAL_NODE=$(CURDIR)/bin/shoal-node go test -count=1 -run TestPlanted -v ./operator/internal/survey $(ARGS)

.PHONY: e2e
e2e: ## Install on a real Kubernetes cluster on this machine and test it end to end (root)
	hack/e2e.sh $(ARGS)

.PHONY: chaos
chaos: build ## Let everything fail by a seeded plan while clients compare every byte (root): ARGS="-seed 7 -rounds 20"
	go build -o bin/chaos ./test/chaos
	go build -o bin/pin ./node/internal/store/pin
	bin/chaos $(ARGS)

# Half an hour unless ARGS say otherwise: make soak ARGS="-for 10m".
.PHONY: soak
soak: build ## The same for half an hour, and whether memory, goroutines or open files grow (root)
	go build -o bin/chaos ./test/chaos
	go build -o bin/pin ./node/internal/store/pin
	bin/chaos -soak -for 30m -out bin/soak $(ARGS)

##@ See it run

.PHONY: demo
demo: ## Pull an image through 8 agents at once and show who sent what
	go run ./hack/demo $(ARGS)

.PHONY: bench
bench: build ## Measure Shoal beside its alternatives on shaped links (root)
	go run ./test/bench $(ARGS)

##@ Cluster on this machine (root)

.PHONY: cluster-up
cluster-up: ## Bring up Kubernetes with three nodes, each with a containerd of its own
	hack/cluster/build.sh
	hack/cluster/up.sh

.PHONY: cluster-shell
cluster-shell: ## Open a shell with kubectl and helm in the cluster's network
	hack/cluster/shell.sh $(ARGS)

.PHONY: cluster-down
cluster-down: ## Remove the cluster
	hack/cluster/down.sh
