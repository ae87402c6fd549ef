# Serin's tasks. Each target calls a script or cargo and holds no logic of its own; CI calls the same targets.
.DEFAULT_GOAL := help
REGISTRY ?=
export E2E_CLUSTER DEBIAN

.PHONY: help
help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

# the test cluster (e2e/cluster/README.md)
.PHONY: cluster clean-cluster load
cluster: ## a Kubernetes cluster for tests and demo, made if there is none (E2E_CLUSTER=existing: your current context)
	@e2e/cluster/up
clean-cluster: ## delete the test cluster and end its container engine; what was built stays cached
	@e2e/cluster/down
load: ## bring the images of `make images` into the test cluster
	@e2e/cluster/load

# images (images/README.md)
.PHONY: images push
images: models ## build the container images and print their sizes
	@images/build
push: ## tag and push serin and serin-runtime: make push REGISTRY=registry.example/team [TAG=dev]
	@images/push "$(REGISTRY)" $(TAG)

.PHONY: models
models: ## make or fetch the test models and ONNX Runtime into .cache/
	@e2e/models/make

# generated files and the chart
.PHONY: crds crds-check chart-check
# Built as a part of the workspace, so that tests and generators share what they compile.
GENERATORS = cargo build -q --locked --workspace --bin crdgen --bin apidoc && PATH="$${CARGO_TARGET_DIR:-$(CURDIR)/target}/debug:$$PATH"
crds: ## write the CRDs and docs/api.md from the API types
	@$(GENERATORS) sh -c 'crdgen && apidoc'
crds-check: ## fail where they are not what the types say
	@$(GENERATORS) sh -c 'crdgen --check && apidoc --check'
chart-check: ## lint and render the chart, and try what it must refuse
	@charts/check

# checks (CONTRIBUTING.md)
.PHONY: setup fmt fmt-check clippy deny
setup: ## install what building and testing need and this machine lacks
	@.ci/setup
fmt: ## format every source file
	@cargo fmt --all
fmt-check: ## fail where a source file is not formatted
	@cargo fmt --all -- --check
clippy: ## lint Rust and shell
	@cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
	@git ls-files -z | xargs -0 grep -lIE '^#!/(usr/bin/env bash|bin/sh|bin/bash)' | xargs shellcheck
deny: ## licences, bans, sources and advisories of dependencies
	@.ci/deny

# tests, demo and figures
STORY ?=
.PHONY: test e2e demo bench-patch bench-hop bench-runtime bench-memory
test: models ## all tests, the stories on the test cluster included; ends with "N passed, N failed"
	@.ci/test all
e2e: models ## the stories on the test cluster; one of them: make e2e STORY=canary
	@.ci/test stories $(STORY)
demo: setup models ## the main job live: a cluster, two models, canaries under load, nothing lost
	@cargo run --release --locked --quiet -p serin-e2e --bin serin-demo
bench-patch: models ## from a patched percentage to its first use: p50 and p99
	@cargo run --release --locked --quiet -p serin-e2e --bin serin-bench -- patch
bench-hop: models ## what the router adds to a request
	@cargo run --release --locked --quiet -p serin-e2e --bin serin-bench -- hop
bench-runtime: models ## the model server beside a bare loop around the session
	@cargo run --release --locked --quiet -p serin-e2e --bin serin-bench -- runtime
bench-memory: ## memory of operator and routers, as they run now
	@cargo run --release --locked --quiet -p serin-e2e --bin serin-bench -- memory
