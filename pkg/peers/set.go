// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package peers

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"slices"
)

// A clusterSet contains names of clusters, as the first hashSize bytes of their SHA-256, sorted. So
// 10,000 clusters take 54 KB of an annotation. Two of n names have the same hash with a probability
// of about n²/2³³. Then a replica is asked in vain, and another one is tried.
type clusterSet []byte

const hashSize = 4

func hash(cluster string) []byte {
	sum := sha256.Sum256([]byte(cluster))
	return sum[:hashSize]
}

// newClusterSet returns the set of the names.
func newClusterSet(clusters []string) clusterSet {
	hashes := make([][]byte, len(clusters))
	for i, name := range clusters {
		hashes[i] = hash(name)
	}
	slices.SortFunc(hashes, bytes.Compare)
	return bytes.Join(slices.CompactFunc(hashes, bytes.Equal), nil)
}

// has reports whether the set contains the cluster with a hash.
func (s clusterSet) has(want []byte) bool {
	low, high := 0, len(s)/hashSize
	for low < high {
		middle := (low + high) / 2
		switch bytes.Compare(s[middle*hashSize:(middle+1)*hashSize], want) {
		case 0:
			return true
		case -1:
			low = middle + 1
		default:
			high = middle
		}
	}
	return false
}

// String returns the set as the value of an annotation.
func (s clusterSet) String() string { return base64.RawStdEncoding.EncodeToString(s) }

func parseClusterSet(text string) (clusterSet, error) {
	s, err := base64.RawStdEncoding.DecodeString(text)
	if err == nil && len(s)%hashSize != 0 {
		err = errors.New("the set of clusters is cut off")
	}
	return s, err
}
