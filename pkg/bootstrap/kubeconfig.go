// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/client"
)

const (
	endpointHub     = "hub"
	endpointGateway = "gateway"

	// stdout is the file's name that means the standard output.
	stdout = "-"
)

type kubeconfigOptions struct {
	endpoint, address, caFile, file string
	merge, dryRun                   bool
}

func (a *app) kubeconfigCommand() *cobra.Command {
	o := &kubeconfigOptions{endpoint: endpointHub}
	cmd := &cobra.Command{
		Use:   "kubeconfig NAME",
		Short: "Print a kubeconfig that reaches a cluster through the gateway",
		Long: `kubeconfig prints a kubeconfig with one context, NAME. Its credential is your own for the hub: what the hub's kubeconfig has,
exec plugins and client certificates included. With --merge the context is added to a kubeconfig that exists, and its current
context stays as it is.`,
		Example: `  agent-bootstrap kubeconfig edge-1 -o edge-1.kubeconfig
  kubectl --kubeconfig edge-1.kubeconfig get nodes

  # Into your own kubeconfig.
  agent-bootstrap kubeconfig edge-1 --merge
  kubectl --context edge-1 get nodes

  # Past the hub's API server, one hop less.
  agent-bootstrap kubeconfig edge-1 --endpoint gateway --gateway-address gateway.example.com:8443`,
		Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error { return a.kubeconfig(cmd.Context(), args[0], o) },
	}
	fs := cmd.Flags()
	fs.StringVar(&o.endpoint, "endpoint", o.endpoint, "hub: by the hub's API server. gateway: by the gateway's own endpoint.")
	fs.StringVar(&o.address, "gateway-address", o.address, "host:port of the gateway's own endpoint; with --endpoint=gateway.")
	fs.StringVar(&o.caFile, "gateway-ca-file", o.caFile, "CA of the gateway's own endpoint, PEM. Default: the one that the hub has for it.")
	fs.StringVarP(&o.file, "output", "o", o.file, "Write to this file instead of the standard output, which is -.")
	fs.BoolVar(&o.merge, "merge", o.merge, "Add it to the file in -o, or to your own kubeconfig.")
	fs.BoolVar(&o.dryRun, "dry-run", o.dryRun, "Write no file, and say what would be.")
	return cmd
}

func (a *app) kubeconfig(ctx context.Context, name string, o *kubeconfigOptions) error {
	if err := checkName(name); err != nil {
		return err
	}
	switch {
	case o.endpoint != endpointHub && o.endpoint != endpointGateway:
		return fmt.Errorf("--endpoint must be hub or gateway, and is %q", o.endpoint)
	case o.endpoint == endpointGateway && o.address == "":
		return errors.New("--endpoint=gateway needs --gateway-address HOST:PORT: where the gateway's own endpoint is reached from here")
	case o.endpoint == endpointHub && (o.address != "" || o.caFile != ""):
		return errors.New("--gateway-address and --gateway-ca-file are for --endpoint=gateway")
	case o.merge && o.file == stdout:
		return errors.New("--merge needs a file: give -o FILE, or leave -o out for your own kubeconfig")
	}
	config, raw, err := loadKubeconfig("--kubeconfig", a.hub.kubeconfig, a.hub.context)
	if err != nil {
		return err
	}
	hub, err := newClusterClient("the hub", "--kubeconfig", config, raw)
	if err != nil {
		return err
	}
	if err := a.checkExists(ctx, hub, name); err != nil {
		return err
	}
	made, err := clusterKubeconfig(raw, name)
	if err != nil {
		return err
	}
	if o.endpoint == endpointGateway {
		if err := useGateway(ctx, hub, made.Clusters[name], name, o); err != nil {
			return err
		}
	}
	return a.writeKubeconfig(made, name, o)
}

// checkExists warns of a name that is not registered, and says so if that can be known.
func (a *app) checkExists(ctx context.Context, hub *clusterClient, name string) error {
	_, err := hub.clusterGateway(ctx, name)
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("cluster %q is not registered: agent-bootstrap list shows what is", name)
	case apierrors.IsForbidden(err): // may use it, and not look at it
		return nil
	default:
		return hub.explain(err)
	}
}

// clusterKubeconfig makes of the hub's kubeconfig one of a cluster, which stands on its own: files are part of it.
func clusterKubeconfig(hub *clientcmdapi.Config, name string) (*clientcmdapi.Config, error) {
	own := hub.DeepCopy()
	if err := clientcmdapi.MinifyConfig(own); err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	// Paths in it are absolute already: loading it did that.
	hubContext := own.Contexts[own.CurrentContext]
	endpoint, user := own.Clusters[hubContext.Cluster], own.AuthInfos[hubContext.AuthInfo]
	if endpoint == nil {
		return nil, fmt.Errorf("--kubeconfig: its context %q has no cluster", own.CurrentContext)
	}
	if user == nil {
		user = clientcmdapi.NewAuthInfo()
	}
	endpoint.Server = strings.TrimSuffix(endpoint.Server, "/") + client.ProxyPath(name)
	if _, err := url.Parse(endpoint.Server); err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	made := clientcmdapi.NewConfig()
	made.Clusters[name] = endpoint
	made.AuthInfos[name] = user
	made.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	made.CurrentContext = name
	// A token file and an exec plugin's command stay files, and are renewed by who made them.
	if err := clientcmdapi.FlattenConfig(made); err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	for _, o := range []*string{&endpoint.LocationOfOrigin, &user.LocationOfOrigin} {
		*o = ""
	}
	return made, nil
}

