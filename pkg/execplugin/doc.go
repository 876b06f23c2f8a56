// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package execplugin runs client-go credential plugins, also called exec plugins: programs that
// print a credential for a Kubernetes API server.
//
// The operator of the gateway defines plugins in a file ([Load]): for each name, a program with its
// arguments and its environment. The Secret of a cluster selects a plugin by its name and sets the
// parameters that the definition declares. [Plugins.Resolve] makes the [Command] from both. A
// [Runner] runs it and keeps the credential until it expires.
//
// client-go has such a runner too (k8s.io/client-go/plugin/pkg/client/auth/exec). It is not used
// here because it passes the whole environment of the process to the plugin, waits for a plugin
// that hangs forever, reads output of any length, copies a plugin's error output to that of the
// gateway, and never forgets a configuration.
package execplugin
