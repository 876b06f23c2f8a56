// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// Values of --endpoint.
const (
	endpointHub     = "hub"
	endpointGateway = "gateway"
)

// stdout is the name of a file that means the standard output.
const stdout = "-"

// endpointOptions are the flags that say by which server a cluster is reached.
type endpointOptions struct{ endpoint, address, caFile string }

func (o *endpointOptions) addFlags(fs *pflag.FlagSet) {
	o.endpoint = endpointHub
	fs.StringVar(&o.endpoint, "endpoint", o.endpoint, "Where requests are sent: hub for the hub's API server, gateway for the gateway's own endpoint.")
	fs.StringVar(&o.address, "gateway-address", o.address, "host:port of the gateway's own endpoint. Only for --endpoint=gateway.")
	fs.StringVar(&o.caFile, "gateway-ca-file", o.caFile, "File with the CA of the gateway's own endpoint, in PEM. Default: the CA in the gateway's APIService on the hub.")
}

func (o *endpointOptions) validate() error {
	switch {
	case o.endpoint != endpointHub && o.endpoint != endpointGateway:
		return fmt.Errorf("invalid --endpoint %q: must be hub or gateway", o.endpoint)
	case o.endpoint == endpointGateway && o.address == "":
		return errors.New("--endpoint=gateway requires --gateway-address HOST:PORT, the address of the gateway's own endpoint as you reach it")
	case o.endpoint == endpointHub && (o.address != "" || o.caFile != ""):
		return errors.New("--gateway-address and --gateway-ca-file require --endpoint=gateway")
	}
	return nil
}

type kubeconfigOptions struct {
	endpointOptions
	selection
	file, entry                 string
	merge, force, dryRun, prune bool
}

func (a *app) kubeconfigCommand() *cobra.Command {
	o := &kubeconfigOptions{prune: true}
	cmd := &cobra.Command{
		Use:   "kubeconfig (NAME | -l LABELS | --all)",
		Short: "Print a kubeconfig for a cluster, or add the cluster to yours",
		Long: `kubeconfig prints a kubeconfig that reaches the cluster NAME through the gateway. It has one cluster, one
user and one context. The user is your own on the hub: the command copies your credential and the
settings of the connection from the hub's kubeconfig. Certificates and keys are embedded. Token files and
exec plugins are not: the new kubeconfig refers to them by their paths.

With --merge, the command adds the entries to the file that kubectl config would change: the one in
--kubeconfig, or in $KUBECONFIG, or ~/.kube/config. With -o, it adds them to that file. The current
context does not change if there is one. Running the command again updates the entries. It never overwrites an
entry that is not for this cluster of this hub, unless you set --force. Before it changes a file, it
writes a backup beside it (FILE.agent-bootstrap.bak).

With --all or -l LABELS in place of NAME, the command does this for all registered clusters, or for those
with these labels. With --merge, it then also removes the entries that it wrote for clusters of this hub
that are not registered any more. It keeps an entry that was changed by hand, or that another context
uses. The command lists what it added, updated and removed, and exits with an error if it left something
out.

The server in the kubeconfig is a URL with a path. kubectl, client-go and Helm support that. "kubectl
proxy" needs the flag --append-server-path: without it, "kubectl proxy" serves the objects of the hub, not
those of the cluster.`,
		Example: `  # Write a separate file.
  agent-bootstrap kubeconfig edge-1 -o edge-1.kubeconfig
  kubectl --kubeconfig edge-1.kubeconfig get nodes

  # Add the cluster to your own kubeconfig.
  agent-bootstrap kubeconfig edge-1 --merge
  kubectl --context edge-1 get nodes

  # Keep your kubeconfig up to date with the registered clusters.
  agent-bootstrap kubeconfig --all --merge
  agent-bootstrap kubeconfig -l env=prod --merge

  # Show what --merge would change.
  agent-bootstrap kubeconfig edge-1 --merge --dry-run

  # Two hubs have a cluster edge-1: choose another name in your kubeconfig.
  agent-bootstrap kubeconfig edge-1 --merge --name hub-2-edge-1

  # kubectl proxy
  kubectl --context edge-1 proxy --append-server-path

  # Bypass the hub's API server: one hop less.
  agent-bootstrap kubeconfig edge-1 --endpoint gateway --gateway-address gateway.example.com:8443`,
		Args: o.oneNameOrFlags,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return a.kubeconfigs(cmd.Context(), o)
			}
			return a.kubeconfig(cmd.Context(), args[0], o)
		},
	}
	fs := cmd.Flags()
	o.endpointOptions.addFlags(fs)
	o.selection.addFlags(fs)
	fs.BoolVar(&o.prune, "prune", o.prune, "With --merge and several clusters: remove the entries of clusters that are not registered any more.")
	fs.StringVarP(&o.file, "output", "o", o.file, "File to write to (not a format), or - for the standard output. Default: the standard output; with --merge, the file that kubectl config would change.")
	fs.BoolVar(&o.merge, "merge", o.merge, "Add the entries to a kubeconfig, and keep what it has.")
	fs.StringVar(&o.entry, "name", o.entry, "Name of the entries (cluster, user and context) in the kubeconfig. Default: NAME.")
	fs.BoolVar(&o.force, "force", o.force, "Overwrite entries that are not for this cluster of this hub. The previous file is kept as a backup.")
	fs.BoolVar(&o.dryRun, "dry-run", o.dryRun, "Write no file, and show what would be changed or refused.")
	return cmd
}

