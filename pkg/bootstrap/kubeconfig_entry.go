// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// entryKind is the kind of an entry in a kubeconfig.
type entryKind string

const (
	clusterEntry entryKind = "cluster"
	userEntry    entryKind = "user"
	contextEntry entryKind = "context"
)

// entryKinds are the kinds in the order in which messages name them.
var entryKinds = [...]entryKind{clusterEntry, userEntry, contextEntry}

// kubeconfigEntry is one entry of a kubeconfig. At most one field is set; the zero value stands for
// an entry that does not exist.
type kubeconfigEntry struct {
	cluster *clientcmdapi.Cluster
	user    *clientcmdapi.AuthInfo
	context *clientcmdapi.Context
}

func entryOf(config *clientcmdapi.Config, kind entryKind, name string) kubeconfigEntry {
	switch kind {
	case clusterEntry:
		return kubeconfigEntry{cluster: config.Clusters[name]}
	case userEntry:
		return kubeconfigEntry{user: config.AuthInfos[name]}
	default:
		return kubeconfigEntry{context: config.Contexts[name]}
	}
}

func (e kubeconfigEntry) exists() bool { return e != kubeconfigEntry{} }

// addTo puts the entry into a kubeconfig.
func (e kubeconfigEntry) addTo(config *clientcmdapi.Config, name string) {
	switch {
	case e.cluster != nil:
		config.Clusters[name] = e.cluster
	case e.user != nil:
		config.AuthInfos[name] = e.user
	case e.context != nil:
		config.Contexts[name] = e.context
	}
}

func (e kubeconfigEntry) copy() kubeconfigEntry {
	return kubeconfigEntry{cluster: e.cluster.DeepCopy(), user: e.user.DeepCopy(), context: e.context.DeepCopy()}
}

// extensions points to the extensions of an entry that exists.
func (e kubeconfigEntry) extensions() *map[string]runtime.Object {
	switch {
	case e.cluster != nil:
		return &e.cluster.Extensions
	case e.user != nil:
		return &e.user.Extensions
	default:
		return &e.context.Extensions
	}
}

// encode returns the entry as it is written to a file.
func (e kubeconfigEntry) encode() ([]byte, error) {
	config := clientcmdapi.NewConfig()
	e.addTo(config, "")
	return clientcmd.Write(*config)
}

// checksum is over what agent-bootstrap decides: not over extensions, which are anybody's, nor over
// the namespace of a context, which kubectl config set-context changes.
func (e kubeconfigEntry) checksum() (string, error) {
	e = e.copy()
	*e.extensions() = nil
	if e.context != nil {
		e.context.Namespace = ""
	}
	data, err := e.encode()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:]), nil
}

// ownerExtension is the name of the extension by which agent-bootstrap recognizes an entry that it
// has written.
const ownerExtension = v1alpha1.GroupName + "/agent-bootstrap"

// entryOwner is the content of the extension.
type entryOwner struct {
	// Hub is the URL of the hub's API server, and HubCA the SHA-256 of its CA bundle. Both identify
	// the hub: two hubs can have the same URL, for example https://127.0.0.1:6443.
	Hub   string `json:"hub"`
	HubCA string `json:"hubCA,omitempty"`
	// Cluster is the name of the managed cluster.
	Cluster string `json:"cluster"`
	// Checksum is that of the entry. If it does not match, somebody has changed the entry, for example
	// with kubectl config set-credentials, and it may hold the only copy of a credential.
	Checksum string `json:"checksum"`
}

// owner reads the extension. It is nil if agent-bootstrap did not write the entry.
func (e kubeconfigEntry) owner() *entryOwner {
	unknown, ok := (*e.extensions())[ownerExtension].(*runtime.Unknown)
	if !ok {
		return nil
	}
	owner := &entryOwner{}
	if err := json.Unmarshal(unknown.Raw, owner); err != nil {
		return nil
	}
	return owner
}

// setOwner writes the extension.
func (e kubeconfigEntry) setOwner(owner entryOwner) (err error) {
	if owner.Checksum, err = e.checksum(); err != nil {
		return err
	}
	raw, err := json.Marshal(owner)
	if err != nil {
		return err
	}
	extensions := e.extensions()
	if *extensions == nil {
		*extensions = map[string]runtime.Object{}
	}
	(*extensions)[ownerExtension] = &runtime.Unknown{Raw: raw, ContentType: runtime.ContentTypeJSON}
	return nil
}

// clusterEntries are the cluster, the user and the context that reach one managed cluster through
// the gateway. All three have the same name.
type clusterEntries struct {
	name  string
	owner entryOwner
	kubeconfigContext
}

