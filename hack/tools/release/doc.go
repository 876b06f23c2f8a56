// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Command release builds everything that a release of Cluster Gateway consists of, and checks it.
//
//	release build    builds a release into a folder
//	release verify   checks the files of a release: checksums, signature and image
//	release compare  compares two releases, byte by byte
//	release push     copies the image of a release to a registry
//
// A release is reproducible: two builds of the same commit with the same version of Go are equal,
// byte by byte, wherever and whenever they are made. So nothing here may depend on the time (but
// that of the commit), on the folder, on the order in which a file system lists files, or on their
// modes and owners. All archives and layers are written by [writeTar] and [writeZip], which see to
// that.
//
// Nothing is published, and nothing but Go modules is downloaded. docs/release.md describes how to
// use it.
package main
