# Cluster Gateway. Needs Go, make and git; whatever else is used is built from Go modules.

GO ?= go
PKG := github.com/oam-dev/cluster-gateway
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo v0.0.0-unknown)
LDFLAGS := -X k8s.io/component-base/version.gitVersion=$(VERSION) -X k8s.io/component-base/version.gitCommit=$(shell git rev-parse HEAD 2>/dev/null)
# Everything but the end-to-end tests, which start a lab.
UNIT = $$($(GO) list ./... | grep -v -e /test/e2e -e /test/lab -e /manifests)

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build the gateway and agent-bootstrap into bin/
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

.PHONY: demo
demo: ## Start a hub, a reachable and a firewalled cluster, and take kubectl through both
	@echo '== Compiling the demo (a minute or two the first time)'
	@$(GO) run ./test/lab/cmd/demo

.PHONY: test
test: verify ## Run all tests: static checks, unit tests, the lab, end to end
	@echo '== Tests (race detector on; the lab builds real components first, about 8 minutes once)'
	@$(GO) run ./test/lab/cmd/lab-tools
	@{ $(GO) test -json -race -timeout 20m $(UNIT); \
	   $(GO) test -json -p 1 -timeout 20m ./test/lab/... ./manifests/...; \
	   $(GO) test -json -p 1 -timeout 45m ./test/e2e/...; } 2>&1 | $(GO) run ./hack/cmd/testsum

.PHONY: test-unit
test-unit: ## Run the unit tests
	@$(GO) test -json -race -timeout 20m $(UNIT) 2>&1 | $(GO) run ./hack/cmd/testsum

.PHONY: test-e2e
test-e2e: ## Run the end-to-end tests (needs root for the firewalled cluster; says so without)
	@$(GO) test -json -p 1 -timeout 45m ./test/e2e/... 2>&1 | $(GO) run ./hack/cmd/testsum

.PHONY: soak
soak: ## Ten minutes of load over a tunnel while everything rotates every minute; DURATION: another time
	SOAK_DURATION=$(or $(DURATION),10m) $(GO) test -count=1 -v -timeout 2h -run TestSoak ./test/e2e/rotation

.PHONY: bench
bench: ## Time a GET by every route against the same GET without the gateway
	E2E_PLAIN_GATEWAY=1 $(GO) test -run '^$$' -bench GET -benchtime 500x ./test/e2e

.PHONY: e2e-benchmark-binary
e2e-benchmark-binary: ## Build the end-to-end benchmark into bin/
	$(GO) build -ldflags "-X main.builtFrom=$$(git describe --always --dirty --abbrev=12 2>/dev/null)" -o bin/e2e-benchmark ./benchmark

.PHONY: e2e-benchmark
e2e-benchmark: e2e-benchmark-binary ## Run it on the lab, reports in benchmark-report/; QUICK=1: less, in 3 minutes; ARGS: its flags
	bin/e2e-benchmark $(if $(QUICK),--quick) $(ARGS)

.PHONY: verify
verify: verify-format verify-vet verify-codegen lint ## Run the static checks

.PHONY: verify-format
verify-format:
	@echo '== gofmt'
	@files=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$files" ]; then echo "gofmt would change (run gofmt -w):"; echo "$$files"; exit 1; fi

.PHONY: verify-vet
verify-vet:
	@echo '== go vet (compiles everything, a few minutes the first time)'
	@$(GO) vet ./...

.PHONY: verify-codegen
verify-codegen: ## Check that the generated code is fresh
	@echo '== generated code'
	@hack/verify-codegen.sh

.PHONY: update-codegen
update-codegen: ## Generate deep copies and OpenAPI definitions
	@hack/update-codegen.sh

.PHONY: lint
lint: ## Run golangci-lint, pinned in hack/tools/lint
	@echo '== golangci-lint (built once, a few minutes)'
	@$(GO) tool -modfile=hack/tools/lint/go.mod golangci-lint run ./...

.PHONY: clean
clean: ## Remove what was built here; the lab's components stay in the user's cache
	rm -rf bin
