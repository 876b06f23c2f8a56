// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"time"
)

// stepTimeout bounds each command of the demo.
const stepTimeout = 90 * time.Second

// command prepares kubectl, and prints the command line as a user would type it.
func (d *demo) command(ctx context.Context, kubeconfig string, args []string) *exec.Cmd {
	words := make([]string, len(args))
	for i, a := range args {
		words[i] = a
		if strings.ContainsAny(a, " *$;|()") {
			words[i] = "'" + a + "'"
		}
	}
	d.say("\n$ kubectl --kubeconfig %s %s", kubeconfig, strings.Join(words, " "))
	cmd := exec.CommandContext(ctx, d.lab.Binaries().Kubectl, append([]string{"--kubeconfig", d.path(kubeconfig)}, args...)...)
	return cmd
}

// kubectl runs one command of the demo.
func (d *demo) kubectl(ctx context.Context, kubeconfig string, args ...string) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	cmd := d.command(ctx, kubeconfig, args)
	out, err := cmd.CombinedOutput()
	d.say("%s", strings.TrimRight(string(out), "\n"))
	if err != nil {
		d.fail("kubectl "+strings.Join(args, " "), err)
	}
}

// portForward forwards a port to the Pod and sends a request to it.
func (d *demo) portForward(ctx context.Context, kubeconfig string) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	args := []string{"port-forward", "pod/hello", ":80"}
	if err := d.forwardAndGet(d.command(ctx, kubeconfig, args)); err != nil {
		d.fail("kubectl "+strings.Join(args, " "), err)
	}
}

var forwarding = regexp.MustCompile(`Forwarding from (127\.0\.0\.1:\d+)`)

func (d *demo) forwardAndGet(cmd *exec.Cmd) error {
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = d.out
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		_ = cmd.Process.Kill() // a port-forward can only be killed
		_ = cmd.Wait()         // "signal: killed"
	}()
	lines := bufio.NewScanner(pipe)
	for lines.Scan() {
		d.say("%s", lines.Text())
		m := forwarding.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		return d.get("http://" + m[1] + "/")
	}
	return fmt.Errorf("kubectl ended before it forwarded anything: %w", lines.Err())
}

func (d *demo) get(url string) error {
	d.say("$ curl %s", url)
	client := http.Client{Timeout: 20 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	d.say("%s", strings.TrimSpace(string(body)))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("answered %s", resp.Status)
	}
	return nil
}
