// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package bootstrap_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/test/lab/bootstraptest"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// bashCompletion is where the package bash-completion is, which kubectl's script and ours need.
const bashCompletion = "/usr/share/bash-completion/bash_completion"

// wordsByRef is the one function of that package that the scripts call, for machines without it. A
// word that contains = or : is one word.
const wordsByRef = `_get_comp_words_by_ref() {
  local line=${COMP_LINE:0:COMP_POINT}
  read -r -a words <<<"$line"
  [[ $line == *" " ]] && words+=("")
  cword=$((${#words[@]} - 1)); cur=${words[cword]}; prev=${words[cword - 1]}
}
__ltrim_colon_completions() { :; }
`

// TestCompletionAtATerminal types into bash, at a terminal, and presses the tab key. The names are
// those on a real API server. While it is away, the terminal shows nothing but what was typed.
func TestCompletionAtATerminal(t *testing.T) {
	shell, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("there is no bash on this machine")
	}
	ctx := site.Begin(t)
	for _, name := range []string{"edge-1", "edge-2", "near-1"} {
		createGateway(ctx, t, name)
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "agent-bootstrap")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", program, "github.com/oam-dev/cluster-gateway/cmd/agent-bootstrap").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	for name, target := range map[string]string{"kubectl-cg": program, "kubectl_complete-cg": program, "kubectl": site.Hub.Kubectl(ctx).Path} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	setup := "source " + bashCompletion
	if _, err := os.Stat(bashCompletion); err != nil {
		setup = wordsByRef
	}
	b := startBash(ctx, t, shell, dir, site.Hub.Kubeconfig(), setup+`
source <(agent-bootstrap completion bash)
source <(kubectl completion bash)
`)
	config, err := clientcmd.LoadFromFile(site.Hub.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	contextName := config.CurrentContext
	for _, c := range []struct{ typed, want string }{
		{"agent-bootstrap kubeconfig n\t", "agent-bootstrap kubeconfig near-1 "},
		{"agent-bootstrap kubeconfig ed\t", "agent-bootstrap kubeconfig edge-"},
		{"agent-bootstrap kubeconfig ed\t\t\t", "edge-1  edge-2"},
		{"agent-bootstrap each edge-1 ed\t", "agent-bootstrap each edge-1 edge-2 "},
		{"agent-bootstrap register new --access cluster-ad\t", "--access cluster-admin "},
		{"agent-bootstrap status --context " + contextName[:1] + "\t", "--context " + contextName + " "},
		{"kubectl cg kubeconfig n\t", "kubectl cg kubeconfig near-1 "},
		{"kubectl cg status ed\t\t\t", "edge-1  edge-2"},
		{"kubectl cg register new --access cluster-ad\t", "--access cluster-admin "},
	} {
		b.complete(t, c.typed, c.want)
	}

	// A hub that refuses connections, and one that accepts them and says nothing.
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	for what, server := range map[string]string{"refuses": "https://127.0.0.1:1", "is silent": "https://" + silent.Addr().String()} {
		b.run(t, "export KUBECONFIG="+bootstraptest.Kubeconfig(t, site.Hub, server, nil, nil))
		for _, typed := range []string{"agent-bootstrap kubeconfig ed", "kubectl cg kubeconfig ed"} {
			took := b.nothing(t, typed)
			if limit := 9 * time.Second; took > limit {
				t.Errorf("a hub that %s: %q took %s, want at most %s", what, typed, took, limit)
			}
			t.Logf("a hub that %s: %q: %s", what, typed, took.Round(time.Millisecond))
		}
	}
}

