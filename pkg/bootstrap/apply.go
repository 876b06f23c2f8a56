// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// apply carries out the plan, step by step.
func (r *registerRun) apply(ctx context.Context) error {
	applier := &registration.Applier{Cluster: r.cluster.dyn, DryRun: r.o.dryRun}
	if namespace := r.state.Cluster.Namespace; namespace != nil {
		applier.Namespace = namespace.UID
	}
	// Steps may replace placeholders in the steps that follow, so the list is read anew each time.
	for i := range r.plan.Steps {
		if err := r.applyStep(ctx, applier, r.plan.Steps[i]); err != nil {
			return err
		}
	}
	return nil
}

func (r *registerRun) applyStep(ctx context.Context, applier *registration.Applier, step registration.Step) error {
	switch step.Name {
	case registration.StepSecret:
		return r.applySecret(ctx)
	case registration.StepProbe:
		return r.probeImpersonation(ctx, applier, step)
	case registration.StepCertificate:
		return r.provideCertificate(ctx)
	case registration.StepWait:
		return r.waitRegistered(ctx)
	case registration.StepAgent:
		if step.Side == registration.SideLocal {
			return r.writeAgentFiles(ctx)
		}
	}
	result, err := applier.Apply(ctx, step)
	if err != nil {
		return r.cluster.explain(err)
	}
	if step.Name == registration.StepNamespace {
		if err := r.tryAgentValues(ctx); err != nil {
			return err
		}
	}
	return r.step(ctx, string(step.Name), "%s", r.stepText(step.Name, result))
}

// tryAgentValues applies the agent with the values of --agent-values in a dry run, so that values
// that the API server refuses change nothing. It needs the namespace.
func (r *registerRun) tryAgentValues(ctx context.Context) error {
	if len(r.plan.Secret.AgentValues) == 0 {
		return nil
	}
	for _, step := range r.plan.Steps {
		for _, o := range step.Apply {
			if step.Name != registration.StepAgent || o.GetKind() != "Deployment" {
				continue
			}
			if _, _, err := registration.Apply(ctx, r.cluster.dyn, o, true); err != nil {
				return fmt.Errorf("invalid --agent-values: the cluster refuses the agent's Deployment, and only namespace %s was applied: %w", registration.AgentNamespace, err)
			}
		}
	}
	return nil
}

// stepText describes what a step did in the cluster.
func (r *registerRun) stepText(name registration.StepName, result registration.Result) string {
	outcome := outcomeText(result.Outcomes, r.o.dryRun)
	switch name {
	case registration.StepNamespace:
		return registration.AgentNamespace + ": " + outcome
	case registration.StepAccount:
		return accountText(result, r.o.dryRun)
	case registration.StepAccess:
		access := registration.AccessOf(r.spec.Access)
		text := fmt.Sprintf("%s (ClusterRole %s): %s", access.Name, access.Role, outcome)
		if r.spec.Impersonation != nil {
			text = fmt.Sprintf("the gateway may %s (ClusterRole %s): %s", r.plan.Spec.Impersonation.Describe(), access.Role, outcome)
		}
		if len(result.Removed) > 0 {
			text += fmt.Sprintf("; previous access %s: %s", pastTense("removed", r.o.dryRun), objectNames(result.Removed))
		}
		return text
	case registration.StepPrevious:
		return fmt.Sprintf("the previous agent is not needed any more; %s: %s", pastTense("removed", r.o.dryRun), objectNames(result.Removed))
	default:
		return fmt.Sprintf("Deployment %s/%s and what it needs: %s", registration.AgentNamespace, registration.AgentName, outcome)
	}
}

// accountText describes what was done to the gateway's accounts.
func accountText(result registration.Result, dryRun bool) string {
	text := fmt.Sprintf("%s and %s in %s: %s", registration.GatewayAccount, registration.MaintenanceAccount, registration.AgentNamespace, outcomeText(result.Outcomes, dryRun))
	if len(result.Removed) > 0 {
		text += fmt.Sprintf("; rights that users must not have, %s: %s", pastTense("removed", dryRun), objectNames(result.Removed))
	}
	return text
}

// objectNames lists objects.
func objectNames(objects []*unstructured.Unstructured) string {
	var names []string
	for _, o := range objects {
		names = append(names, o.GetKind()+" "+o.GetName())
	}
	return strings.Join(names, ", ")
}

// pastTense is what was done, or would be in a dry run.
func pastTense(verb string, dryRun bool) string {
	if dryRun {
		return "would be " + verb
	}
	return verb
}

// outcomeText sums up what applying objects did.
func outcomeText(count map[registration.Outcome]int, dryRun bool) string {
	var parts []string
	for _, o := range []registration.Outcome{registration.Created, registration.Changed, registration.Unchanged} {
		switch n := count[o]; {
		case n == 0:
		case n == 1 && len(count) == 1:
			parts = append(parts, string(o))
		default:
			parts = append(parts, fmt.Sprintf("%d %s", n, o))
		}
	}
	text := strings.Join(parts, ", ")
	if dryRun && count[registration.Created]+count[registration.Changed] > 0 {
		text = "would be " + text
	}
	return text
}