// wanted returns the entry of a kind as it would be written to an empty file.
func (c *clusterEntries) wanted(kind entryKind) kubeconfigEntry {
	switch kind {
	case clusterEntry:
		return kubeconfigEntry{cluster: c.cluster}
	case userEntry:
		return kubeconfigEntry{user: c.user}
	default:
		return kubeconfigEntry{context: &clientcmdapi.Context{Cluster: c.name, AuthInfo: c.name}}
	}
}

// entryAction is what happens to an entry of a kubeconfig.
type entryAction string

const (
	actionAdd       entryAction = "add"
	actionUpdate    entryAction = "update"
	actionKeep      entryAction = "keep"
	actionRefuse    entryAction = "refuse"
	actionOverwrite entryAction = "overwrite"
	actionRemove    entryAction = "remove"
	actionPrune     entryAction = "prune" // remove an entry of ours, whose cluster is gone
)

// entryChange is what happens to one entry. reason says why an entry must not be overwritten.
type entryChange struct {
	kind   entryKind
	name   string
	action entryAction
	reason string
}

// changes reports whether the entry is not what it was before.
func (c entryChange) changes() bool { return c.action != actionKeep && c.action != actionRefuse }

// addTo puts the entries into a kubeconfig, and returns what happened to each one. It refuses to
// overwrite an entry that is not for this cluster of this hub, unless force is set. What others
// have added to an entry stays: extensions, and the namespace of a context.
func (c *clusterEntries) addTo(config *clientcmdapi.Config, force bool) ([]entryChange, error) {
	var changes []entryChange
	for _, kind := range entryKinds {
		current, next := entryOf(config, kind, c.name), c.wanted(kind).copy()
		change := entryChange{kind: kind, name: c.name, action: actionAdd}
		var err error
		if current.exists() {
			if change.reason, err = c.conflict(current, next); err != nil {
				return nil, err
			}
			if change.reason == "" {
				keepAdditions(current, next)
			}
		}
		if err := next.setOwner(c.owner); err != nil {
			return nil, err
		}
		switch {
		case !current.exists():
		case change.reason != "" && force:
			change.action = actionOverwrite
		case change.reason != "":
			change.action = actionRefuse
		default:
			before, err := current.encode()
			after, err2 := next.encode()
			if err := errors.Join(err, err2); err != nil {
				return nil, err
			}
			change.action = actionUpdate
			if bytes.Equal(before, after) {
				change.action = actionKeep
			}
		}
		if change.action != actionRefuse {
			next.addTo(config, c.name)
		}
		changes = append(changes, change)
	}
	return changes, nil
}

// keepAdditions carries over what others have added to an entry of ours.
func keepAdditions(current, next kubeconfigEntry) {
	if next.context != nil {
		next.context.Namespace = current.context.Namespace
	}
	extensions := next.extensions()
	for name, extension := range *current.extensions() {
		if _, exists := (*extensions)[name]; exists {
			continue
		}
		if *extensions == nil {
			*extensions = map[string]runtime.Object{}
		}
		(*extensions)[name] = extension
	}
}

// conflict returns why an entry must not be replaced by next, or "".
func (c *clusterEntries) conflict(current, next kubeconfigEntry) (string, error) {
	sum, err := current.checksum()
	if err != nil {
		return "", err
	}
	owner := current.owner()
	if owner == nil {
		want, err := next.checksum()
		if err != nil || sum == want || sameServer(current.cluster, next.cluster) {
			return "", err
		}
		if current.cluster != nil && strings.HasSuffix(current.cluster.Server, v1alpha1.ProxyPath(c.owner.Cluster)) {
			return "it reaches a cluster of this name through another hub, " + current.cluster.Server, nil
		}
		return "agent-bootstrap did not write it", nil
	}
	switch {
	case owner.Hub != c.owner.Hub:
		return "it is for another hub, " + owner.Hub, nil
	case owner.HubCA != c.owner.HubCA:
		return fmt.Sprintf("it is for a hub at %s with another CA", owner.Hub), nil
	case owner.Cluster != c.owner.Cluster:
		return fmt.Sprintf("it is for another cluster, %q", owner.Cluster), nil
	case owner.Checksum != sum:
		return "it was changed after agent-bootstrap wrote it", nil
	}
	return "", nil
}

// sameServer reports whether two cluster entries reach the same cluster through the same server.
// That is how an entry without the extension is recognized; it holds no credential.
func sameServer(a, b *clientcmdapi.Cluster) bool {
	return a != nil && b != nil && a.Server == b.Server && a.CertificateAuthority == "" && bytes.Equal(a.CertificateAuthorityData, b.CertificateAuthorityData)
}
