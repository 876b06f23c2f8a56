// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// push copies the image of a release to a registry, for all platforms, and returns its name with
// its digest. The user logs in with any tool that writes Docker's configuration file.
func push(ctx context.Context, dist, to string) (string, error) {
	ref, err := name.ParseReference(to, name.StrictValidation)
	if err != nil {
		return "", fmt.Errorf("invalid reference %q: must be REGISTRY/NAME:TAG: %w", to, err)
	}
	if _, ok := ref.(name.Tag); !ok {
		return "", fmt.Errorf("invalid reference %q: must have a tag, not a digest", to)
	}
	index, err := readImage(dist)
	if err != nil {
		return "", err
	}
	if err := remote.WriteIndex(ref, index, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)); err != nil {
		return "", fmt.Errorf("push to %s: %w", ref, err)
	}
	digest, err := index.Digest()
	if err != nil {
		return "", err
	}
	return ref.String() + "@" + digest.String(), nil
}

// readImage returns the image index of a release.
func readImage(dist string) (v1.ImageIndex, error) {
	all, err := layout.ImageIndexFromPath(filepath.Join(dist, imageDir))
	if err != nil {
		return nil, fmt.Errorf("read the image: %w", err)
	}
	manifest, err := all.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("read the image: %w", err)
	}
	if len(manifest.Manifests) != 1 {
		return nil, fmt.Errorf("the image's layout has %d entries instead of one", len(manifest.Manifests))
	}
	return all.ImageIndex(manifest.Manifests[0].Digest)
}

// validateImage checks the digests, sizes and media types of the image of a release.
func validateImage(dist string) error {
	index, err := readImage(dist)
	if err != nil {
		return err
	}
	if err := validate.Index(index); err != nil {
		return fmt.Errorf("the image is not valid: %w", err)
	}
	return nil
}
