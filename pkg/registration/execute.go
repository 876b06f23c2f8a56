// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// Applier carries out the steps of one plan, in their order. Errors are those of the clients.
type Applier struct {
	// Cluster is the cluster in which the steps are carried out.
	Cluster dynamic.Interface
	// DryRun changes nothing.
	DryRun bool
	// Namespace is the UID of the agent's namespace. It is set when the step StepNamespace is done.
	Namespace types.UID
}

// Result is what a step did, or in a dry run would do.
type Result struct {
	// Outcomes counts the objects that were applied.
	Outcomes map[Outcome]int
	// Removed are the objects that were removed.
	Removed []*unstructured.Unstructured
}

// Apply applies and removes the objects of a step.
func (a *Applier) Apply(ctx context.Context, step Step) (Result, error) {
	result := Result{Outcomes: map[Outcome]int{}}
	for _, o := range step.Apply {
		if o.GetNamespace() == "" && !IsNamespace(o) {
			SetOwner(o, a.Namespace)
		}
		outcome, after, err := Apply(ctx, a.Cluster, o, a.DryRun)
		if err != nil {
			return result, fmt.Errorf("apply %s %s: %w", o.GetKind(), o.GetName(), err)
		}
		if IsNamespace(o) && (!a.DryRun || outcome != Created) {
			a.Namespace = after.GetUID()
		}
		result.Outcomes[outcome]++
	}
	for _, o := range step.Remove {
		found, err := Remove(ctx, a.Cluster, o, a.DryRun)
		if err != nil {
			return result, fmt.Errorf("remove %s %s: %w", o.GetKind(), o.GetName(), err)
		}
		if found {
			result.Removed = append(result.Removed, o)
		}
	}
	return result, nil
}

// secretAttempts bounds how often the Secret is read again. The gateway writes to it, too: the
// cluster's health, and renewed tokens.
const secretAttempts = 10

// ErrRemovedMeanwhile means that the cluster's Secret was deleted while a command was changing it.
var ErrRemovedMeanwhile = errors.New("the cluster has been removed from the hub meanwhile")

// TakenMeanwhileError means that the name was taken while a command was registering the cluster.
type TakenMeanwhileError struct{ Err error }

// Error says who took it.
func (e *TakenMeanwhileError) Error() string { return e.Err.Error() }

// Unwrap returns the reason.
func (e *TakenMeanwhileError) Unwrap() error { return e.Err }

// WriteSecret writes the cluster's Secret over current, which is what the plan is based on. If it
// has changed since, it is read again, and checked again: of two clusters that take a name at the
// same time, one is refused. removed lists the keys that were removed from the Secret.
func (p *Plan) WriteSecret(ctx context.Context, secrets corev1client.SecretInterface, current *corev1.Secret, dryRun bool) (outcome Outcome, removed []string, err error) {
	wanted, existed := p.Secret, current != nil
	for range secretAttempts {
		_, outcome, removed, err = wanted.Write(ctx, secrets, current, dryRun)
		if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) && !apierrors.IsNotFound(err) {
			return outcome, removed, err
		}
		current, err = secrets.Get(ctx, p.Secret.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err) && existed:
			return "", nil, ErrRemovedMeanwhile
		case apierrors.IsNotFound(err):
			current = nil
			continue
		case err != nil:
			return "", nil, err
		}
		existed = true
		if err := CheckTaken(p.Spec, current, p.Secret.UID); err != nil {
			return "", nil, &TakenMeanwhileError{err}
		}
		// The gateway may just have renewed a token that is kept.
		if !p.NewToken {
			wanted.Token = cmp.Or(string(current.Data[v1alpha1.SecretKeyToken]), wanted.Token)
		}
		if !p.NewMaintenanceToken {
			wanted.MaintenanceToken = cmp.Or(string(current.Data[v1alpha1.SecretKeyMaintenanceToken]), wanted.MaintenanceToken)
		}
	}
	return "", nil, fmt.Errorf("the Secret %s/%s on the hub keeps changing: run the same command again", p.Secret.Namespace, p.Secret.Name)
}

// SetToken replaces the placeholder of the token of the account for callers.
func (p *Plan) SetToken(token string) { p.Secret.Token = token }

// SetMaintenanceToken replaces the placeholder of the token of the account for maintenance.
func (p *Plan) SetMaintenanceToken(token string) { p.Secret.MaintenanceToken = token }

// SetPair replaces the placeholder of the agent's certificate in the objects of the plan.
func (p *Plan) SetPair(pair AgentPair) error {
	p.Pair = &pair
	for i := range p.Steps {
		if step := &p.Steps[i]; step.Name == StepAgent && step.Side == SideCluster {
			objects, err := Agent(p.Address, pair, p.agentValues)
			if err != nil {
				return err
			}
			step.Apply = objects
		}
	}
	return nil
}
