// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package enrollment registers clusters that present an invitation (agent-bootstrap invite). It
// does over the tunnel stream of the cluster what agent-bootstrap register does from outside.
//
// An invitation is a certificate of the CA of agents, and a record of it on the hub
// (registration.Invitation). Whoever has the certificate's key can use the invitation, and the
// record decides: it must exist, be about this certificate, not have expired, and not belong to
// another cluster. The cluster hands over its CA and a token of the gateway's ServiceAccount. The
// gateway cannot verify either; they decide only what is registered under the name of the
// invitation. The token is sent only to a server that this CA signed.
//
// Each step can be repeated, and is repeated if the gateway or the stream stops in between: the
// cluster connects again, to this or another replica, and is recognized by the UID of its namespace
// kube-system. Two writes decide between competitors, since they fail for all but the first. The
// cluster's UID is written to the record: of two clusters with one invitation, one is registered.
// The name is written to the cluster's namespace: of two invitations for one cluster, one is used.
//
// Deleting the record revokes the invitation. So the cluster's Secret is written only after the
// record says that the cluster is being registered, and the record is read again after the Secret
// was written, and after the agent was applied. If the record is gone, the Secret is deleted. If
// the gateway stops in between, the record tells whoever revokes the invitation that the Secret may
// exist, and they delete it (agent-bootstrap does).
package enrollment
