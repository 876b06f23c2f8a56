// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// kubeconfigWriter writes the entries of clusters to a kubeconfig file.
type kubeconfigWriter struct {
	entries []*clusterEntries
	// partial means that a cluster whose entries are refused does not stop the others.
	partial bool
	// prune removes the entries of clusters that are not registered any more. Nil means that none are
	// removed.
	prune *pruning
	// file is where the entries are written.
	file string
	// others are the files that kubectl reads together with file, if any.
	others []string
	// merge means that the file keeps its other entries. Without it, the file is replaced.
	merge, force, dryRun bool
	now                  func() time.Time
}

// writeResult is what write did, or would do.
type writeResult struct {
	changes []entryChange
	// currentContext means that the current context was set.
	currentContext bool
	// backup is the file with the previous content; empty if there was none.
	backup string
}

func (r *writeResult) unchanged() bool {
	return !r.currentContext && !slices.ContainsFunc(r.changes, func(c entryChange) bool { return c.changes() })
}

// lockTimeout bounds how long another program may hold the lock of a kubeconfig.
const lockTimeout = 5 * time.Second

// lockKubeconfig takes the lock that kubectl config takes as well: a file beside the kubeconfig.
func lockKubeconfig(ctx context.Context, file string) (unlock func(), err error) {
	timeout := time.After(lockTimeout)
	lock := file + ".lock"
	for {
		f, err := os.OpenFile(lock, os.O_CREATE|os.O_EXCL, 0)
		if err == nil {
			_ = f.Close() // it is empty
			return func() { _ = os.Remove(lock) }, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-timeout:
			return nil, fmt.Errorf("another program is writing %s: if none is, delete %s", file, lock)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// write writes the entries. An error with the list of entries that were refused is a
// *conflictError.
func (w *kubeconfigWriter) write(ctx context.Context) (*writeResult, error) {
	if !w.dryRun {
		if err := os.MkdirAll(filepath.Dir(w.file), 0o700); err != nil {
			return nil, err
		}
		unlock, err := lockKubeconfig(ctx, w.file)
		if err != nil {
			return nil, err
		}
		defer unlock()
	}
	before, info, err := readKubeconfig(w.file)
	if err != nil {
		return nil, err
	}
	result := &writeResult{}
	after, err := w.plan(before, result)
	if err != nil || w.dryRun || result.unchanged() {
		return result, err
	}
	mode := fs.FileMode(0o600)
	if info != nil {
		mode = info.Mode().Perm()
		if result.backup, err = w.backup(before, result); err != nil {
			return nil, fmt.Errorf("keeping a backup: %w", err)
		}
	}
	// Programs other than kubectl do not take the lock.
	if now, _, err := readKubeconfig(w.file); err != nil || !bytes.Equal(now, before) {
		return nil, errors.Join(fmt.Errorf("%s was changed by another program at the same time: run the command again", w.file), err)
	}
	return result, putFile(w.file, after, mode)
}

// readKubeconfig reads a file that may not exist.
func readKubeconfig(file string) ([]byte, fs.FileInfo, error) {
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, nil
	case err != nil:
		return nil, nil, err
	case !info.Mode().IsRegular():
		return nil, nil, fmt.Errorf("%s is not a regular file", file)
	}
	text, err := os.ReadFile(file)
	return text, info, err
}

// plan returns the next content of the file, and fills in what changes.
func (w *kubeconfigWriter) plan(text []byte, result *writeResult) (after []byte, err error) {
	config, err := clientcmd.Load(text)
	if err != nil {
		if w.merge || !w.force {
			return nil, fmt.Errorf("%s is not a kubeconfig: %w", w.file, err)
		}
		config = clientcmdapi.NewConfig()
	}
	others, err := w.otherConfigs()
	if err != nil {
		return nil, err
	}
	if !w.merge {
		next := clientcmdapi.NewConfig()
		for _, e := range w.entries {
			for _, kind := range entryKinds {
				entryOf(config, kind, e.name).addTo(next, e.name)
			}
			if config.CurrentContext == e.name {
				next.CurrentContext = config.CurrentContext
			}
		}
		result.changes = w.removed(config)
		config = next
	}
	var changes []entryChange
	shadowed := false
	for _, e := range w.entries {
		changed, isShadowed, err := w.addEntries(config, e, others)
		if err != nil {
			return nil, err
		}
		changes, shadowed = append(changes, changed...), shadowed || isShadowed
	}
	result.changes = append(changes, result.changes...)
	if w.prune != nil && w.merge {
		pruned, err := w.prune.remove(config, others)
		if err != nil {
			return nil, err
		}
		result.changes = append(result.changes, pruned...)
	}
	if refused := refusals(result.changes); len(refused) > 0 && !w.partial {
		return nil, &conflictError{file: w.file, merge: w.merge, refused: refused, shadowed: shadowed}
	}
	current := slices.ContainsFunc(others, func(o otherConfig) bool { return o.config.CurrentContext != "" })
	if len(w.entries) == 1 && !w.partial && config.CurrentContext == "" && !current {
		config.CurrentContext = w.entries[0].name
		result.currentContext = true
	}
	if !w.merge {
		after, err = clientcmd.Write(*config)
		return after, err
	}
	if after, err = editKubeconfig(text, config, result.changes); err != nil {
		return nil, fmt.Errorf("%s was not changed: %w", w.file, err)
	}
	return after, nil
}

// addEntries puts the entries of a cluster into config: all of them or, if one is refused, none.
func (w *kubeconfigWriter) addEntries(config *clientcmdapi.Config, e *clusterEntries, others []otherConfig) (changes []entryChange, shadowed bool, err error) {
	part := clientcmdapi.NewConfig()
	for _, kind := range entryKinds {
		entryOf(config, kind, e.name).copy().addTo(part, e.name)
	}
	if changes, err = e.addTo(part, w.force); err != nil {
		return nil, false, err
	}
	elsewhere := shadows(e.name, others)
	changes = append(changes, elsewhere...)
	if len(refusals(changes)) > 0 {
		return changes, len(elsewhere) > 0, nil
	}
	for _, kind := range entryKinds {
		entryOf(part, kind, e.name).addTo(config, e.name)
	}
	return changes, false, nil
}

// removed lists the entries that replacing the file removes.
func (w *kubeconfigWriter) removed(config *clientcmdapi.Config) []entryChange {
	action := actionRefuse
	if w.force {
		action = actionRemove
	}
	var changes []entryChange
	add := func(kind entryKind, name string) {
		if !slices.ContainsFunc(w.entries, func(e *clusterEntries) bool { return e.name == name }) {
			changes = append(changes, entryChange{kind: kind, name: name, action: action, reason: "it would be removed"})
		}
	}
	for name := range config.Clusters {
		add(clusterEntry, name)
	}
	for name := range config.AuthInfos {
		add(userEntry, name)
	}
	for name := range config.Contexts {
		add(contextEntry, name)
	}
	slices.SortFunc(changes, func(a, b entryChange) int {
		return strings.Compare(string(a.kind)+" "+a.name, string(b.kind)+" "+b.name)
	})
	return changes
}

// otherConfig is another file that kubectl reads together with the one that is written.
type otherConfig struct {
	file   string
	config *clientcmdapi.Config
}

func (w *kubeconfigWriter) otherConfigs() ([]otherConfig, error) {
	var all []otherConfig
	for _, file := range w.others {
		text, _, err := readKubeconfig(file)
		if err != nil {
			return nil, err
		}
		config, err := clientcmd.Load(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		all = append(all, otherConfig{file, config})
	}
	return all, nil
}

// shadows finds entries of a name in the other files that kubectl reads: of two entries, it uses
// the one in the first file.
func shadows(name string, others []otherConfig) []entryChange {
	var found []entryChange
	for _, o := range others {
		for _, kind := range entryKinds {
			if entryOf(o.config, kind, name).exists() {
				found = append(found, entryChange{kind: kind, name: name, action: actionRefuse,
					reason: "it is in " + o.file + " as well, and kubectl reads both files"})
			}
		}
	}
	return found
}

// backup keeps the previous content of the file. The name is agent-bootstrap's own and each backup
// replaces the one before, unless entries of others are overwritten: that backup is never replaced.
func (w *kubeconfigWriter) backup(content []byte, result *writeResult) (string, error) {
	lost := slices.ContainsFunc(result.changes, func(c entryChange) bool { return c.action == actionOverwrite || c.action == actionRemove })
	if !lost {
		path := w.file + ".agent-bootstrap.bak"
		return path, putFile(path, content, 0o600)
	}
	path := w.file + ".agent-bootstrap." + w.now().UTC().Format("20060102T150405Z") + ".bak"
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	_, err = file.Write(content)
	return path, errors.Join(err, file.Sync(), file.Close())
}

func refusals(changes []entryChange) []entryChange {
	var refused []entryChange
	for _, c := range changes {
		if c.action == actionRefuse {
			refused = append(refused, c)
		}
	}
	return refused
}

// conflictError says which entries are in the way.
type conflictError struct {
	file            string
	merge, shadowed bool
	refused         []entryChange
}

func (e *conflictError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s was not changed, because it has entries that must not be overwritten:", e.file)
	for _, c := range e.refused {
		fmt.Fprintf(&b, "\n  %s %q: %s", c.kind, c.name, c.reason)
	}
	switch {
	case e.shadowed:
		b.WriteString("\nUse --name to choose another name for the entries, or -o to write to that file")
	case e.merge:
		b.WriteString("\nUse --name to choose another name for the entries, -o to write to another file, or --force to overwrite them and keep a backup")
	default:
		b.WriteString("\nUse --merge to add to the file, -o to write to another one, or --force to replace it and keep a backup")
	}
	return b.String()
}
