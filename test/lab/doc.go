// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package lab runs real Kubernetes clusters on one machine, for the tests, the demo and the
// benchmark.
//
// A [Lab] owns a folder and a set of processes. A test starts clusters in it (etcd, kube-apiserver,
// kube-controller-manager, and kwok instead of a kubelet), stock Konnectivity servers and agents,
// and any other program under test, such as the gateway. Only the containers are simulated: kwok
// serves logs, exec, attach and port-forward as a kubelet does, and runs each command as an
// ordinary process.
//
//	binaries, err := lab.FindBinaries(ctx, lab.BinariesOptions{Out: os.Stderr})
//	l, err := lab.New(ctx, lab.Options{Binaries: binaries, Out: os.Stderr})
//	defer l.Close()
//	hub, err := l.StartCluster(ctx, lab.ClusterOptions{Name: "hub"})
//	edge, err := l.StartCluster(ctx, lab.ClusterOptions{Name: "edge", Firewalled: true})
//	out, err := edge.Kubectl(ctx, "get", "nodes").CombinedOutput()
//
// # Where the components come from
//
// [FindBinaries] builds them with "go build" from the versions pinned in hack/tools, once, into a
// cache folder. Environment variables can point it to other builds (see [FindBinaries]). All
// components are built unchanged except kwok, whose exec and port-forward need a few edits (see
// patch.go).
//
// # Firewalled clusters
//
// With root, a firewalled cluster runs in its own network namespace, which a veth pair connects to
// the host. The namespace's input chain drops everything except loopback and replies: the cluster
// can dial out, but nothing can dial in. The lab itself reaches the cluster because it opens its
// sockets inside the namespace ([Cluster.DialContext], [Cluster.Command]). Without root, the
// cluster is an ordinary one, the lab reports that, and [Cluster.Firewalled] returns false.
//
// # Cleanup
//
// [Lab.Close] stops everything, and so does the end of the context given to [New]. If the process
// that owns the lab is killed, panics or is interrupted (Ctrl-C in a test), the kernel cleans up:
// every child is started with a parent-death signal. The namespaces are anonymous, so each of them
// ends with the last process in it, and its veth pair with it. [New] removes what an earlier lab
// has still left behind (a command that outlived kwok may hold a namespace). It identifies the
// objects of a lab by the ID of the process that created them.
//
// # Limits
//
// No scheduler runs: a Pod must name its Node ([NodeName], see [Cluster.RunPod]). All containers
// share one log and the machine's file system, and nothing isolates the commands that run in them.
// There is no network between Pods, and no DNS.
//
// # Logs
//
// Logs are in [Lab.Dir], one file per process. Errors name the file and quote its last lines.
package lab