// useGateway leads to the gateway's own endpoint.
func useGateway(ctx context.Context, hub *clusterClient, endpoint *clientcmdapi.Cluster, name string, o *kubeconfigOptions) error {
	service, ca, err := gatewayTrust(ctx, hub)
	if err != nil && o.caFile == "" {
		return err
	}
	if o.caFile != "" {
		if ca, err = os.ReadFile(o.caFile); err != nil {
			return fmt.Errorf("--gateway-ca-file: %w", err)
		}
		service = ""
	}
	address := strings.TrimSuffix(o.address, "/")
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	if u, err := url.Parse(address); err != nil || u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("--gateway-address must be host:port, and is %q", o.address)
	}
	*endpoint = clientcmdapi.Cluster{Server: address + client.ProxyPath(name), CertificateAuthorityData: ca, TLSServerName: service}
	return nil
}

// gatewayTrust is what the hub verifies the gateway with.
func gatewayTrust(ctx context.Context, hub *clusterClient) (serverName string, ca []byte, err error) {
	gvr := schema.GroupVersionResource{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"}
	o, err := hub.dyn.Resource(gvr).Get(ctx, v1alpha1.SchemeGroupVersion.Version+"."+v1alpha1.GroupName, metav1.GetOptions{})
	if err != nil {
		return "", nil, fmt.Errorf("the gateway's CA is not known: give --gateway-ca-file (%w)", err)
	}
	var spec struct {
		Spec struct {
			CABundle []byte `json:"caBundle"`
			Service  struct {
				Name      string `json:"name"`
				Namespace string `json:"namespace"`
			} `json:"service"`
		} `json:"spec"`
	}
	if err := fromUnstructured(o, &spec); err != nil {
		return "", nil, err
	}
	if len(spec.Spec.CABundle) == 0 {
		return "", nil, errors.New("the gateway's CA is not known: the APIService on the hub has no caBundle. Give --gateway-ca-file")
	}
	return spec.Spec.Service.Name + "." + spec.Spec.Service.Namespace + ".svc", spec.Spec.CABundle, nil
}

func (a *app) writeKubeconfig(made *clientcmdapi.Config, name string, o *kubeconfigOptions) error {
	if o.merge {
		return a.mergeKubeconfig(made, name, o)
	}
	data, err := clientcmd.Write(*made)
	if err != nil {
		return err
	}
	switch {
	case o.file == "" || o.file == stdout:
		_, err = a.Out.Write(data)
		return err
	case o.dryRun:
		a.say("A kubeconfig with the context %q would be written to %s. Nothing was changed.", name, o.file)
		return nil
	}
	if err := putFile(o.file, data, 0o600); err != nil {
		return fmt.Errorf("-o: %w", err)
	}
	a.say("kubectl --kubeconfig %s get namespaces", o.file)
	return nil
}

// mergeKubeconfig adds the context to a kubeconfig that exists, or to a new one.
func (a *app) mergeKubeconfig(made *clientcmdapi.Config, name string, o *kubeconfigOptions) error {
	file := o.file
	if file == "" {
		file = clientcmd.NewDefaultPathOptions().GetDefaultFilename()
	}
	if info, err := os.Stat(file); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("--merge: %s is no file that a kubeconfig can be read from and written to", file)
	}
	into, err := clientcmd.LoadFromFile(file)
	if errors.Is(err, os.ErrNotExist) {
		into, err = clientcmdapi.NewConfig(), nil
	}
	if err != nil {
		return fmt.Errorf("--merge: %w", err)
	}
	if other, exists := into.Clusters[name]; exists && !strings.HasSuffix(other.Server, client.ProxyPath(name)) {
		return fmt.Errorf("--merge: %s has another cluster %q already (%s): use -o with a file of its own", file, name, other.Server)
	}
	into.Clusters[name], into.AuthInfos[name], into.Contexts[name] = made.Clusters[name], made.AuthInfos[name], made.Contexts[name]
	if into.CurrentContext == "" {
		into.CurrentContext = name
	}
	data, err := clientcmd.Write(*into)
	if err != nil {
		return err
	}
	if o.dryRun {
		a.say("Context %q would be in %s. Nothing was changed.", name, file)
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return fmt.Errorf("--merge: %w", err)
	}
	if err := putFile(file, data, 0o600); err != nil {
		return fmt.Errorf("--merge: %w", err)
	}
	a.say("Context %q is in %s:\n  kubectl --context %s get namespaces", name, file, name)
	return nil
}
