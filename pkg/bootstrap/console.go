// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/term"
)

// console prints for several goroutines, without mixing their lines. If the standard error is a
// terminal, its last line shows the progress.
type console struct {
	terminal bool

	mu          sync.Mutex
	out, errOut io.Writer
	progress    string
}

func newConsole(out, errOut io.Writer) *console {
	file, ok := errOut.(*os.File)
	return &console{out: out, errOut: errOut, terminal: ok && term.IsTerminal(int(file.Fd()))}
}

// clearLine removes the line of a terminal in which the cursor is.
const clearLine = "\r\x1b[K"

// print calls f while nobody else prints.
func (c *console) print(f func(out, errOut io.Writer)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.progress != "" {
		fmt.Fprint(c.errOut, clearLine)
	}
	f(c.out, c.errOut)
	fmt.Fprint(c.errOut, c.progress)
}

// setProgress changes the last line of the terminal. Empty removes it.
func (c *console) setProgress(text string) {
	if !c.terminal {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.progress = text
	fmt.Fprint(c.errOut, clearLine+text)
}

// prefixed returns a writer that puts a cluster's name before each line. The caller calls flush.
func (c *console) prefixed(name string, toErrOut bool) *prefixWriter {
	return &prefixWriter{console: c, prefix: name + ": ", toErrOut: toErrOut}
}

// prefixWriter prints whole lines to a console.
type prefixWriter struct {
	console  *console
	prefix   string
	toErrOut bool
	open     []byte
}

// maxLine bounds a line that is not complete yet.
const maxLine = 1 << 20

// Write implements io.Writer.
func (w *prefixWriter) Write(p []byte) (int, error) {
	w.open = append(w.open, p...)
	end := bytes.LastIndexByte(w.open, '\n') + 1
	if end == 0 && len(w.open) > maxLine {
		end = len(w.open)
	}
	if end > 0 {
		w.print(w.open[:end])
		w.open = append([]byte(nil), w.open[end:]...)
	}
	return len(p), nil
}

// flush prints a last line that does not end.
func (w *prefixWriter) flush() {
	w.print(w.open)
	w.open = nil
}

func (w *prefixWriter) print(text []byte) {
	if len(text) == 0 {
		return
	}
	w.console.print(func(out, errOut io.Writer) {
		if w.toErrOut {
			out = errOut
		}
		writeLines(out, w.prefix, text)
	})
}

// writeLines writes text with a prefix before each line. The last line always ends.
func writeLines(w io.Writer, prefix string, text []byte) {
	var out bytes.Buffer
	for line := range bytes.Lines(text) {
		out.WriteString(prefix)
		out.Write(line)
		if !bytes.HasSuffix(line, []byte("\n")) {
			out.WriteByte('\n')
		}
	}
	_, _ = w.Write(out.Bytes()) // as fmt.Fprint: nobody is left to hear of it
}
