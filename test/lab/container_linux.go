// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// enter makes a child start in the container. The rest is up to the thread that starts it.
func (c *Container) enter(attributes *syscall.SysProcAttr) {
	attributes.Chroot = c.Root
	attributes.Credential = &syscall.Credential{Uid: c.User, Gid: c.User}
	attributes.Cloneflags = syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS
}

// newContainerSpawner returns a spawner whose children see the container's root as read-only, and
// can never get a capability. The mounts are in a mount namespace that ends with them.
func newContainerSpawner(c *Container) (*spawner, error) {
	if err := missingCapability(); err != nil {
		return nil, err
	}
	for path := range c.Mounts {
		if err := os.MkdirAll(filepath.Join(c.Root, path), 0o755); err != nil {
			return nil, err
		}
	}
	return newSpawner(func() error {
		if err := ownMounts(); err != nil {
			return err
		}
		if err := mountReadOnly(c.Root, c.Root); err != nil {
			return err
		}
		for path, source := range c.Mounts {
			if err := mountReadOnly(source, filepath.Join(c.Root, path)); err != nil {
				return err
			}
		}
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("forbid new privileges: %w", err)
		}
		for capability := uintptr(0); capability <= unix.CAP_LAST_CAP; capability++ {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0); err != nil {
				return fmt.Errorf("drop capability %d: %w", capability, err)
			}
		}
		return nil
	})
}

// mountReadOnly mounts a folder of the host, without devices and without programs that change the
// user.
func mountReadOnly(source, target string) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("mount %s read-only: %w", target, err)
	}
	return nil
}