// validate checks the flags. Without a name, they are for several clusters.
func (o *kubeconfigOptions) validate(name string) error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if name != "" {
		errs = append(errs, registration.ValidateName(name))
	} else if _, err := o.labels(); err != nil {
		errs = append(errs, err)
	}
	if name == "" && o.entry != "" {
		add("--name requires the name of one cluster")
	}
	if err := o.endpointOptions.validate(); err != nil {
		errs = append(errs, err)
	}
	switch o.file {
	case "yaml", "json", "wide", formatName:
		add("invalid --output %q: must be a file, not a format. For a file of that name: ./%[1]s", o.file)
	}
	if o.merge && o.file == stdout {
		add("invalid --output %q: --merge needs a file. Leave -o out to use your own kubeconfig", o.file)
	}
	if o.force && !o.merge && (o.file == "" || o.file == stdout) {
		add("--force requires --merge or -o FILE: there is nothing to overwrite")
	}
	return errors.Join(errs...)
}

func (a *app) kubeconfig(ctx context.Context, name string, o *kubeconfigOptions) error {
	if err := o.validate(name); err != nil {
		return err
	}
	config, raw, err := loadKubeconfig("--kubeconfig", a.hub.kubeconfig, a.hub.context)
	if err != nil {
		return err
	}
	hub, err := newClusterClient("the hub", kubeconfigSource("--kubeconfig", a.hub.kubeconfig), config, raw)
	if err != nil {
		return err
	}
	if err := a.checkExists(ctx, hub, name); err != nil {
		return err
	}
	to, err := newGatewayTarget(ctx, hub, &o.endpointOptions)
	if err != nil {
		return err
	}
	entries, err := to.entries(name, cmp.Or(o.entry, name))
	if err != nil {
		return err
	}
	return a.writeKubeconfig(ctx, entries, o)
}

// checkExists fails if the cluster is not registered, as far as the caller may know.
func (a *app) checkExists(ctx context.Context, hub *clusterClient, name string) error {
	_, err := hub.clusterGateway(ctx, name)
	switch {
	case apierrors.IsNotFound(err):
		return notRegistered(name)
	case apierrors.IsForbidden(err): // the caller may be allowed to use the cluster all the same
		return nil
	default:
		return hub.explain(err)
	}
}

// newClusterEntries returns the entries that reach a cluster with the hub's kubeconfig. config and
// raw are the same kubeconfig, as client-go uses it and as it is written.
func newClusterEntries(config *rest.Config, raw *clientcmdapi.Config, name, entry string) (*clusterEntries, error) {
	hub, err := contextOf(raw)
	if err != nil {
		return nil, err
	}
	// From config, since the server in a kubeconfig may lack the scheme.
	base, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, err
	}
	if err := hub.embedFiles(); err != nil {
		return nil, err
	}
	server := strings.TrimSuffix(base.String(), "/")
	entries := &clusterEntries{name: entry, owner: entryOwner{Hub: server, Cluster: name}, kubeconfigContext: *hub}
	if ca := hub.cluster.CertificateAuthorityData; len(ca) > 0 {
		sum := sha256.Sum256(ca)
		entries.owner.HubCA = "sha256:" + hex.EncodeToString(sum[:])
	}
	entries.cluster.Server = server + v1alpha1.ProxyPath(name)
	return entries, nil
}

