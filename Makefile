# Cluster Gateway. Requires Go, make and git; every other tool is built from Go modules.

GO ?= go
PKG := github.com/oam-dev/cluster-gateway
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo v0.0.0-unknown)
LDFLAGS := -X k8s.io/component-base/version.gitVersion=$(VERSION) -X k8s.io/component-base/version.gitCommit=$(shell git rev-parse HEAD 2>/dev/null)
GOLANGCI_LINT := $(GO) tool -modfile=hack/tools/lint/go.mod golangci-lint
# Read by hack/test.sh.
export GO WHAT RUN TESTFLAGS

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "} \
		/^##@ / {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z0-9-]+:.*## / {printf "  make %-21s %s\n", $$1, $$2} \
		/^#@ / {printf "  %-26s %s\n", "", substr($$0, 4)}' $(MAKEFILE_LIST)

##@ Build and try

.PHONY: build
build: ## Build the gateway and agent-bootstrap, which is also kubectl-cg, into bin/
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...
	@ln -sf agent-bootstrap bin/kubectl-cg
	@ln -sf agent-bootstrap bin/kubectl_complete-cg

.PHONY: demo
demo: ## Start a hub, a reachable and a firewalled cluster, and use kubectl on both through the gateway
	@echo '== Compiling the demo (a minute or two the first time)'
	@$(GO) run ./test/lab/cmd/demo

.PHONY: clean
clean: ## Remove what was built here; the lab's components stay in the user's cache folder
	rm -rf bin dist

##@ Before each commit

.PHONY: check
check: verify-format verify-vet lint test-unit ## Quick gate: format, vet, lint, unit tests

.PHONY: fix
fix: ## Format the code, apply the linter's fixes, generate code and docs/reference
	gofmt -w $$(git ls-files '*.go')
	@$(GOLANGCI_LINT) run --build-tags integration --fix ./...
	@hack/update-codegen.sh
	$(GO) run -C hack/tools/observability .
	$(GO) test ./docs -update

##@ Test

.PHONY: test
test: verify ## Run everything: static checks, then all three tiers of tests
	@hack/test.sh unit integration e2e

.PHONY: test-unit
test-unit: ## Unit tests with the race detector: no processes, under 2 minutes
	@hack/test.sh unit

.PHONY: test-integration
test-integration: ## Integration tests on bare API servers (etcd and kube-apiserver)
	@hack/test.sh integration

.PHONY: test-e2e
test-e2e: ## End-to-end tests on the lab; the firewalled cluster requires root
	@hack/test.sh e2e
#@ All of these take WHAT=./pkg/proxy (packages), RUN=TestName (a regular expression)
#@ and TESTFLAGS=-count=1 (any flags of go test).

.PHONY: test-rollout
test-rollout: ## Run an earlier version beside this one, forward, back and forward: PREVIOUS=revision
	CLUSTER_GATEWAY_PREVIOUS=$(PREVIOUS) WHAT=./test/e2e/rollout hack/test.sh e2e

.PHONY: test-long
test-long: ## Long forms of tests: slow readers, restarts, 2,000 execs, a pause of 5 minutes, 1,000 clusters
	E2E_LONG=1 TESTFLAGS='-count=1 -v' WHAT=./test/e2e RUN='$(or $(RUN),TestSlowLog|TestLongProfile|TestWritesWhile|TestUnreadStreams|TestGreedyUser|TestExecsLeaveNothingBehind|TestDownloadWithAPause|TestLostReplicaOfMany)' hack/test.sh e2e

.PHONY: fuzz
fuzz: ## Run a fuzz test: FUZZ=FuzzName WHAT=./pkg/name TIME=30s; without FUZZ, list them
ifeq ($(FUZZ),)
	@git grep -o 'func Fuzz[A-Za-z0-9]*' -- '*_test.go' | sed 's|^\(.*\)/[^/]*:func \(.*\)|make fuzz FUZZ=\2 WHAT=./\1|'
else
	$(GO) test -run '^$$' -fuzz '^$(FUZZ)$$' -fuzztime $(or $(TIME),30s) $(or $(WHAT),$$(git grep -l 'func $(FUZZ)(' -- '*_test.go' | xargs -n1 dirname | sed 's|^|./|'))
endif

.PHONY: soak
soak: ## Ten minutes of load over a tunnel while everything rotates every minute; DURATION=1h for longer
	SOAK_DURATION=$(or $(DURATION),10m) $(GO) test -count=1 -v -timeout $(or $(TIMEOUT),2h) -run TestSoak ./test/e2e/rotation

##@ Benchmark

