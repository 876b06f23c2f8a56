// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package cluster represents one managed cluster.
//
// [Parse] parses a Secret of the hub into a [Cluster] with a route, an endpoint, CAs and a
// credential. It never fails. If the Secret is invalid, the method Err of the Cluster returns an
// error for each invalid key, so that the cluster stays visible and reports what is wrong. Two
// Clusters with the same [Cluster.Fingerprint] can share a transport. [Cluster.ClusterGateway]
// returns the object that the API serves, which contains no secrets.
//
// A Cluster contains secrets and never leaves the process as a whole. Formatting and marshaling it
// shows the public fields only, so it can be logged by accident without harm. Error messages name
// keys, and never contain the value of a secret key. Their length is bounded, whatever the Secret
// contains.
package cluster