// gatewayTarget makes kubeconfig entries that reach clusters through the gateway.
type gatewayTarget struct {
	hub *clusterClient
	// server, serverName and ca are those of the gateway's own endpoint. server is empty if clusters
	// are reached through the hub's API server.
	server, serverName string
	ca                 []byte
}

// newGatewayTarget finds out how to reach the endpoint that the flags name.
func newGatewayTarget(ctx context.Context, hub *clusterClient, o *endpointOptions) (*gatewayTarget, error) {
	to := &gatewayTarget{hub: hub}
	if o.endpoint != endpointGateway {
		return to, nil
	}
	to.server = strings.TrimSuffix(o.address, "/")
	if !strings.Contains(to.server, "://") {
		to.server = "https://" + to.server
	}
	if u, err := url.Parse(to.server); err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("invalid --gateway-address %q: must be host:port", o.address)
	}
	var err error
	if o.caFile == "" {
		to.serverName, to.ca, err = gatewayTrust(ctx, hub)
	} else {
		to.ca, err = readCAFile(o.caFile)
	}
	return to, err
}

// entries returns the entries for a cluster, with the caller's own credential.
func (to *gatewayTarget) entries(name, entry string) (*clusterEntries, error) {
	entries, err := newClusterEntries(to.hub.config, to.hub.raw, name, entry)
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	if to.server == "" {
		return entries, nil
	}
	// What does not depend on the server stays: the proxy, compression, and the extensions with the
	// settings of an exec plugin.
	cluster := entries.cluster
	cluster.Server, cluster.TLSServerName = to.server+v1alpha1.ProxyPath(name), to.serverName
	cluster.CertificateAuthority, cluster.CertificateAuthorityData, cluster.InsecureSkipTLSVerify = "", to.ca, false
	return entries, nil
}

func readCAFile(file string) ([]byte, error) {
	ca, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("--gateway-ca-file: %w", err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("invalid --gateway-ca-file %q: it has no certificate in PEM", file)
	}
	return ca, nil
}

