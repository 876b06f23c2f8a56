// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"maps"
	"slices"
)

// AllClusters is the virtual API group of rules for every cluster.
const AllClusters = "clusters"

// Prefixes of the virtual API groups of rules for some clusters. No API group of Kubernetes can
// contain a colon.
const (
	labelPrefix = AllClusters + ":"
	namePrefix  = "cluster:"
)

// Selectors returns the virtual API groups with which rules can select a cluster: one for all
// clusters, one for each label, sorted, and one for its name.
func Selectors(name string, labels map[string]string) []string {
	selectors := make([]string, 0, len(labels)+2)
	selectors = append(selectors, AllClusters)
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		selectors = append(selectors, labelPrefix+key+"="+labels[key])
	}
	return append(selectors, namePrefix+name)
}
