// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

const (
	routeTunnel = string(cluster.RouteTunnel)
	routeDirect = string(cluster.RouteDirect)
)

// Helps of flags that several commands have.
const (
	accessHelp = "What the gateway may do in the cluster. Everyone who may use the cluster through the hub has the same rights. One of: admin, view, or the name of a ClusterRole in the cluster. " +
		"With --identity=impersonate, the most that callers may do: admin (what the cluster's RBAC allows them) or view (only reading)."
	tunnelAddressHelp       = "Address (host:port) of the tunnel server that agents connect to. Default: the address that the gateway publishes on the hub."
	tokenLifetimeHelp       = "Lifetime of the gateway's token. The cluster can issue a token with a shorter lifetime."
	certificateLifetimeHelp = "Lifetime of the agent's certificate."
	dryRunHelp              = "Change nothing, and print what the command would do."
)

// credentialOptions are the flags of the commands that create credentials.
type credentialOptions struct {
	tunnelAddress, outDir        string
	tokenLifetime, agentLifetime time.Duration
	dryRun                       bool
}

func newCredentialOptions() credentialOptions {
	return credentialOptions{tokenLifetime: registration.DefaultTokenLifetime, agentLifetime: pki.DefaultAgentLifetime}
}

func (o *credentialOptions) addFlags(fs *pflag.FlagSet, outDirHelp string) {
	fs.StringVar(&o.tunnelAddress, "tunnel-address", o.tunnelAddress, tunnelAddressHelp)
	fs.StringVar(&o.outDir, "out-dir", o.outDir, outDirHelp)
	fs.DurationVar(&o.tokenLifetime, "token-lifetime", o.tokenLifetime, tokenLifetimeHelp)
	fs.DurationVar(&o.agentLifetime, "certificate-lifetime", o.agentLifetime, certificateLifetimeHelp)
	fs.BoolVar(&o.dryRun, "dry-run", o.dryRun, dryRunHelp)
}

func (o *credentialOptions) validate() []error {
	var errs []error
	if o.tunnelAddress != "" {
		if err := cluster.CheckAddress(o.tunnelAddress); err != nil {
			errs = append(errs, fmt.Errorf("invalid --tunnel-address %q: %w", o.tunnelAddress, err))
		}
	}
	if o.tokenLifetime < registration.MinTokenLifetime {
		errs = append(errs, fmt.Errorf("invalid --token-lifetime %q: must be at least %s, the minimum of Kubernetes", o.tokenLifetime, registration.MinTokenLifetime))
	}
	if o.agentLifetime <= 0 {
		errs = append(errs, fmt.Errorf("invalid --certificate-lifetime %q: must be greater than 0", o.agentLifetime))
	}
	return errs
}

// validateAccess returns an error for a value of --access or --endpoint that cannot be used.
func validateAccess(access, endpoint string) []error {
	var errs []error
	if access == "" {
		errs = append(errs, errors.New(`invalid --access "": must be admin, view or the name of a ClusterRole`))
	}
	if endpoint != "" {
		if err := cluster.CheckEndpoint(endpoint); err != nil { // the value is not shown: it may hold a password
			errs = append(errs, fmt.Errorf("invalid --endpoint: %w", err))
		}
	}
	return errs
}

type registerOptions struct {
	credentialOptions
	identityOptions
	cluster              clusterOptions
	route, endpoint      string
	serverName, proxyURL string
	agentValues          agentValuesFlag
	wait                 time.Duration
	adopt, takeOver      bool
}

