#!/usr/bin/env bash
# Copyright The Cluster Gateway Authors.
# SPDX-License-Identifier: Apache-2.0

# Usage: hack/vulncheck.sh [PATTERN...]
#
# Checks that the commands (or these packages) reach no published vulnerability of a dependency or of
# the standard library. The database is the Go module that hack/tools/vuln pins, so two runs on the
# same commit say the same. The standard library is that of the toolchain in go.mod.
#
# Environment: DATABASE=latest takes the newest database instead.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

GO=${GO:-go}
database=golang.org/x/vulndb
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export GOTOOLCHAIN
GOTOOLCHAIN=$(sed -n 's/^toolchain //p' go.mod)

if [ -n "${DATABASE:-}" ]; then
	version=$(cd hack/tools/vuln && "$GO" list -m -f '{{.Version}}' "$database@$DATABASE")
else
	version=$(cd hack/tools/vuln && "$GO" list -m -f '{{.Version}}' "$database")
fi
echo "== govulncheck with $database $version and $GOTOOLCHAIN"
reports=$(cd hack/tools/vuln && "$GO" mod download -json "$database@$version" | sed -n 's/^\t"Dir": "\(.*\)",\{0,1\}$/\1/p')
"$GO" tool -modfile=hack/tools/vuln/go.mod indexdb -out "$work/database" -vulns "$reports/data/osv"
"$GO" tool -modfile=hack/tools/vuln/go.mod govulncheck -db "file://$work/database" "${@:-./cmd/...}"
