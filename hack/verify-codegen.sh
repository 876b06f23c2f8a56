#!/usr/bin/env bash
# Copyright The Cluster Gateway Authors.
# SPDX-License-Identifier: Apache-2.0

# Fails if the generated Go files differ from what hack/update-codegen.sh writes. It generates in a copy and does not change
# the checkout.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

copy="$(mktemp -d)"
trap 'rm -rf "$copy"' EXIT

mkdir -p "$copy/hack/tools" "$copy/pkg"
cp go.mod go.sum "$copy/"
cp -R hack/tools/codegen "$copy/hack/tools/"
cp hack/update-codegen.sh "$copy/hack/"
cp -R pkg/apis "$copy/pkg/"
# A file that is no longer generated must not remain in the copy.
find "$copy/pkg/apis" -name 'zz_generated.*.go' -delete

"$copy/hack/update-codegen.sh"

if ! diff -ru pkg/apis "$copy/pkg/apis"; then
	echo "The generated files are out of date: run make update-codegen and commit the result." >&2
	exit 1
fi
echo "The generated files are up to date."