.PHONY: bench
bench: ## Time a GET by every route against the same GET without the gateway
	E2E_PLAIN_GATEWAY=1 $(GO) test -run '^$$' -bench GET -benchtime 500x ./test/e2e

.PHONY: e2e-benchmark-binary
e2e-benchmark-binary: ## Build the end-to-end benchmark into bin/
	$(GO) build -ldflags "-X main.builtFrom=$$(git describe --always --dirty --abbrev=12 2>/dev/null)" -o bin/e2e-benchmark ./benchmark

.PHONY: e2e-benchmark
e2e-benchmark: e2e-benchmark-binary ## Run it on the lab, reports in benchmark-report/; QUICK=1 for 3 minutes; ARGS= for its flags
	bin/e2e-benchmark $(if $(QUICK),--quick) $(ARGS)

##@ Release

RELEASE := $(GO) run -C hack/tools/release .
DIST ?= dist
# The repository of the image, as the manifests name it.
IMAGE ?= cluster-gateway

.PHONY: release
release: ## Build a release into dist/: VERSION=v0.1.0; IMAGE=, PLATFORMS=, SIGNING_KEY=, DOWNLOAD_URL=
	@$(RELEASE) build --source '$(CURDIR)' --dist '$(abspath $(DIST))' --version '$(if $(filter-out file default,$(origin VERSION)),$(VERSION))' --image '$(IMAGE)' \
		$(if $(PLATFORMS),--platforms '$(PLATFORMS)') $(if $(SIGNING_KEY),--signing-key '$(abspath $(SIGNING_KEY))') $(if $(DOWNLOAD_URL),--download-url '$(DOWNLOAD_URL)')

.PHONY: test-release
test-release: ## Test the program that builds a release; make test-unit does this, too
	$(GO) test -C hack/tools/release $(TESTFLAGS) $(if $(RUN),-run '$(RUN)') ./...

.PHONY: release-check
release-check: ## Check the files of the release in dist/; KEY=public.pem checks its signature, too
	@$(RELEASE) verify --dist '$(abspath $(DIST))' $(if $(KEY),--key '$(abspath $(KEY))')

.PHONY: release-verify
release-verify: ## Build VERSION again from a copy of the commit, without caches, and compare it with dist/
	@VERSION='$(VERSION)' IMAGE='$(IMAGE)' PLATFORMS='$(PLATFORMS)' SIGNING_KEY='$(if $(SIGNING_KEY),$(abspath $(SIGNING_KEY)))' DOWNLOAD_URL='$(DOWNLOAD_URL)' \
		hack/verify-release.sh '$(abspath $(DIST))'

.PHONY: test-install
test-install: ## Install the release in dist/ on the lab, upgrade, roll back, remove: BEFORE=folder of another; root
	CLUSTER_GATEWAY_RELEASE='$(abspath $(DIST))' CLUSTER_GATEWAY_RELEASE_BEFORE='$(if $(BEFORE),$(abspath $(BEFORE)))' \
		$(GO) test -count=1 -v -timeout 30m ./test/e2e/install

.PHONY: image-push
image-push: ## Copy the image of the release in dist/ to a registry: REF=registry.example.com/name:tag
	@$(RELEASE) push --dist '$(abspath $(DIST))' --ref '$(REF)'

##@ Static checks and generated code

.PHONY: verify
verify: verify-format verify-vet verify-windows verify-codegen lint ## Run all static checks

.PHONY: verify-format
verify-format: ## Check that gofmt has nothing to change
	@echo '== gofmt'
	@files=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$files" ]; then echo "gofmt would change (run make fix):"; echo "$$files"; exit 1; fi

.PHONY: verify-vet
verify-vet: ## Run go vet, also on the integration tests
	@echo '== go vet (compiles everything, a few minutes the first time)'
	@$(GO) vet -tags integration ./...

.PHONY: verify-windows
verify-windows: ## Check that agent-bootstrap compiles for Windows
	@echo '== agent-bootstrap for Windows'
	@GOOS=windows $(GO) vet ./cmd/agent-bootstrap

.PHONY: lint
lint: ## Run golangci-lint, pinned in hack/tools/lint
	@echo '== golangci-lint (built once, a few minutes)'
	@$(GOLANGCI_LINT) run --build-tags integration ./...

.PHONY: vulncheck
vulncheck: ## Look for known vulnerabilities that the code reaches; DATABASE=latest; 5 minutes
	@DATABASE='$(DATABASE)' hack/vulncheck.sh

.PHONY: verify-codegen
verify-codegen: ## Check that the generated code is up to date
	@echo '== generated code'
	@hack/verify-codegen.sh

.PHONY: update-codegen
update-codegen: ## Generate deep copies and OpenAPI definitions
	@hack/update-codegen.sh
