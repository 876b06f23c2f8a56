// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package proxy

import "errors"

func mkfifo(string) error { return errors.ErrUnsupported }
