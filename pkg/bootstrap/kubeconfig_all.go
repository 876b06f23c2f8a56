// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/clientcmd"
)

// kubeconfigs prints or writes the entries of several clusters.
func (a *app) kubeconfigs(ctx context.Context, o *kubeconfigOptions) error {
	if err := o.validate(""); err != nil {
		return err
	}
	hub, err := a.connectHub(ctx)
	if err != nil {
		return err
	}
	if err := a.requireGateway(ctx, hub); err != nil {
		return err
	}
	entries, prune, err := a.selectedEntries(ctx, hub, o)
	if err != nil {
		return err
	}
	if len(entries) == 0 && !o.merge {
		return errors.New("no registered cluster is selected")
	}
	if !o.merge && (o.file == "" || o.file == stdout || isStream(o.file)) {
		return a.printKubeconfig(entries, o.file, o)
	}
	var refused []string
	for _, w := range o.writers(a.hub.kubeconfig, entries) {
		w.prune, w.force, w.dryRun, w.now = prune, o.force, o.dryRun, a.Now
		result, err := w.write(ctx)
		if err != nil {
			return err
		}
		if o.dryRun {
			a.printChanges(w.file, result)
		} else {
			a.printMerged(w, result)
		}
		for _, c := range refusals(result.changes) {
			refused = append(refused, fmt.Sprintf("  %s %q: %s", c.kind, c.name, c.reason))
		}
	}
	if len(refused) > 0 {
		return fmt.Errorf("some entries were not changed:\n%s", strings.Join(refused, "\n"))
	}
	return nil
}

// selectedEntries returns the entries of the selected clusters, and what to prune.
func (a *app) selectedEntries(ctx context.Context, hub *clusterClient, o *kubeconfigOptions) ([]*clusterEntries, *pruning, error) {
	selector, err := o.labels()
	if err != nil {
		return nil, nil, err
	}
	target, err := newGatewayTarget(ctx, hub, &o.endpointOptions)
	if err != nil {
		return nil, nil, err
	}
	// Without the selector: a cluster that is not selected is still registered.
	clusters, err := hub.clusterGateways(ctx, "")
	if err != nil {
		return nil, nil, err
	}
	identity, err := target.entries("any", "any")
	if err != nil {
		return nil, nil, err
	}
	prune := &pruning{hub: identity.owner, registered: map[string]bool{}}
	var entries []*clusterEntries
	for i := range clusters {
		c := &clusters[i]
		prune.registered[c.Name] = true
		if !selector.Matches(labels.Set(c.Labels)) {
			continue
		}
		e, err := target.entries(c.Name, c.Name)
		if err != nil {
			return nil, nil, err
		}
		entries = append(entries, e)
	}
	if !o.prune {
		prune = nil
	}
	return entries, prune, nil
}

// writers returns one writer for each file that has entries to write or to prune. explicit is the
// file of --kubeconfig.
func (o *kubeconfigOptions) writers(explicit string, entries []*clusterEntries) []*kubeconfigWriter {
	if o.file != "" || !o.merge {
		return []*kubeconfigWriter{{entries: entries, file: o.file, merge: o.merge, partial: o.merge}}
	}
	// An entry that exists is written where it is.
	options := clientcmd.NewDefaultPathOptions()
	files := slices.Clone(options.GetEnvVarFiles())
	if explicit != "" {
		files = []string{explicit}
	} else if len(files) == 0 {
		files = []string{options.GetDefaultFilename()}
	}
	var writers []*kubeconfigWriter
	writerOf := func(file string, others []string) *kubeconfigWriter {
		for _, w := range writers {
			if filepath.Clean(w.file) == filepath.Clean(file) {
				return w
			}
		}
		w := &kubeconfigWriter{file: file, others: others, merge: true, partial: true}
		writers = append(writers, w)
		return w
	}
	for _, file := range files {
		if file != "" {
			others := slices.DeleteFunc(slices.Clone(files), func(other string) bool { return other == "" || filepath.Clean(other) == filepath.Clean(file) })
			writerOf(file, others)
		}
	}
	for _, e := range entries {
		file, others := ownKubeconfig(explicit, e.name)
		w := writerOf(file, others)
		w.entries = append(w.entries, e)
	}
	return slices.DeleteFunc(writers, func(w *kubeconfigWriter) bool {
		_, err := os.Stat(w.file)
		return len(w.entries) == 0 && errors.Is(err, fs.ErrNotExist)
	})
}

// printMerged shows what was written, by cluster.
func (a *app) printMerged(w *kubeconfigWriter, result *writeResult) {
	var names []string
	done := map[string]string{}
	for _, c := range result.changes {
		text := map[entryAction]string{
			actionAdd: "added", actionUpdate: "updated", actionOverwrite: "overwritten", actionRemove: "removed", actionPrune: "removed: the cluster is not registered any more",
			actionRefuse: "not changed",
		}[c.action]
		if _, known := done[c.name]; !known {
			names = append(names, c.name)
		}
		// Some of the entries of a cluster can be new, and others changed.
		if done[c.name] == "" || c.action == actionRefuse || done[c.name] == "added" && text != "" {
			done[c.name] = text
		}
	}
	a.say("In %s:", w.file)
	same := 0
	for _, name := range names {
		if done[name] == "" {
			same++
			continue
		}
		a.say("  %s  %s", name, done[name])
	}
	if same > 0 {
		a.say("  %d up to date", same)
	}
	if result.backup != "" {
		a.say("The previous file is kept in %s.", result.backup)
	}
}
