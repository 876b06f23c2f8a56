#!/usr/bin/env bash
# Copyright The Cluster Gateway Authors.
# SPDX-License-Identifier: Apache-2.0

# Usage: hack/test.sh TIER...
#
# Runs the tests of these tiers, one tier after another: unit, integration, e2e. A failed tier does
# not stop the next one. The last line shows how many tests passed, failed and were skipped. The exit
# code is 0 only if all tests passed.
#
# Environment:
#   WHAT       package patterns, such as ./pkg/proxy. Default: all packages of the tier.
#   RUN        a regular expression for the names of tests, as for go test -run. Default: all tests.
#   TESTFLAGS  more flags for go test, such as -count=1 or -v.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

GO=${GO:-go}
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
read -ra what <<<"${WHAT:-}"
read -ra flags <<<"${TESTFLAGS:-}"
code=0

# gotestsum FORMAT TIER ARGUMENTS...: runs go test with these arguments after TESTFLAGS, prints it in
# this format and keeps its events.
gotestsum() {
	local format=$1 tier=$2
	shift 2
	"$GO" tool -modfile=hack/tools/gotestsum/go.mod gotestsum --format "$format" --format-hide-empty-pkg \
		--jsonfile "$results/$tier.json" -- ${flags[@]+"${flags[@]}"} "$@" || code=1
}

# packages FILTER...: the packages of WHAT, or those of the tier.
packages() {
	if [ ${#what[@]} -gt 0 ]; then "$GO" list "${what[@]}"; else "$@"; fi
}

unit_packages() { "$GO" list ./... | grep -v -e /test/e2e -e /test/lab; }
e2e_packages() { "$GO" list ./test/lab/... ./test/e2e/...; }
# The packages with files that have the build tag.
integration_packages() {
	git grep -l --untracked '^//go:build integration$' -- '*_test.go' ':!hack/tools' | xargs -r -n1 dirname | sort -u | sed 's|^|./|' | xargs -r "$GO" list -tags integration
}

run_unit() {
	local listed
	listed=$(packages unit_packages) || { code=1; return; }
	echo '== Unit tests, with the race detector'
	gotestsum pkgname unit -race -timeout 10m ${RUN:+-run "$RUN"} $listed
}

# Runs only the tests in files with the build tag. The other tests of the package are unit tests.
run_integration() {
	local tagged run=${RUN:-}
	tagged=$(packages integration_packages) || { code=1; return; }
	if [ -z "$tagged" ]; then return; fi
	if [ -z "$run" ]; then
		run=$("$GO" list -tags integration -f '{{$dir := .Dir}}{{range .TestGoFiles}}{{$dir}}/{{.}}{{"\n"}}{{end}}{{range .XTestGoFiles}}{{$dir}}/{{.}}{{"\n"}}{{end}}' $tagged |
			xargs grep -l '^//go:build integration$' | xargs -r sed -n 's/^func \(Test[A-Z][A-Za-z0-9_]*\)(t \*testing.T).*/\1/p' | paste -sd '|')
		run="^($run)\$"
	fi
	echo '== Integration tests, on bare API servers'
	"$GO" run ./test/lab/cmd/lab-tools -api-server-only >"$results/tools" || { code=1; return; }
	gotestsum testname integration -tags integration -timeout 15m -run "$run" $tagged
	if [ ${#what[@]} -eq 0 ]; then
		tool_tests charts charts-integration -tags integration -run "${RUN:-AtTheAPIServer}"
		tool_tests release release-integration -tags integration -run "${RUN:-Krew}"
	fi
}

# Two packages at a time, each with its own lab: most of the time, they wait for intervals to pass.
run_e2e() {
	local listed
	listed=$(packages e2e_packages) || { code=1; return; }
	echo '== End-to-end tests, on the lab'
	prepare || return
	gotestsum testname e2e -p 2 -parallel 4 -timeout 45m ${RUN:+-run "$RUN"} $listed
}

# Builds once what all packages use: the components of the lab, and the gateways.
prepare() {
	if [ -n "${CLUSTER_GATEWAY_LAB_GATEWAY:-}" ]; then return; fi
	"$GO" run ./test/lab/cmd/lab-tools -gateway "$results/gateway" >"$results/tools" || { code=1; return 1; }
	export CLUSTER_GATEWAY_LAB_GATEWAY=$results/gateway
}

# The tests of the tools that are written here. Each is a module of its own.
run_tools() {
	if [ ${#what[@]} -gt 0 ]; then return; fi
	echo '== Unit tests of the tools'
	for tool in release charts observability inventory; do
		tool_tests "$tool" "$tool" ${RUN:+-run "$RUN"}
	done
}

# tool_tests TOOL NAME ARGUMENTS...: runs the tests in hack/tools/TOOL with these arguments, and keeps
# their events under this name.
tool_tests() {
	local tool=$1 name=$2
	shift 2
	(cd "hack/tools/$tool" && "$GO" tool -modfile=../gotestsum/go.mod gotestsum --format pkgname --jsonfile "$results/$name.json" \
		-- ${flags[@]+"${flags[@]}"} "$@" ./...) || code=1
}

for tier in "$@"; do
	case $tier in
	unit) run_unit; run_tools ;;
	integration | e2e) "run_$tier" ;;
	*) echo "unknown tier: $tier" >&2; exit 2 ;;
	esac
done
shopt -s nullglob
for file in "$results"/*.json; do
	"$GO" tool -modfile=hack/tools/gotestsum/go.mod gotestsum tool slowest --jsonfile "$file" --threshold 10s
done
if [ "$code" != 0 ]; then echo 'The run failed: see above.'; fi
"$GO" run ./hack/cmd/testcount "$results"/*.json 2>"$results/errors" || code=1
exit "$code"
