// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// readInvitation reads the record of an invitation. It returns nil if there is none.
func (c *clusterClient) readInvitation(ctx context.Context, namespace, name string) (*registration.Invitation, error) {
	secret, err := c.invitationSecret(ctx, namespace, name)
	if err != nil || secret == nil {
		return nil, err
	}
	return invitationOf(secret, name), nil
}

// invitationSecret reads the Secret that contains the record. It returns nil if there is none.
func (c *clusterClient) invitationSecret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	secret, err := c.kube.CoreV1().Secrets(namespace).Get(ctx, registration.InvitationSecret(name), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, c.explain(err)
	case secret.Labels[v1alpha1.LabelInvitation] != name:
		return nil, fmt.Errorf("the Secret %s/%s on the hub already exists, and is not the record of an invitation: rename or delete it, and run the command again", namespace, secret.Name)
	}
	return secret, nil
}

func invitationOf(secret *corev1.Secret, name string) *registration.Invitation {
	record, err := registration.ReadInvitation(secret)
	if err != nil { // somebody changed it: it cannot be used, but it can be replaced
		return &registration.Invitation{Name: name}
	}
	return record
}

// deleteInvitation deletes the record of an invitation and returns it, or nil if there was none. A
// registration with this invitation ends, because the gateway checks that the record exists until
// the record says that the invitation is done.
func (c *clusterClient) deleteInvitation(ctx context.Context, namespace, name string, dryRun bool) (*registration.Invitation, error) {
	var options metav1.DeleteOptions
	if dryRun {
		options.DryRun = []string{metav1.DryRunAll}
	}
	secrets := c.kube.CoreV1().Secrets(namespace)
	for {
		secret, err := c.invitationSecret(ctx, namespace, name)
		if err != nil || secret == nil {
			return nil, err
		}
		// Only if it is unchanged: the gateway may be using it at this moment.
		options.Preconditions = &metav1.Preconditions{UID: &secret.UID, ResourceVersion: &secret.ResourceVersion}
		err = secrets.Delete(ctx, secret.Name, options)
		if apierrors.IsConflict(err) {
			continue
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, c.explain(err)
		}
		record := invitationOf(secret, name)
		if record.State == registration.InvitationRegistering {
			err = c.deleteHalfRegistered(ctx, record, secrets, options.DryRun)
		}
		return record, err
	}
}

// deleteHalfRegistered deletes the Secret of a cluster whose registration was in progress. The
// gateway does so too, unless it has stopped.
func (c *clusterClient) deleteHalfRegistered(ctx context.Context, record *registration.Invitation, secrets corev1client.SecretInterface, dryRun []string) error {
	secret, err := secrets.Get(ctx, record.Name, metav1.GetOptions{})
	if err == nil && secret.Annotations[v1alpha1.AnnotationClusterUID] == string(record.ClusterUID) {
		err = secrets.Delete(ctx, record.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &secret.UID}, DryRun: dryRun})
	}
	if apierrors.IsNotFound(err) {
		return nil
	}
	return c.explain(err)
}

// invitationText describes the state of an invitation in one line.
func (a *app) invitationText(i *registration.Invitation) string {
	text := ""
	switch {
	case i.Expires.IsZero():
		return "the record on the hub cannot be read: create another invitation"
	case i.State == registration.InvitationDone:
		text = fmt.Sprintf("used at %s", day(i.UsedAt))
	case !a.Now().Before(i.Expires):
		text = fmt.Sprintf("expired at %s", day(i.Expires))
	case i.State == registration.InvitationUsed, i.State == registration.InvitationRegistering:
		text = fmt.Sprintf("in use since %s", day(i.UsedAt))
	default:
		text = fmt.Sprintf("open, expires %s (%s)", a.until(i.Expires), day(i.Expires))
	}
	if i.Message != "" {
		text += "; last refusal: " + i.Message
	}
	return text
}

// invitations reads the records on the hub.
func (c *clusterClient) invitations(ctx context.Context, namespace string) ([]*registration.Invitation, error) {
	list, err := c.kube.CoreV1().Secrets(namespace).List(ctx, metav1.ListOptions{LabelSelector: v1alpha1.LabelInvitation})
	if err != nil {
		return nil, c.explain(err)
	}
	var all []*registration.Invitation
	for i := range list.Items {
		record, err := registration.ReadInvitation(&list.Items[i])
		if err != nil {
			record = &registration.Invitation{Name: list.Items[i].Labels[v1alpha1.LabelInvitation]}
		}
		all = append(all, record)
	}
	return all, nil
}