// gatewayTrust returns the name and the CA by which the hub verifies the gateway.
func gatewayTrust(ctx context.Context, hub *clusterClient) (serverName string, ca []byte, err error) {
	gvr := schema.GroupVersionResource{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"}
	o, err := hub.dyn.Resource(gvr).Get(ctx, v1alpha1.SchemeGroupVersion.Version+"."+v1alpha1.GroupName, metav1.GetOptions{})
	if err != nil {
		return "", nil, fmt.Errorf("cannot read the gateway's CA from its APIService on the hub: %w\nUse --gateway-ca-file", err)
	}
	var service struct {
		Spec struct {
			CABundle []byte `json:"caBundle"`
			Service  struct {
				Name      string `json:"name"`
				Namespace string `json:"namespace"`
			} `json:"service"`
		} `json:"spec"`
	}
	if err := fromUnstructured(o, &service); err != nil {
		return "", nil, err
	}
	if len(service.Spec.CABundle) == 0 {
		return "", nil, errors.New("the gateway's APIService on the hub has no caBundle: use --gateway-ca-file")
	}
	return service.Spec.Service.Name + "." + service.Spec.Service.Namespace + ".svc", service.Spec.CABundle, nil
}

func (a *app) writeKubeconfig(ctx context.Context, entries *clusterEntries, o *kubeconfigOptions) error {
	file, others := o.file, []string(nil)
	if file == "" && o.merge {
		file, others = ownKubeconfig(a.hub.kubeconfig, entries.name)
	}
	if file == "" || file == stdout || !o.merge && isStream(file) {
		return a.printKubeconfig([]*clusterEntries{entries}, file, o)
	}
	w := &kubeconfigWriter{entries: []*clusterEntries{entries}, file: file, others: others, merge: o.merge, force: o.force, dryRun: o.dryRun, now: a.Now}
	result, err := w.write(ctx)
	if o.dryRun && result != nil && len(result.changes) > 0 {
		a.printChanges(file, result)
	}
	if err != nil {
		return err
	}
	if !o.dryRun {
		a.printWritten(entries.name, w, result)
	}
	return nil
}

// printKubeconfig writes the entries to the standard output, or to a file that is not a regular
// one, such as a pipe.
func (a *app) printKubeconfig(entries []*clusterEntries, file string, o *kubeconfigOptions) error {
	config := clientcmdapi.NewConfig()
	for _, e := range entries {
		if _, err := e.addTo(config, false); err != nil {
			return err
		}
	}
	if len(entries) == 1 {
		config.CurrentContext = entries[0].name
	}
	text, err := clientcmd.Write(*config)
	if err != nil {
		return err
	}
	switch {
	case file == "" || file == stdout:
		_, err = a.Out.Write(text)
	case o.dryRun:
		a.say("Dry run: the kubeconfig would be written to %s.", file)
	default:
		err = putFile(file, text, 0o600)
	}
	return err
}

// isStream reports whether a file exists and is not a regular one.
func isStream(file string) bool {
	info, err := os.Stat(file)
	return err == nil && !info.Mode().IsRegular()
}

// ownKubeconfig returns the file that kubectl config would write to, and the other files that
// kubectl reads. That is the file of --kubeconfig alone, if it is set. Otherwise, an entry that
// exists is written where it is.
func ownKubeconfig(explicit, entry string) (file string, others []string) {
	if explicit != "" {
		return explicit, nil
	}
	options := clientcmd.NewDefaultPathOptions()
	file = options.GetDefaultFilename()
	files := slices.Compact(options.GetEnvVarFiles())
	for _, other := range files {
		if config, err := clientcmd.LoadFromFile(other); err == nil && config.Contexts[entry] != nil {
			file = other
			break
		}
	}
	for _, other := range files {
		if other != "" && filepath.Clean(other) != filepath.Clean(file) {
			others = append(others, other)
		}
	}
	return file, others
}

// kubectlReads reports whether kubectl reads a file without --kubeconfig.
func kubectlReads(file string) bool {
	return slices.ContainsFunc(clientcmd.NewDefaultClientConfigLoadingRules().Precedence, func(own string) bool {
		return own != "" && filepath.Clean(own) == filepath.Clean(file)
	})
}

// printChanges shows what a dry run found.
func (a *app) printChanges(file string, result *writeResult) {
	a.say("Dry run: nothing was changed. In %s:", file)
	text := map[entryAction]string{
		actionAdd: "would be added", actionUpdate: "would be updated", actionKeep: "is up to date", actionRefuse: "would be refused",
		actionOverwrite: "would be overwritten", actionRemove: "would be removed", actionPrune: "would be removed",
	}
	for _, c := range result.changes {
		reason := ""
		if c.action == actionRefuse || c.action == actionOverwrite {
			reason = ": " + c.reason
		}
		a.say("  %s %q %s%s", c.kind, c.name, text[c.action], reason)
	}
	if result.currentContext {
		a.say("  current-context would be set")
	}
}

// printWritten shows what was written, and how to use it.
func (a *app) printWritten(entry string, w *kubeconfigWriter, result *writeResult) {
	kubectl := "kubectl"
	if !w.merge || !kubectlReads(w.file) {
		kubectl += " --kubeconfig " + w.file
	}
	if w.merge {
		kubectl += " --context " + entry
	}
	if result.unchanged() {
		a.say("The context %q in %s is up to date.", entry, w.file)
	} else {
		a.say("The context %q is in %s.", entry, w.file)
	}
	if result.backup != "" {
		a.say("The previous file is kept in %s.", result.backup)
	}
	a.say("To use it:\n  %s get namespaces\nkubectl proxy needs another flag, or it serves the objects of the hub:\n  %s proxy --append-server-path", kubectl, kubectl)
}
