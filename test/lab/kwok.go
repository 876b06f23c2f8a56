// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// NodeName is the only Node of every cluster. No scheduler runs: a Pod must name it in
// spec.nodeName.
const NodeName = "node-0"

const (
	podRange = "10.128.0.0/16"
	// nodeLease is longer than the time for which tests pause kwok.
	nodeLeaseSeconds = 600
)

//go:embed kwok.yaml
var kwokTemplate string

// startKwok starts the kubelet of the cluster's Node and waits until the Node is
// ready.
func (c *Cluster) startKwok(ctx context.Context) error {
	config, err := c.writeKwokConfig()
	if err != nil {
		return err
	}
	if err := c.createNode(ctx); err != nil {
		return fmt.Errorf("create the Node: %w", err)
	}
	kubelet := net.JoinHostPort(loopback, strconv.Itoa(c.ports.kubelet))
	_, err = c.startProcess(ctx, ProcessOptions{
		Name: "kwok",
		Path: c.lab.binaries.Kwok,
		Args: []string{
			"--kubeconfig=" + c.kubeconfig,
			"--config=" + config,
			"--manage-all-nodes=true",
			"--cidr=" + podRange,
			"--node-ip=" + loopback,
			"--node-name=" + NodeName,
			"--node-port=" + strconv.Itoa(c.ports.kubelet),
			"--server-address=" + kubelet,
			"--tls-cert-file=" + c.pki.kubeletCert,
			"--tls-private-key-file=" + c.pki.kubeletKey,
			"--node-lease-duration-seconds=" + strconv.Itoa(nodeLeaseSeconds),
		},
		// The user's own configuration must have no effect.
		Env:       []string{"KWOK_WORKDIR=" + filepath.Join(c.dataDir(), "kwok")},
		ReadyFunc: c.nodeReady,
		ownPIDs:   true,
	})
	return err
}

func (c *Cluster) writeKwokConfig() (string, error) {
	parsed, err := template.New("kwok.yaml").Delims("[[", "]]").Parse(kwokTemplate)
	if err != nil {
		return "", err
	}
	workDir := filepath.Join(c.dataDir(), "exec")
	if err := os.MkdirAll(workDir, 0o755); err != nil {
		return "", err
	}
	if err := c.AppendLog("hello from cluster " + c.opts.Name); err != nil {
		return "", err
	}
	var config bytes.Buffer
	err = parsed.Execute(&config, map[string]any{
		"WorkDir":      strconv.Quote(workDir),
		"LogFile":      strconv.Quote(c.containerLog()),
		"LargeLogPod":  LargeLogPod,
		"LargeLogFile": strconv.Quote(c.largeLog()),
		"HTTPPort":     c.targets.httpPort(),
		"EchoPort":     c.targets.echoPort(),
	})
	if err != nil {
		return "", err
	}
	path := filepath.Join(c.dir, "kwok.yaml")
	return path, os.WriteFile(path, config.Bytes(), 0o644)
}

func (c *Cluster) createNode(ctx context.Context) error {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name:        NodeName,
		Labels:      map[string]string{corev1.LabelHostname: NodeName, corev1.LabelOSStable: "linux"},
		Annotations: map[string]string{"kwok.x-k8s.io/node": "fake"},
	}}
	_, err := c.client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
	return ignoreExists(err)
}

// nodeReady reports whether the Node is ready and its kubelet server listens.
func (c *Cluster) nodeReady(ctx context.Context) error {
	node, err := c.client.CoreV1().Nodes().Get(ctx, NodeName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if !nodeIsReady(node) {
		return errors.New("the Node is not ready")
	}
	conn, err := c.DialContext(ctx, "tcp", net.JoinHostPort(loopback, strconv.Itoa(c.ports.kubelet)))
	if err != nil {
		return err
	}
	return conn.Close()
}

func nodeIsReady(node *corev1.Node) bool {
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

// containerLog is the log file of every container of the cluster.
func (c *Cluster) containerLog() string { return filepath.Join(c.dataDir(), "container.log") }

// LargeLogPod is the name of a Pod in the namespace "default" that does not share the log of the
// other Pods. [Cluster.WriteLargeLog] writes its log, [Cluster.RunPod] creates it.
const LargeLogPod = "large-log"

func (c *Cluster) largeLog() string { return filepath.Join(c.dataDir(), LargeLogPod+".log") }

// WriteLargeLog replaces the log of the Pod [LargeLogPod] by n different lines of 1000 bytes each,
// and returns what kubectl logs must print.
func (c *Cluster) WriteLargeLog(n int) (size int64, sum [sha256.Size]byte, err error) {
	f, err := os.Create(c.largeLog())
	if err != nil {
		return 0, sum, err
	}
	printed, filling := sha256.New(), strings.Repeat("x", 990)
	buffered := bufio.NewWriter(f)
	for i := range n {
		line := fmt.Sprintf("%08d %s\n", i, filling)
		size += int64(len(line))
		_, _ = io.WriteString(printed, line) // a hash never fails
		if _, err := fmt.Fprintf(buffered, "2026-01-01T00:00:00.000000000Z stdout F %s", line); err != nil {
			return 0, sum, errors.Join(err, f.Close())
		}
	}
	return size, [sha256.Size]byte(printed.Sum(nil)), errors.Join(buffered.Flush(), f.Close())
}

// AppendLog adds lines to the output of kubectl logs and attach, for every Pod of the cluster.
func (c *Cluster) AppendLog(lines ...string) error {
	f, err := os.OpenFile(c.containerLog(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	var entries []byte
	for _, line := range lines {
		// The format of the container runtime interface; F is a full line.
		entries = fmt.Appendf(entries, "%s stdout F %s\n", time.Now().UTC().Format(time.RFC3339Nano), line)
	}
	_, err = f.Write(entries)
	return errors.Join(err, f.Close())
}
