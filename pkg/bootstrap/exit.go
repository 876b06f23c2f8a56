// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import "errors"

// Exit codes of the commands that work on several clusters. All other commands use 0 and 1.
const (
	exitFailed      = 1   // the command failed in at least one cluster
	exitTrouble     = 2   // the command did not start: invalid flags, or the hub does not answer
	exitInterrupted = 130 // as a shell reports a program that Ctrl-C ended
)

// ExitError is an error with an exit code of its own.
type ExitError struct {
	Code int
	// Err is what the user reads. Nil means that the user knows already.
	Err error
}

// Error implements error.
func (e *ExitError) Error() string {
	if e.Err == nil {
		return ""
	}
	return e.Err.Error()
}

// Unwrap returns Err.
func (e *ExitError) Unwrap() error { return e.Err }

// ExitCode returns the exit code for the error of a command.
func ExitCode(err error) int {
	var exit *ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.Code
	default:
		return 1
	}
}

// trouble gives an error the exit code of a command that did not start.
func trouble(err error) error {
	if err == nil {
		return nil
	}
	return &ExitError{Code: exitTrouble, Err: err}
}
