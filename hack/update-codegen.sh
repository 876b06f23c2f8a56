#!/usr/bin/env bash
# Copyright The Cluster Gateway Authors.
# SPDX-License-Identifier: Apache-2.0

# Generates Go files: deep copies and OpenAPI model names beside the API types, and the OpenAPI definitions of the API types and
# of the apimachinery types that a generic API server serves. hack/tools/codegen/go.mod pins the generators, and the root go.mod
# the apimachinery types.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

module=github.com/oam-dev/cluster-gateway
types=pkg/apis/cluster/v1alpha1
openapi=pkg/apis/openapi
header=hack/tools/codegen/header.txt

generate() {
	echo "$1"
	go tool -modfile=hack/tools/codegen/go.mod "$@"
}

generate deepcopy-gen --go-header-file "$header" --output-file zz_generated.deepcopy.go "./$types"

# The model names need a run of their own: openapi-gen writes that file into every package it reads, and the packages of
# apimachinery are in the module cache and have the file already. The definitions of this run are not used.
unused="$(mktemp -d)"
trap 'rm -rf "$unused"' EXIT
generate openapi-gen \
	--go-header-file "$header" \
	--output-dir "$unused" \
	--output-pkg "$module/$openapi" \
	--output-file zz_generated.openapi.go \
	--output-model-name-file zz_generated.model_name.go \
	--report-filename /dev/null \
	"./$types"

generate openapi-gen \
	--go-header-file "$header" \
	--output-dir "$openapi" \
	--output-pkg "$module/$openapi" \
	--output-file zz_generated.openapi.go \
	--report-filename /dev/null \
	"./$types" \
	k8s.io/apimachinery/pkg/apis/meta/v1 \
	k8s.io/apimachinery/pkg/runtime \
	k8s.io/apimachinery/pkg/version
