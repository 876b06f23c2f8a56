// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package enrollment registers clusters that come with an invitation (agent-bootstrap invite): what agent-bootstrap register does from outside,
// the gateway does here over the stream by which the cluster came.
//
// An invitation is a certificate of the tunnel's CA and a record of it on the hub (objects.Invitation). Whoever has the certificate's key may use
// it, and the record decides: it must be there, be of this certificate, not have ended, and be no other cluster's. The cluster hands over its
// CA and a token of the gateway's ServiceAccount. Both are its own word; they decide only what is registered under the invitation's name.
// The token is sent to nobody but a server that this CA vouches for.
//
// Each step can be repeated, and is when the gateway or the stream ends in between: the cluster comes again, to this or another replica,
// and is known by the UID of its namespace kube-system. What settles who wins are two writes that fail if they are not the first: that of the
// cluster's UID to the record, so that of two clusters with one invitation one gets in; and that of the name to the cluster's namespace, so
// that one cluster with two invitations gets one name.
//
// Revoking is the removal of the record. So the Secret that makes it a cluster of the gateway is written only after the record has been made to say so, and
// the record is asked for once more when it is there, and when the agent is: an invitation that has gone takes the Secret with it. Should the gateway end in
// between, who revokes sees from the record that there may be a Secret, and deletes that (agent-bootstrap does).
package enrollment
