#!/usr/bin/env bash
# Copyright The Cluster Gateway Authors.
# SPDX-License-Identifier: Apache-2.0

# Usage: hack/verify-release.sh DIST
#
# Builds the release in DIST again, from a copy of the commit in another folder and with a build cache
# of its own, and compares both byte by byte. This takes as long as a first build.
#
# Environment: VERSION, IMAGE, PLATFORMS, SIGNING_KEY and DOWNLOAD_URL, as for make release.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

GO=${GO:-go}
dist=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git diff --quiet HEAD || { echo 'There are changes that are not committed: the copy would not have them.' >&2; exit 1; }
git archive --prefix=source/ HEAD | tar -x -C "$work"
"$GO" build -C hack/tools/release -o "$work/release" .

export COMMIT SOURCE_DATE_EPOCH
COMMIT=$(git rev-parse HEAD)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
GOCACHE=$work/cache "$work/release" build --source "$work/source" --dist "$work/again" --version "${VERSION:-}" \
	${IMAGE:+--image "$IMAGE"} ${PLATFORMS:+--platforms "$PLATFORMS"} ${SIGNING_KEY:+--signing-key "$SIGNING_KEY"} ${DOWNLOAD_URL:+--download-url "$DOWNLOAD_URL"}
"$work/release" compare "$dist" "$work/again"
