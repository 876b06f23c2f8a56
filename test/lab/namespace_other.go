// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package lab

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
)

var errNotLinux = errors.New("needs Linux")

func onMainThread() bool { return false }

func childAttributes(bool) *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

func missingCapability() error { return errNotLinux }

// namespace is never created on this system.
type namespace struct {
	spawner *spawner
	link    string
	inside  netip.Addr
	outside netip.Addr
}

func newNamespace(string) (*namespace, error) { return nil, errNotLinux }

func (*namespace) dial(context.Context, string, string) (net.Conn, error) { return nil, errNotLinux }

func (*namespace) listen(string, string) (net.Listener, error) { return nil, errNotLinux }

func (*namespace) drop(int) error { return errNotLinux }

func (*namespace) close() error { return nil }

func newHostsSpawner(*namespace, string) (*spawner, error) { return nil, errNotLinux }

func newContainerSpawner(*Container) (*spawner, error) { return nil, errNotLinux }

func (*Container) enter(*syscall.SysProcAttr) {}

func sweepLinks() error { return nil }
