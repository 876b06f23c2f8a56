// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// edit replaces one piece of a component's source before it is built. The piece must occur exactly
// once. If an update changes it, the build fails, and a developer must check whether the edit is
// still needed.
type edit struct{ file, old, new string }

// kwokEdits add what tests need and kwok v0.8.0 lacks: exec signals the end of standard input to
// the program, exec reports the program's exit code instead of an internal error, and port-forward
// reports that one side has finished.
func kwokEdits() []edit {
	const (
		execFile    = "pkg/utils/exec/exec.go"
		serverFile  = "pkg/kwok/server/debugging_exec.go"
		forwardFile = "pkg/kwok/server/debugging_port_forword.go"
	)
	return []edit{
		{execFile, "_, _ = io.Copy(inPipe, opt.In)\n", "_, _ = io.Copy(inPipe, opt.In)\n_ = inPipe.Close()\n"},
		{serverFile, "import (\n", "import (\n\"errors\"\nosexec \"os/exec\"\nutilexec \"k8s.io/utils/exec\"\n"},
		{
			serverFile,
			"err := utilsexec.Exec(ctx, cmd[0], cmd[1:]...)\n",
			`err := utilsexec.Exec(ctx, cmd[0], cmd[1:]...)
	if exit := (*osexec.ExitError)(nil); errors.As(err, &exit) && exit.Exited() {
		err = utilexec.CodeExitError{Err: err, Code: exit.ExitCode()}
	}
`,
		},
		{
			forwardFile,
			"return utilsnet.Tunnel(ctx, stream, dial, buf1, buf2)\n",
			`go func() {
			_, _ = io.Copy(dial, stream)
			_ = dial.(*net.TCPConn).CloseWrite()
		}()
		_, err = io.CopyBuffer(stream, dial, buf2)
		return err
`,
		},
		{forwardFile, "buf1 := s.bufPool.Get()\n", ""},
		{forwardFile, "s.bufPool.Put(buf1)\n", ""},
		{forwardFile, "utilsnet \"sigs.k8s.io/kwok/pkg/utils/net\"\n", ""},
	}
}

// editedModule copies a tool's source to dir, edits it there, and returns the arguments that make
// "go build" use it instead of the pinned one. (The go command's -overlay does not apply to the
// module cache.)
func (b *builder) editedModule(ctx context.Context, t pinnedTool, dir string) ([]string, error) {
	pinned, err := b.moduleDir(ctx, t)
	if err != nil {
		return nil, err
	}
	source := filepath.Join(dir, "source")
	if err := os.CopyFS(source, os.DirFS(pinned)); err != nil {
		return nil, fmt.Errorf("copy the source of %s: %w", t.module, err)
	}
	for _, e := range t.edits() {
		if err := e.apply(source); err != nil {
			return nil, fmt.Errorf("edit %s %s: %w", t.module, t.version, err)
		}
	}
	modFile := filepath.Join(dir, "go.mod")
	if err := b.replaceModule(t, source, modFile); err != nil {
		return nil, err
	}
	return []string{"-modfile=" + modFile}, nil
}

func (e edit) apply(dir string) error {
	path := filepath.Join(dir, filepath.FromSlash(e.file))
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text := string(data)
	if strings.Count(text, e.old) != 1 {
		return fmt.Errorf("%s does not contain %q once: is the edit still needed?", e.file, e.old)
	}
	return os.WriteFile(path, []byte(strings.Replace(text, e.old, e.new, 1)), 0o644)
}

// replaceModule writes a go.mod like the tool's own, but with the edited source instead of the
// pinned module, and its go.sum beside it.
func (b *builder) replaceModule(t pinnedTool, source, modFile string) error {
	for name, addition := range map[string]string{
		"go.mod": fmt.Sprintf("\nreplace %s => %q\n", t.module, source),
		"go.sum": "",
	} {
		data, err := os.ReadFile(filepath.Join(b.toolDir(t), name))
		if err != nil {
			return err
		}
		path := filepath.Join(filepath.Dir(modFile), name)
		if err := os.WriteFile(path, append(data, addition...), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// moduleDir returns where the go command keeps the source of a tool.
func (b *builder) moduleDir(ctx context.Context, t pinnedTool) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", t.module)
	cmd.Dir = b.toolDir(t)
	cmd.Env = buildEnvironment()
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("download %s: %w\n%s", t.module, err, lastLines(out))
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		return "", fmt.Errorf("find the source of %s: %w", t.module, err)
	}
	return module.Dir, nil
}