func (a *app) registerCommand() *cobra.Command {
	o := &registerOptions{credentialOptions: newCredentialOptions(), route: routeTunnel, wait: 2 * time.Minute}
	cmd := &cobra.Command{
		Use:   "register NAME --cluster-kubeconfig FILE",
		Short: "Register a cluster, and wait until it can be reached",
		Long: `register makes a cluster reachable through the gateway as NAME:

  - In the cluster, it applies a ServiceAccount for the gateway with the rights of --access. Unless you
    set --route=direct, it also applies an agent, which connects to the gateway.
  - On the hub, it writes a Secret with the cluster's address, CA and token.

Then it waits until the cluster answers. You can run it again at any time: it keeps certificates and
tokens that are still valid.

--route=tunnel requires the gateway's own tunnel server (the gateway's flag --tunnel-mode=embedded).
For konnectivity-servers that you run yourself (--tunnel-mode=external), set up the agent by hand: see
docs/register.md.`,
		Example: `  # Behind a firewall. The agent runs in the cluster.
  agent-bootstrap register edge-1 --cluster-kubeconfig edge-1.kubeconfig

  # The agent runs as a process: its certificate, flags and a systemd unit are written to a folder.
  agent-bootstrap register edge-1 --cluster-kubeconfig edge-1.kubeconfig --out-dir ./edge-1-agent

  # A cluster that the gateway can reach; users may only read.
  agent-bootstrap register nearby --cluster-kubeconfig nearby.kubeconfig --route direct --access view

  # The kubeconfig's server is an address that only your machine can reach.
  agent-bootstrap register nearby --cluster-kubeconfig nearby.kubeconfig --route direct --endpoint https://nearby.example.com:6443

  # The cluster sees the callers themselves. Members of the group platform are administrators there.
  agent-bootstrap register edge-1 --cluster-kubeconfig edge-1.kubeconfig --admin-group platform

  # Print what the command would apply, and change nothing.
  agent-bootstrap register edge-1 --cluster-kubeconfig edge-1.kubeconfig --dry-run -o yaml`,
		Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			r := &registerRun{app: a, o: o, name: args[0]}
			return r.run(cmd.Context())
		},
	}
	fs := cmd.Flags()
	o.cluster.addFlags(fs, ". Required")
	fs.StringVar(&o.route, "route", o.route, "How the gateway reaches the cluster. tunnel: an agent in the cluster connects to the gateway. direct: the gateway connects to the cluster.")
	o.identityOptions.addFlags(fs)
	fs.StringVar(&o.endpoint, "endpoint", o.endpoint,
		"URL of the cluster's API server, as the agent (tunnel) or the gateway (direct) reaches it. Default: https://kubernetes.default.svc:443 for an agent in Pods, otherwise the server in --cluster-kubeconfig.")
	fs.StringVar(&o.serverName, "tls-server-name", o.serverName,
		"Name in the API server's certificate. Default: tls-server-name in --cluster-kubeconfig, which is ignored for an agent in Pods. '': use the host of the endpoint.")
	fs.StringVar(&o.proxyURL, "proxy-url", o.proxyURL,
		"With --route=direct: proxy between the gateway and the API server. Default: proxy-url in --cluster-kubeconfig. '': none.")
	o.credentialOptions.addFlags(fs, "Folder for the files of an agent that runs as a process: certificate, key, flags and a systemd unit. No agent is installed in the cluster.")
	o.agentValues.addFlag(fs, "Default: the values of the earlier registration; '' removes them.")
	fs.DurationVar(&o.wait, "wait", o.wait, "How long to wait until the cluster answers through the gateway. 0: do not wait.")
	fs.BoolVar(&o.adopt, "adopt", o.adopt, "Use an existing Secret of this name on the hub that was written by hand. Its content is replaced.")
	fs.BoolVar(&o.takeOver, "take-over", o.takeOver, "Register a cluster that is already registered with another hub, for example after this hub was restored from a backup. The cluster then belongs to this hub.")
	a.addOutput(fs, "the objects that are applied, without their secret parts,")
	return cmd
}

func (o *registerOptions) validate(name string) error {
	errs := append(o.credentialOptions.validate(), validateAccess(o.access, o.endpoint)...)
	errs = append(errs, checkName(name), o.identityOptions.validate())
	if o.cluster.kubeconfig == "" {
		errs = append(errs, errors.New("--cluster-kubeconfig is required: the kubeconfig of the cluster to register"))
	} else if _, _, err := loadKubeconfig("--cluster-kubeconfig", o.cluster.kubeconfig, o.cluster.context); err != nil {
		errs = append(errs, err)
	}
	if o.route != routeTunnel && o.route != routeDirect {
		errs = append(errs, fmt.Errorf("invalid --route %q: must be tunnel or direct", o.route))
	}
	if o.route == routeDirect && o.outDir != "" {
		errs = append(errs, errors.New("--out-dir cannot be used with --route=direct, which has no agent"))
	}
	errs = append(errs, o.agentValues.validate(o.form() == registration.FormPods))
	if o.proxyURL != "" && o.route != routeDirect {
		errs = append(errs, errors.New("--proxy-url requires --route=direct. For an agent in Pods, set HTTPS_PROXY with --agent-values"))
	}
	if o.wait < 0 {
		errs = append(errs, fmt.Errorf("invalid --wait %q: must not be negative", o.wait))
	}
	return errors.Join(errs...)
}

