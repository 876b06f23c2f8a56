// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"go.yaml.in/yaml/v3"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// editKubeconfig returns the text of a kubeconfig in which the changed entries are those of want,
// and so is the current context. Everything else stays as it is in the text: comments, and fields
// that this version of client-go does not know. want is the whole kubeconfig after the edit, and
// the result is compared with it.
func editKubeconfig(text []byte, want *clientcmdapi.Config, changes []entryChange) ([]byte, error) {
	if len(bytes.TrimSpace(text)) == 0 {
		return clientcmd.Write(*want)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var document yaml.Node
	if err := decoder.Decode(&document); err != nil {
		return nil, err
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("it has more than one YAML document")
	}
	root := document.Content[0]
	if root.Kind != yaml.MappingNode {
		return nil, errors.New("it is not a YAML mapping")
	}
	for _, c := range changes {
		if !c.changes() {
			continue
		}
		entry := entryOf(want, c.kind, c.name)
		if !entry.exists() {
			removeItem(root, string(c.kind)+"s", c.name)
			continue
		}
		item, err := encodeNode(entry, c.kind, c.name)
		if err != nil {
			return nil, err
		}
		putItem(root, string(c.kind)+"s", c.name, item)
	}
	if got := mapValue(root, "current-context"); want.CurrentContext != "" && (got == nil || got.Value != want.CurrentContext) {
		setMapValue(root, "current-context", &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: want.CurrentContext})
	}
	var out bytes.Buffer
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	encoder.CompactSeqIndent() // as kubectl writes it
	if err := errors.Join(encoder.Encode(&document), encoder.Close()); err != nil {
		return nil, err
	}
	return out.Bytes(), checkEdit(out.Bytes(), want)
}

// checkEdit compares what client-go reads from the text with what it should read.
func checkEdit(text []byte, want *clientcmdapi.Config) error {
	got, err := clientcmd.Load(text)
	if err != nil {
		return fmt.Errorf("the edited kubeconfig cannot be read: %w", err)
	}
	gotText, err := clientcmd.Write(*got)
	if err != nil {
		return err
	}
	wantText, err := clientcmd.Write(*want)
	if err != nil {
		return err
	}
	if !bytes.Equal(gotText, wantText) {
		return errors.New("the entries cannot be added without changing others: use -o to write to another file")
	}
	return nil
}

// encodeNode returns an entry as an item of its list.
func encodeNode(entry kubeconfigEntry, kind entryKind, name string) (*yaml.Node, error) {
	config := clientcmdapi.NewConfig()
	entry.addTo(config, name)
	text, err := clientcmd.Write(*config)
	if err != nil {
		return nil, err
	}
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		return nil, err
	}
	return mapValue(document.Content[0], string(kind)+"s").Content[0], nil
}

// putItem puts an item into a list of named items, in place of the one with its name.
func putItem(root *yaml.Node, key, name string, item *yaml.Node) {
	list := mapValue(root, key)
	if list == nil || list.Kind != yaml.SequenceNode {
		list = &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		setMapValue(root, key, list)
	}
	for i, current := range list.Content {
		if got := mapValue(current, "name"); got != nil && got.Value == name {
			list.Content[i] = item
			return
		}
	}
	if len(list.Content) == 0 {
		list.Style = 0 // not [], the flow style of an empty list
	}
	list.Content = append(list.Content, item)
}

// removeItem removes the items with a name from a list of named items.
func removeItem(root *yaml.Node, key, name string) {
	list := mapValue(root, key)
	if list == nil || list.Kind != yaml.SequenceNode {
		return
	}
	list.Content = slices.DeleteFunc(list.Content, func(item *yaml.Node) bool {
		got := mapValue(item, "name")
		return got != nil && got.Value == name
	})
}

// mapValue returns the value of a key in a mapping, or nil.
func mapValue(mapping *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(mapping.Content) && mapping.Kind == yaml.MappingNode; i += 2 {
		if mapping.Content[i].Value == key {
			return mapping.Content[i+1]
		}
	}
	return nil
}

func setMapValue(mapping *yaml.Node, key string, value *yaml.Node) {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			mapping.Content[i+1] = value
			return
		}
	}
	mapping.Content = append(mapping.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: key}, value)
}
