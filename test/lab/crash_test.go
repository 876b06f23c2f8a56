// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

// ownerVariable makes this test binary the owner of a lab that TestOwnerIsKilled then kills.
const ownerVariable = "CLUSTER_GATEWAY_LAB_TEST_OWNER"

// TestOwnerIsKilled checks that a lab whose process is killed leaves no process and no network link
// behind, not even a command that was started in a Pod, and that the next lab removes its data.
func TestOwnerIsKilled(t *testing.T) {
	if os.Getenv(ownerVariable) != "" {
		ownLab(t)
		return
	}
	temp := t.TempDir()
	// Its own folder for temporary files, so that what it leaves behind can be found.
	owner := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestOwnerIsKilled$", "-test.v")
	owner.Env = append(os.Environ(), ownerVariable+"=1", "TMPDIR="+temp)
	stdout, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	pids, link := readOwner(t, stdout)
	children := descendants(t, pids)
	if reason := missingCapability(); reason != nil {
		t.Logf("not looking for commands in Pods, which needs a PID namespace: %v", reason)
		children = nil
	}
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait() // killed
	for _, pid := range append(pids, children...) {
		gone(t, fmt.Sprintf("process %d", pid), func() bool { return !running(pid) })
	}
	if link != "" {
		gone(t, "link "+link, func() bool { _, err := net.InterfaceByName(link); return err != nil })
	}
	left, err := filepath.Glob(filepath.Join(temp, temporaryPrefix+"*", "*", dataDirName))
	if err != nil || len(left) == 0 {
		t.Fatalf("the killed lab left no data to remove: %v", err)
	}
	if err := sweep(temp); err != nil {
		t.Error(err)
	}
	for _, dir := range left {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s still exists", dir)
		}
	}
}

// ownLab starts a lab, prints what is in it, and waits to be killed.
func ownLab(t *testing.T) {
	ctx, l := newTestLab(t)
	c := startTestCluster(ctx, t, l, ClusterOptions{Name: "edge", Firewalled: true, NoControllerManager: true})
	if _, err := c.RunPod(ctx, "default", "pod"); err != nil {
		t.Fatal(err)
	}
	execd := c.Kubectl(ctx, "exec", "pod", "--", "sh", "-c", "echo started; sleep 1000; true")
	stdout, err := execd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := execd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	link := ""
	if c.ns != nil {
		link = c.ns.link
	}
	words := []string{"owner:", link}
	for _, p := range l.Processes() {
		words = append(words, strconv.Itoa(p.Pid()))
	}
	fmt.Printf("\n%s\n", strings.Join(words, " "))
	<-ctx.Done()
}

func readOwner(t *testing.T, stdout interface{ Read([]byte) (int, error) }) (pids []int, link string) {
	t.Helper()
	for scanner := bufio.NewScanner(stdout); scanner.Scan(); {
		line, ok := strings.CutPrefix(scanner.Text(), "owner: ")
		if !ok {
			t.Log(scanner.Text())
			continue
		}
		link, line, _ = strings.Cut(line, " ")
		for field := range strings.FieldsSeq(line) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
		return pids, link
	}
	t.Fatal("the owner of the lab printed nothing")
	return nil, ""
}

// descendants returns the processes that the given processes have started.
func descendants(t *testing.T, parents []int) []int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var found []int
	for _, file := range stats {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if _, parent, ok := processState(pid); ok && slices.Contains(parents, parent) {
			found = append(found, pid)
		}
	}
	if len(found) == 0 {
		t.Error("no command was started in a Pod")
		return nil
	}
	return append(found, descendantsOf(t, found)...)
}

func descendantsOf(t *testing.T, parents []int) []int {
	t.Helper()
	var found []int
	for _, parent := range parents {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", parent, parent))
		if err != nil {
			continue
		}
		for field := range strings.FieldsSeq(string(data)) {
			if pid, err := strconv.Atoi(field); err == nil {
				found = append(found, pid)
			}
		}
	}
	return found
}

// processState returns the state letter and the parent of a process.
func processState(pid int) (state string, parent int, ok bool) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0, false
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(fields) < 2 {
		return "", 0, false
	}
	parent, err = strconv.Atoi(fields[1])
	return fields[0], parent, err == nil
}

// running reports whether a process exists and is not a zombie.
func running(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	state, _, ok := processState(pid)
	return ok && state != "Z" && state != "X"
}

func gone(t *testing.T, what string, condition func() bool) {
	t.Helper()
	err := wait.PollUntilContextTimeout(t.Context(), readyInterval, time.Minute, true, func(context.Context) (bool, error) {
		return condition(), nil
	})
	if err != nil {
		t.Errorf("%s still exists", what)
	}
}