// form returns the form of registration that the flags ask for.
func (o *registerOptions) form() registration.Form {
	switch {
	case o.route == routeDirect:
		return registration.FormDirect
	case o.outDir != "":
		return registration.FormProcess
	default:
		return registration.FormPods
	}
}

// registerRun is one run of register: read, plan, authorize, apply.
type registerRun struct {
	*app
	o    *registerOptions
	name string

	hub, cluster *clusterClient
	certificates *tunnelCertificates
	agentValues  *registration.AgentValues
	state        registration.State
	// spec is complete once the hub has been read.
	spec registration.Spec
	plan *registration.Plan
}

func (r *registerRun) run(ctx context.Context) (err error) {
	r.agentValues, err = r.o.agentValues.read()
	if err := errors.Join(r.o.validate(r.name), r.checkOutput(), err); err != nil {
		return err
	}
	if r.o.dryRun {
		r.say("Registering cluster %q (dry run: nothing is changed)", r.name)
	} else {
		r.say("Registering cluster %q", r.name)
	}
	for _, phase := range []func(context.Context) error{r.read, r.makePlan, r.authorize, r.apply} {
		if err := phase(ctx); err != nil {
			return err
		}
	}
	if r.output != "" {
		var documents []any
		for _, o := range r.plan.Objects() {
			documents = append(documents, o.Object)
		}
		return r.print(documents...)
	}
	r.printNext()
	return nil
}

// makePlan refuses what cannot work before anything is changed.
func (r *registerRun) makePlan(context.Context) (err error) {
	r.plan, err = registration.NewPlan(r.spec, r.state)
	if err != nil {
		return err
	}
	r.reportIdentity(&r.o.identityOptions, r.spec)
	for _, note := range r.plan.Notes {
		r.say("  %-12s %s", "note", note)
	}
	return nil
}

// ifGiven returns the value of a flag if it was set.
func (o *registerOptions) ifGiven(name, value string) *string {
	if !o.given.Changed(name) {
		return nil
	}
	return &value
}

func (r *registerRun) makeSpec() (err error) {
	r.spec, err = r.o.into(registration.Spec{
		Name: r.name, Form: r.o.form(), Endpoint: r.o.endpoint,
		ServerName: r.o.ifGiven("tls-server-name", r.o.serverName), ProxyURL: r.o.ifGiven("proxy-url", r.o.proxyURL),
		Adopt: r.o.adopt, TakeOver: r.o.takeOver, AgentValues: r.agentValues, Now: r.Now(),
	}).WithIdentity(r.state.Hub.Secret)
	return err
}

// printNext prints what to do next.
func (r *registerRun) printNext() {
	if r.o.dryRun {
		r.say("\nNothing was changed.")
		return
	}
	r.say("\nCluster %q is registered.", r.name)
	if r.o.outDir != "" {
		r.say("\nThe agent's files are in %s. To run the agent:\n  proxy-agent $(cat %s/%s)\nor install the systemd unit %s/%s.", r.o.outDir, r.o.outDir, fileFlags, r.o.outDir, fileUnit)
	}
	flags := ""
	if r.app.hub.kubeconfig != "" {
		flags = " --kubeconfig " + r.app.hub.kubeconfig
	}
	r.say("\nTo use it with your own credential for the hub:\n  agent-bootstrap kubeconfig %s%s -o %s.kubeconfig\n  kubectl --kubeconfig %s.kubeconfig get namespaces", r.name, flags, r.name, r.name)
}
