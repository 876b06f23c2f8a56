// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

// Container is where a process runs that comes from an image: as a container runtime runs it with
// the restricted Pod Security Standard, but in the network of the lab's host. The process has a
// read-only root, mount, PID, IPC and host name namespaces of its own, no capabilities, and no way
// to get any. Its environment is only [ProcessOptions.Env].
type Container struct {
	// Root is a folder with the files of the image. Folders for Mounts are created in it. Required.
	Root string
	// User is the ID of its user and group. Required.
	User uint32
	// Mounts maps paths in the container to folders of the host that it sees there, read-only.
	Mounts map[string]string
}
