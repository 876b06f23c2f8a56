// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/internal/untrusted"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

type doctorOptions struct {
	cluster clusterOptions
	outDir  string

	// For several clusters.
	selection
	parallel int
	timeout  time.Duration
}

func (a *app) doctorCommand() *cobra.Command {
	o := &doctorOptions{parallel: 10, timeout: 30 * time.Second}
	cmd := &cobra.Command{
		Use:   "doctor (NAME | -l LABELS | --all)",
		Short: "Find out why a cluster cannot be reached, and what to do",
		Long: `doctor checks each stage of the path to a cluster, and reports what is wrong, at which stage, and what
to do next. It exits with an error if a stage is broken. The stages are:

  hub          the hub and its gateway answer, and you may use the cluster
  secret       the cluster's Secret on the hub exists and is valid
  certificate  the gateway accepts the agent's certificate (tunnel only)
  agent        an agent is connected (tunnel only)
  dial         the API server of the cluster accepts connections
  tls          the API server's certificate is valid and is trusted by ca.crt in the Secret
  credential   the API server accepts the gateway's credential
  rbac         the gateway has the rights in the cluster that register --access gave it

If the cluster cannot be reached, doctor cannot read the agent's certificate and Pods through the gateway.
To check them, set --cluster-kubeconfig, or --out-dir for an agent that runs as a process.

With --all or -l LABELS in place of NAME, doctor checks several clusters at the same time, and prints one
line for each of them. The exit code is then 0 if no stage of any cluster is broken, 1 if one is, and 2 if
nothing was checked.`,
		Example: `  agent-bootstrap doctor edge-1

  # A summary of all clusters.
  agent-bootstrap doctor --all

  # Check the agent too, in the cluster or in its folder.
  agent-bootstrap doctor edge-1 --cluster-kubeconfig edge-1.kubeconfig
  agent-bootstrap doctor edge-1 --out-dir ./edge-1-agent`,
		Args: o.oneNameOrFlags,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return a.doctorAll(cmd.Context(), o)
			}
			return a.doctor(cmd.Context(), args[0], o)
		},
	}
	o.cluster.addFlags(cmd.Flags(), ", to check its agent")
	cmd.Flags().StringVar(&o.outDir, "out-dir", o.outDir, "Folder of an agent that runs as a process, to check its certificate.")
	o.selection.addFlags(cmd.Flags())
	cmd.Flags().IntVar(&o.parallel, "parallel", o.parallel, "How many clusters are checked at the same time.")
	cmd.Flags().DurationVar(&o.timeout, "timeout", o.timeout, "With --all or -l: how long the check of each cluster may take.")
	a.addOutput(cmd.Flags(), "the diagnosis")
	return cmd
}

func (a *app) doctor(ctx context.Context, name string, o *doctorOptions) error {
	if err := errors.Join(registration.ValidateName(name), a.checkOutput()); err != nil {
		return err
	}
	if _, _, err := loadKubeconfig("--kubeconfig", a.hub.kubeconfig, a.hub.context); err != nil {
		return err // nothing can be said about the cluster
	}
	e := &examination{app: a, o: o, name: name}
	e.run(ctx)
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	d := newDiagnosis(name, e.route(), e.findings)
	if a.output == "" {
		d.print(a.Out)
	} else if err := a.print(d); err != nil {
		return err
	}
	if d.Broken != "" {
		return fmt.Errorf("the check of cluster %q failed at stage %q", name, d.Broken)
	}
	return nil
}

// examination is one run of doctor.
type examination struct {
	*app
	o    *doctorOptions
	name string

	hub *clusterClient
	// direct is the managed cluster as --cluster-kubeconfig reaches it. It is nil without that
	// flag, and if the cluster does not answer; directErr says why.
	direct    *clusterClient
	directErr error
	// gateway is the ClusterGateway. If the caller may not read it, it has only a name.
	gateway  *v1alpha1.ClusterGateway
	findings []Finding
}

// run checks the stages as far as possible.
func (e *examination) run(ctx context.Context) {
	if !e.checkHub(ctx) || !e.checkSecret(ctx) {
		return
	}
	if e.o.cluster.kubeconfig != "" {
		if e.direct, e.directErr = e.connectCluster(ctx, e.name, e.o.cluster); e.directErr != nil {
			e.direct = nil
		}
	}
	reached := e.checkPath(ctx)
	if e.route() != routeDirect {
		e.checkCertificate(ctx, reached)
	}
	if reached {
		e.checkAccess(ctx)
	}
}

// route is the route of the cluster. It is empty if the caller may not read the ClusterGateway.
func (e *examination) route() string {
	if e.gateway == nil {
		return ""
	}
	return e.gateway.Status.Route
}

func (e *examination) ok(stage Stage, format string, args ...any) {
	e.findings = append(e.findings, Finding{Stage: stage, State: OK, Message: untrusted.Text(fmt.Sprintf(format, args...))})
}

func (e *examination) unknown(stage Stage, format string, args ...any) {
	e.findings = append(e.findings, Finding{Stage: stage, State: Unknown, Message: untrusted.Text(fmt.Sprintf(format, args...))})
}

// broken records what is wrong at a stage, and what to do next.
func (e *examination) broken(stage Stage, message, advice string) {
	e.findings = append(e.findings, Finding{Stage: stage, State: Broken, Message: e.named(untrusted.Text(message)), Advice: e.named(advice)})
}

// registerAgain is the advice to repeat the registration.
func (e *examination) registerAgain() string {
	return "run the registration again, with the flags that you used before: agent-bootstrap register " + e.name + " --cluster-kubeconfig FILE"
}
