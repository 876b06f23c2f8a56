// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"os"
)

// invalid is the error about the value of a flag.
func invalid(flag string, value any, must string) error {
	return fmt.Errorf("invalid --%s %q: %s", flag, fmt.Sprint(value), must)
}

// invalidError is the error about the value of a flag that err explains.
func invalidError(flag string, value any, err error) error {
	return fmt.Errorf("invalid --%s %q: %w", flag, fmt.Sprint(value), err)
}

// readFile reads the file of a flag.
func readFile(flag, path string) ([]byte, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, invalidError(flag, path, err)
	}
	return content, nil
}