// applySecret makes the cluster known to the gateway.
func (r *registerRun) applySecret(ctx context.Context) error {
	if r.plan.NewToken && !r.o.dryRun {
		token, err := r.cluster.requestToken(ctx, registration.GatewayAccount, r.o.tokenLifetime)
		if err != nil {
			return err
		}
		r.plan.SetToken(token)
	}
	if r.plan.NewMaintenanceToken && !r.o.dryRun {
		token, err := r.cluster.requestToken(ctx, registration.MaintenanceAccount, r.o.tokenLifetime)
		if err != nil {
			return err
		}
		r.plan.SetMaintenanceToken(token)
	}
	if err := r.tryToken(ctx); err != nil {
		return err
	}
	secret := r.plan.Secret
	outcome, removed, err := r.plan.WriteSecret(ctx, r.hub.kube.CoreV1().Secrets(secret.Namespace), r.state.Hub.Secret, r.o.dryRun)
	var taken *registration.TakenMeanwhileError
	switch {
	case errors.Is(err, registration.ErrRemovedMeanwhile):
		return fmt.Errorf("cluster %q was removed from the hub at the same time. To register it anyway, run the same command again", r.name)
	case errors.As(err, &taken):
		return fmt.Errorf("%q was registered by somebody else at the same time, and that registration was not changed: %w\nTo remove what this command has applied to cluster %s: kubectl delete namespace %s",
			r.name, err, r.cluster.uid, registration.AgentNamespace)
	case err != nil:
		return r.hub.explain(err)
	}
	text := outcomeText(map[registration.Outcome]int{outcome: 1}, r.o.dryRun)
	if len(removed) > 0 {
		text += "; previous keys " + pastTense("removed", r.o.dryRun) + ": " + strings.Join(removed, ", ") + r.keepAdvice(removed)
	}
	return r.step(ctx, "secret", "%s/%s on the hub: %s", secret.Namespace, secret.Name, text)
}

// keepAdvice says how to keep keys of the Secret that flags set.
func (r *registerRun) keepAdvice(removed []string) string {
	var flags []string
	if slices.Contains(removed, v1alpha1.SecretKeyServerName) {
		flags = append(flags, "--tls-server-name")
	}
	if slices.Contains(removed, v1alpha1.SecretKeyProxyURL) && r.o.route == routeDirect {
		flags = append(flags, "--proxy-url")
	}
	if len(flags) == 0 {
		return ""
	}
	return " (to keep a value, set " + strings.Join(flags, " and ") + ")"
}

// requestToken requests a token of one of the gateway's accounts.
func (c *clusterClient) requestToken(ctx context.Context, account string, lifetime time.Duration) (string, error) {
	token, err := registration.RequestToken(ctx, c.kube, account, lifetime)
	if err != nil {
		return "", fmt.Errorf("request a token of ServiceAccount %s/%s: %w", registration.AgentNamespace, account, c.explain(err))
	}
	return token, nil
}

// provideCertificate keeps the agent's certificate or issues one, as planned.
func (r *registerRun) provideCertificate(ctx context.Context) error {
	var text string
	switch {
	case !r.plan.NewCertificate:
		text = "unchanged"
		if chain, err := pki.ParseCertificates(r.plan.Pair.Certificate); err == nil {
			text += ", until " + day(chain[0].NotAfter)
		}
	case r.o.dryRun:
		text = "would be issued"
	default:
		pair, issued, err := r.certificates.forAgent(ctx, r.name, r.o.agentLifetime, r.Now())
		if err != nil {
			return err
		}
		if err := registration.AcceptAgentCertificate(ctx, r.hub.kube.CoreV1().Secrets(r.plan.Secret.Namespace), r.name, "", issued); err != nil {
			return r.hub.explain(err)
		}
		if err := r.plan.SetPair(pair); err != nil {
			return err
		}
		text = fmt.Sprintf("issued for %q, until %s", r.name, day(issued.NotAfter))
	}
	return r.step(ctx, string(registration.StepCertificate), "%s", text)
}

// writeAgentFiles writes the files of an agent that runs as a process.
func (r *registerRun) writeAgentFiles(ctx context.Context) error {
	dir, err := filepath.Abs(r.o.outDir)
	if err != nil {
		return err
	}
	if r.o.dryRun {
		return r.step(ctx, "agent", "files would be written to %s", dir)
	}
	written, err := writeAgentDir(dir, r.name, r.plan.Address, *r.plan.Pair)
	if err != nil {
		return err
	}
	if written == 0 {
		return r.step(ctx, "agent", "files in %s: unchanged", dir)
	}
	return r.step(ctx, "agent", "%d files written to %s: start the agent, or restart it if it runs", written, dir)
}
