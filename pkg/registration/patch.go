// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"encoding/json"
	"maps"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// MergePatch returns change as a JSON merge patch. If read is not nil, the API server refuses the
// patch with a Conflict unless the object has the same UID and, if read has a resource version, the
// same resource version. So the patch overwrites nothing that was written in between, and does not
// change an object that was deleted and created again.
func MergePatch(read metav1.Object, change map[string]any) ([]byte, error) {
	if read == nil {
		return json.Marshal(change)
	}
	guarded := maps.Clone(change)
	metadata := map[string]any{"uid": read.GetUID()}
	if version := read.GetResourceVersion(); version != "" {
		metadata["resourceVersion"] = version
	}
	if changed, ok := change["metadata"].(map[string]any); ok {
		maps.Copy(metadata, changed)
	}
	guarded["metadata"] = metadata
	return json.Marshal(guarded)
}