// createGateway creates a ClusterGateway on the hub, where a CustomResourceDefinition serves them.
func createGateway(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	client, err := dynamic.NewForConfig(site.Hub.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	gateways := client.Resource(v1alpha1.SchemeGroupVersion.WithResource(v1alpha1.ResourceName))
	o := &unstructured.Unstructured{}
	o.SetGroupVersionKind(v1alpha1.SchemeGroupVersion.WithKind("ClusterGateway"))
	o.SetName(name)
	if _, err := gateways.Create(ctx, o, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := gateways.Delete(context.WithoutCancel(ctx), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
}

// bash is an interactive bash at a pseudo-terminal.
type bash struct {
	terminal *os.File

	mu    sync.Mutex
	shown []byte
	lines int
}

// startBash starts bash with the programs in a folder, and the functions in setup.
func startBash(ctx context.Context, t *testing.T, shell, dir, kubeconfig, setup string) *bash {
	t.Helper()
	rc := filepath.Join(dir, "rc")
	// A dumb terminal: what is shown has no control sequences.
	setup += "PS1='> '; bind 'set enable-bracketed-paste off'; bind 'set bell-style none'; bind 'set completion-query-items 0'; bind 'set page-completions off'\n"
	if err := os.WriteFile(rc, []byte(setup), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, shell, "--noprofile", "--rcfile", rc, "-i")
	cmd.Env = []string{"PATH=" + dir + ":" + os.Getenv("PATH"), "HOME=" + dir, "TERM=dumb", "KUBECONFIG=" + kubeconfig, "HISTFILE=/dev/null", "LC_ALL=C"}
	terminal, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 50, Cols: 200})
	if err != nil {
		t.Fatal(err)
	}
	b := &bash{terminal: terminal}
	read := make(chan struct{})
	go func() {
		defer close(read)
		buffer := make([]byte, 4096)
		for {
			n, err := terminal.Read(buffer)
			b.mu.Lock()
			b.shown = append(b.shown, buffer[:n]...)
			b.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
		_ = terminal.Close()
		<-read
		if t.Failed() {
			t.Logf("the terminal showed\n%s", b.shown)
		}
	})
	return b
}

func (b *bash) send(t *testing.T, keys string) {
	t.Helper()
	if _, err := b.terminal.WriteString(keys); err != nil {
		t.Fatal(err)
	}
}

// await waits until the terminal shows a text, and returns what it showed since this position.
func (b *bash) await(t *testing.T, since int, want string) string {
	t.Helper()
	var shown string
	labtest.Within(t, 30*time.Second, fmt.Sprintf("the terminal to show %q", want), func() error {
		b.mu.Lock()
		shown = string(b.shown[since:])
		b.mu.Unlock()
		if !strings.Contains(shown, want) {
			return fmt.Errorf("it shows %q", shown)
		}
		return nil
	})
	return shown
}

func (b *bash) position() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.shown)
}

// run runs a command, and waits until it has ended.
func (b *bash) run(t *testing.T, command string) {
	t.Helper()
	b.lines++
	since := b.position()
	b.send(t, command+fmt.Sprintf("; echo end-$((%d+0))\r", b.lines))
	b.await(t, since, fmt.Sprintf("end-%d\r\n> ", b.lines))
}

// complete types keys, waits for a text, and removes the line.
func (b *bash) complete(t *testing.T, keys, want string) {
	t.Helper()
	b.run(t, "true")
	since := b.position()
	// bash discards keys that were typed ahead of a completion, as one would not type them.
	typed, tabs, _ := strings.Cut(keys, "\t")
	b.send(t, typed)
	b.await(t, since, typed)
	for range len(tabs) + 1 {
		b.send(t, "\t")
		time.Sleep(200 * time.Millisecond) // there may be nothing to wait for
	}
	b.await(t, since, want)
	b.send(t, "\x15") // removes the line
}

// nothing types a text that cannot be completed and a tab, and checks that nothing else is shown.
// It returns how long the user had to wait.
func (b *bash) nothing(t *testing.T, typed string) time.Duration {
	t.Helper()
	b.run(t, "true")
	since := b.position()
	b.send(t, typed)
	b.await(t, since, typed)
	start := time.Now()
	b.send(t, "\tX") // shown when the completion has ended
	shown := b.await(t, since, "X")
	took := time.Since(start)
	if shown != typed+"X" {
		t.Errorf("after %q and a tab, the terminal shows\n%q", typed, shown)
	}
	b.send(t, "\x15")
	return took
}
