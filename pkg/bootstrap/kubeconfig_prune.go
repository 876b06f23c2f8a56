// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"fmt"
	"maps"
	"slices"

	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// pruning removes the entries of clusters that are not registered any more from a kubeconfig.
type pruning struct {
	// hub has the identity of the hub. Entries for other hubs stay.
	hub entryOwner
	// registered has the names of all clusters of the hub.
	registered map[string]bool
}

// gone reports whether agent-bootstrap wrote an entry for a cluster of this hub that is not
// registered any more.
func (p *pruning) gone(e kubeconfigEntry) bool {
	owner := e.owner()
	return owner != nil && owner.Hub == p.hub.Hub && owner.HubCA == p.hub.HubCA && !p.registered[owner.Cluster]
}

// remove removes entries from config, and returns what happened to each one. The entries of one
// name are removed together or, if one of them has to stay, not at all.
func (p *pruning) remove(config *clientcmdapi.Config, others []otherConfig) ([]entryChange, error) {
	names := map[string]bool{}
	for name, e := range config.Clusters {
		names[name] = names[name] || p.gone(kubeconfigEntry{cluster: e})
	}
	for name, e := range config.AuthInfos {
		names[name] = names[name] || p.gone(kubeconfigEntry{user: e})
	}
	for name, e := range config.Contexts {
		names[name] = names[name] || p.gone(kubeconfigEntry{context: e})
	}
	var changes []entryChange
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if !names[name] {
			continue
		}
		changed, err := p.removeName(config, name, others)
		if err != nil {
			return nil, err
		}
		changes = append(changes, changed...)
	}
	return changes, nil
}

func (p *pruning) removeName(config *clientcmdapi.Config, name string, others []otherConfig) ([]entryChange, error) {
	var changes []entryChange
	stays := false
	for _, kind := range entryKinds {
		e := entryOf(config, kind, name)
		if !e.exists() {
			continue
		}
		reason, err := p.staysBecause(e)
		if err != nil {
			return nil, err
		}
		if reason == "" {
			reason = usedBy(kind, name, config, others)
		}
		stays = stays || reason != ""
		changes = append(changes, entryChange{kind: kind, name: name, action: actionPrune, reason: reason})
	}
	for i, c := range changes {
		if stays {
			changes[i].action = actionRefuse
			if c.reason == "" {
				changes[i].reason = "another entry with this name stays"
			}
			continue
		}
		switch c.kind {
		case clusterEntry:
			delete(config.Clusters, name)
		case userEntry:
			delete(config.AuthInfos, name)
		case contextEntry:
			delete(config.Contexts, name)
		}
	}
	return changes, nil
}

// staysBecause returns why an entry must not be removed, or "".
func (p *pruning) staysBecause(e kubeconfigEntry) (string, error) {
	if e.owner() == nil {
		return "agent-bootstrap did not write it", nil
	}
	if !p.gone(e) {
		return "it is for another cluster", nil
	}
	sum, err := e.checksum()
	if err != nil {
		return "", err
	}
	if e.owner().Checksum != sum {
		return "its cluster is not registered any more, but it was changed after agent-bootstrap wrote it", nil
	}
	return "", nil
}

// usedBy names a context with another name that uses a cluster or a user, in any file that kubectl
// reads together with this one.
func usedBy(kind entryKind, name string, config *clientcmdapi.Config, others []otherConfig) string {
	for _, c := range append([]otherConfig{{config: config}}, others...) {
		for _, user := range slices.Sorted(maps.Keys(c.config.Contexts)) {
			context := c.config.Contexts[user]
			if user != name && (kind == clusterEntry && context.Cluster == name || kind == userEntry && context.AuthInfo == name) {
				return fmt.Sprintf("its cluster is not registered any more, but the context %q uses it", user)
			}
		}
	}
	return ""
}
