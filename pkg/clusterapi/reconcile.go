// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package clusterapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
)

// fieldManager is the manager of the fields that a Registrar writes.
const fieldManager = "cluster-gateway"

// reconcile makes the Secret of a cluster what its kubeconfig says. again is when it is to be
// called again without a change, or 0.
func (r *Registrar) reconcile(ctx context.Context, name string) (again time.Duration, err error) {
	secrets := r.config.Client.CoreV1().Secrets(r.config.SecretNamespace)
	sources := r.sources(name)
	if len(sources) == 0 && !r.registered(name) {
		return 0, nil
	}
	current, err := secrets.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		current, err = nil, nil
	}
	if err != nil {
		return 0, err
	}
	source, ours := r.sourceOf(current)
	switch {
	case ours && !r.kubeconfigs[source.Namespace].HasSynced():
		return 0, nil // it is too early to miss the kubeconfig
	case current == nil && len(sources) == 0:
		delete(r.goneSince, name)
		return 0, nil
	case current == nil:
		return 0, r.create(ctx, sources)
	case !ours && len(sources) == 0:
		return 0, nil
	case !ours:
		return 0, taken(sources[0], "the Secret %s/%s was not made from it. To register this cluster, remove the other one or give one of them another name", current.Namespace, name)
	}
	i := slices.IndexFunc(sources, func(s *corev1.Secret) bool { return cache.MetaObjectToName(s) == source })
	if i < 0 {
		return r.unregister(ctx, current)
	}
	delete(r.goneSince, name)
	if err := r.update(ctx, sources[i], current); err != nil {
		return 0, err
	}
	for _, other := range slices.Delete(slices.Clone(sources), i, i+1) {
		return 0, taken(other, "the cluster of this name in namespace %s is registered", source.Namespace)
	}
	return 0, nil
}

// registered reports whether a Registrar has registered the cluster, as far as the gateway knows.
func (r *Registrar) registered(name string) bool {
	c, ok := r.config.Clusters.Get(name)
	return ok && c.ManagedBy == v1alpha1.ManagedByClusterAPI
}

// desired converts a kubeconfig, and parses the result as the gateway will.
func (r *Registrar) desired(source *corev1.Secret) (*corev1.Secret, error) {
	wanted, err := Convert(source, r.config.SecretNamespace)
	if err == nil {
		err = cluster.Parse(wanted, r.config.Parse).Err()
	}
	if err != nil {
		return nil, &refusalError{"InvalidKubeconfig", fmt.Sprintf("the kubeconfig in Secret %s/%s cannot be used: %v", source.Namespace, source.Name, err)}
	}
	return wanted, nil
}

func (r *Registrar) create(ctx context.Context, sources []*corev1.Secret) error {
	wanted, err := r.desired(sources[0])
	if err != nil {
		return err
	}
	if _, err = r.config.Client.CoreV1().Secrets(wanted.Namespace).Create(ctx, wanted, metav1.CreateOptions{FieldManager: fieldManager}); err != nil {
		return err
	}
	r.config.Logger.Info("Registered a cluster of Cluster API", "cluster", wanted.Name, "kubeconfig", sources[0].Namespace+"/"+sources[0].Name)
	return nil
}

// update patches a Secret if it differs from what the kubeconfig says. The labels and annotations
// of others stay.
func (r *Registrar) update(ctx context.Context, source, current *corev1.Secret) error {
	wanted, err := r.desired(source)
	if err != nil {
		return err // the cluster stays as it was registered
	}
	data, changed := map[string]any{}, false
	for _, key := range cluster.DataKeys() {
		value, wants := wanted.Data[key]
		have, has := current.Data[key]
		if wants != has || !bytes.Equal(value, have) {
			changed = true
		}
		switch {
		case wants:
			data[key] = value
		case has:
			data[key] = nil // removed
		}
	}
	for key, value := range wanted.Labels {
		changed = changed || current.Labels[key] != value
	}
	if !changed {
		return nil
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": current.ResourceVersion, "uid": current.UID, "labels": wanted.Labels}, "data": data,
	})
	if err != nil {
		return err
	}
	_, err = r.config.Client.CoreV1().Secrets(current.Namespace).Patch(ctx, current.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
	if err == nil {
		r.config.Logger.Info("Updated a cluster of Cluster API", "cluster", current.Name)
	}
	return err
}

// unregister deletes the Secret of a cluster whose kubeconfig has been gone for long enough.
func (r *Registrar) unregister(ctx context.Context, current *corev1.Secret) (again time.Duration, err error) {
	since, missed := r.goneSince[current.Name]
	if !missed {
		since = time.Now()
		r.goneSince[current.Name] = since
	}
	if left := r.config.Grace - time.Since(since); left > 0 {
		return left, nil
	}
	err = r.config.Client.CoreV1().Secrets(current.Namespace).Delete(ctx, current.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &current.UID, ResourceVersion: &current.ResourceVersion},
	})
	if err == nil {
		delete(r.goneSince, current.Name)
		r.config.Logger.Info("Unregistered a cluster whose kubeconfig was deleted", "cluster", current.Name)
	}
	return 0, err
}
