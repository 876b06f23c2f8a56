// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

// bundle is one run of support-bundle.
type bundle struct {
	*app
	o        *bundleOptions
	hub      *clusterClient
	redactor *redactor

	mu    sync.Mutex
	index bundleIndex
	// files have what was collected, as it was: a string, or the objects of a YAML file. They are
	// redacted when everything is collected, since the redactor then knows all secrets.
	files map[string]any
}

// bundleIndex is the file index.yaml.
type bundleIndex struct {
	Time string `json:"time"`
	// Command and Hub are the versions of this program and of the hub's API server. Those of the
	// gateways are in files.
	Command string        `json:"command"`
	Hub     string        `json:"hub"`
	Files   []string      `json:"files"`
	Missing []missingPart `json:"missing"`
}

// missingPart is something that could not be collected.
type missingPart struct {
	What   string `json:"what"`
	Reason string `json:"reason"`
}

// put adds a file. content is a string or a list of objects.
func (b *bundle) put(name string, content any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.files[name] = content
}

// putObjects adds a file with objects that Go types describe.
func (b *bundle) putObjects(name string, objects ...any) {
	list := make([]map[string]any, 0, len(objects))
	for _, o := range objects {
		content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
		if err != nil {
			b.miss(name, err)
			return
		}
		list = append(list, content)
	}
	b.put(name, list)
}

// miss records that something could not be collected. It does nothing if err is nil.
func (b *bundle) miss(what string, err error) {
	if err == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.index.Missing = append(b.index.Missing, missingPart{what, err.Error()})
}

// render returns the files of the archive, without secrets. Nothing else gets into the archive.
func (b *bundle) render() map[string]string {
	rendered := map[string]string{}
	for name, content := range b.files {
		text, ok := content.(string)
		if !ok {
			text = b.renderObjects(content.([]map[string]any))
		}
		rendered[b.redactor.text(name)] = b.redactor.text(text)
	}
	for i, m := range b.index.Missing {
		b.index.Missing[i] = missingPart{b.redactor.text(m.What), b.redactor.text(m.Reason)}
	}
	b.index.Files = slices.Sorted(maps.Keys(rendered))
	text, err := yaml.Marshal(b.index)
	if err != nil { // there are only strings in it
		text = []byte(err.Error())
	}
	rendered["index.yaml"] = b.redactor.text(string(text))
	return rendered
}

func (b *bundle) renderObjects(objects []map[string]any) string {
	var text strings.Builder
	for i, o := range objects {
		if i > 0 {
			text.WriteString("---\n")
		}
		encoded, err := yaml.Marshal(b.redactor.object(o))
		if err != nil {
			encoded = fmt.Appendf(nil, "# %v\n", err)
		}
		text.Write(encoded)
	}
	return text.String()
}

// writeArchive writes files to a .tar.gz, all of them below one folder.
func writeArchive(w io.Writer, folder string, now time.Time, files map[string]string) error {
	compressed := gzip.NewWriter(w)
	archive := tar.NewWriter(compressed)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		header := &tar.Header{Name: folder + "/" + name, Mode: 0o600, Size: int64(len(files[name])), ModTime: now, Typeflag: tar.TypeReg}
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		if _, err := io.WriteString(archive, files[name]); err != nil {
			return err
		}
	}
	return errors.Join(archive.Close(), compressed.Close())
}
