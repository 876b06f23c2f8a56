// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package cluster holds what the gateway knows of one managed cluster.
//
// [Parse] reads a Secret of the hub into a [Cluster]: route, endpoint, trust and credential. It never fails outright: a Secret
// that cannot be used gives a Cluster whose Err names every key at fault, so that the cluster stays visible and says what is
// wrong with it. [Cluster.Fingerprint] tells whether two Clusters can share a transport. [Cluster.Render] makes the
// ClusterGateway that the API serves, which holds no credential.
//
// A Cluster holds secrets and never leaves the process whole. It can be logged or marshalled by accident without harm:
// formatting and marshalling show its public parts only. The messages of its errors name keys, never the value of one that is
// secret, and are bounded whatever the Secret holds.
package cluster
