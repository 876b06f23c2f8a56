// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package lab runs real Kubernetes clusters on one machine, for the tests, the
// demo and the benchmark alike.
//
// A [Lab] owns a folder and a set of processes. Into it one starts clusters
// (etcd, kube-apiserver, kube-controller-manager, and kwok in the place of a
// kubelet), stock Konnectivity servers and agents, and any other program under
// test, such as the gateway. Nothing here is simulated but the containers: kwok
// answers logs, exec, attach and port-forward as a kubelet does, and runs what
// is exec'd as an ordinary process.
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
// [FindBinaries] builds them with "go build" from the versions pinned in
// hack/tools, once, into a cache folder. Environment variables can point it to
// others (see [FindBinaries]). All are built as they are but kwok, whose exec and
// port-forward need a few edits (see patch.go).
//
// # Firewalled clusters
//
// With root, a firewalled cluster lives in a network namespace of its own, tied
// to the host by a veth pair, whose input chain drops everything but loopback
// and replies: it can dial out, nothing can dial in. The lab itself gets in
// because it opens its sockets inside the namespace ([Cluster.DialContext],
// [Cluster.Command]). Without root such a cluster is an ordinary one, the lab
// says so, and [Cluster.Firewalled] reports false.
//
// # Nothing stays behind
//
// [Lab.Close] stops everything, and so does the end of the context given to
// [New]. When the process that owns the lab dies without either (SIGKILL, a
// panic, Ctrl-C in a test), the kernel does it: every child is started with a
// parent-death signal, the namespaces are anonymous and so end with the last
// process in them, and with a namespace ends its veth pair. [New] sweeps what
// could still be left (an exec'd program that outlived kwok may hold a
// namespace): it recognises its own by the id of the process that made them.
//
// # What a lab is not
//
// No scheduler runs: a Pod must name its Node ([NodeName], see [Cluster.RunPod]).
// All containers share one log and the machine's file system, and nothing isolates
// what is exec'd in them. There is no network between Pods, and no DNS.
//
// # Where to look
//
// Logs are in [Lab.Dir], a file per process; errors name the file and quote its
// last lines.
package lab
