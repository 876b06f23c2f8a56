// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// The test program also stands in for the programs that the commands start, and for agent-bootstrap
// itself, where a test needs it as a process. standIns are what it does under these names.
var standIns = map[string]func() int{
	"agent-bootstrap": func() int {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		cmd := NewCommand(Config{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr, Program: os.Args[0]})
		cmd.SetArgs(Arguments(os.Args))
		err := cmd.ExecuteContext(ctx)
		if err != nil && err.Error() != "" {
			fmt.Fprintln(os.Stderr, "error:", err)
		}
		return ExitCode(err)
	},
	// table asks the cluster of its kubeconfig for its version, and prints a table.
	"table": func() int {
		config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(clientcmd.NewDefaultClientConfigLoadingRules(), nil).ClientConfig()
		if err != nil {
			return standInFailed(err)
		}
		config.WarningHandler = rest.NoWarnings{}
		version, err := kubernetes.NewForConfigOrDie(config).Discovery().ServerVersion()
		if err != nil {
			return standInFailed(err)
		}
		fmt.Printf("NAME      VERSION\ngateway   %s\n", version.GitVersion)
		return 0
	},
	"fail": func() int {
		fmt.Println("some output")
		fmt.Fprintln(os.Stderr, "a warning\nerror: no "+os.Args[len(os.Args)-1])
		return 3
	},
	"cat": func() int {
		if _, err := io.Copy(os.Stdout, os.Stdin); err != nil {
			return standInFailed(err)
		}
		return 0
	},
	"flood": func() int {
		block := make([]byte, 1<<20)
		for {
			if _, err := os.Stdout.Write(block); err != nil {
				return standInFailed(err)
			}
		}
	},
	// hold connects to the address in its last argument and stays, and so does its child. Neither ends
	// when it is asked to.
	"hold": func() int {
		signal.Ignore(syscall.SIGTERM, os.Interrupt)
		if os.Getenv("STANDIN_CHILD") == "" {
			child := exec.Command(os.Args[0], os.Args[1:]...)
			child.Env = append(os.Environ(), "STANDIN_CHILD=1")
			if err := child.Start(); err != nil {
				return standInFailed(err)
			}
		}
		conn, err := net.Dial("tcp", os.Args[len(os.Args)-1])
		if err != nil {
			return standInFailed(err)
		}
		if _, err := fmt.Fprintln(conn, os.Getenv("KUBECONFIG")); err != nil {
			return standInFailed(err)
		}
		_, _ = io.Copy(io.Discard, conn)
		return 0
	},
	// signaled connects to the address in its last argument, and exits with 40 + the signal it gets.
	"signaled": func() int {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
		conn, err := net.Dial("tcp", os.Args[len(os.Args)-1])
		if err != nil {
			return standInFailed(err)
		}
		if _, err := fmt.Fprintln(conn, os.Getenv("KUBECONFIG")); err != nil {
			return standInFailed(err)
		}
		s, _ := (<-signals).(syscall.Signal)
		return 40 + int(s)
	},
}

func standInFailed(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

const standInPrefix = "standin-"

// standIn returns the path of a program that does what standIns says.
func standIn(t *testing.T, name string) string {
	t.Helper()
	if !hasStandIns {
		t.Skip("a unit test, and this is the program of the integration tests")
	}
	if standIns[name] == nil {
		t.Fatalf("there is no stand-in %q", name)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), standInPrefix+name)
	if err := os.Symlink(self, path); err != nil {
		t.Fatal(err)
	}
	return path
}
