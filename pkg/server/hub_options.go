// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	apiregistrationclient "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset/typed/apiregistration/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/execplugin"
)

// HubOptions say how to reach the hub, and where its clusters are. [HubConfig] is their config.
type HubOptions struct {
	// Kubeconfig is a file. Empty means the ServiceAccount of the Pod.
	Kubeconfig string
	// SecretNamespace is the namespace of the Secrets of clusters.
	SecretNamespace string
	// ExecCredentialPlugins is the file that defines the exec credential plugins that Secrets can
	// select by name. Empty means that there are none.
	ExecCredentialPlugins string
	// ExecCredentialDir is the directory of the programs that Secrets can select by path. Empty means
	// that there are none. ExecCredentialEnv are the environment variables that they inherit.
	ExecCredentialDir string
	ExecCredentialEnv []string
}

// NewHubOptions returns the defaults.
func NewHubOptions() *HubOptions { return &HubOptions{SecretNamespace: v1alpha1.DefaultNamespace} }

// AddFlags adds the flags of the group.
func (o *HubOptions) AddFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.Kubeconfig, "kubeconfig", o.Kubeconfig,
		"Kubeconfig file for the hub cluster. If it is not set, the gateway uses the ServiceAccount of its Pod.")
	fs.StringVar(&o.SecretNamespace, "secret-namespace", o.SecretNamespace,
		"Namespace in the hub. Each Secret in it with the label cluster.core.oam.dev/cluster-credential-type describes one cluster.")
	fs.StringVar(&o.ExecCredentialPlugins, "exec-credential-plugins", o.ExecCredentialPlugins,
		"YAML file that defines the exec credential plugins that Secrets of clusters can select by name. The gateway reads it once, when it starts.")
	fs.StringVar(&o.ExecCredentialDir, "exec-credential-dir", o.ExecCredentialDir,
		"Directory of exec credential plugins. Anyone who can write the Secret of a cluster can make the gateway run these programs, with any arguments. To fix the arguments, use --exec-credential-plugins instead.")
	fs.StringArrayVar(&o.ExecCredentialEnv, "exec-credential-env", o.ExecCredentialEnv,
		"Name of an environment variable of the gateway that programs in --exec-credential-dir inherit. Can be repeated. They inherit no other variables, not even PATH or HOME.")
}

// Validate returns every fault.
func (o *HubOptions) Validate() []error {
	var errs []error
	if faults := validation.IsDNS1123Label(o.SecretNamespace); len(faults) > 0 {
		errs = append(errs, invalid("secret-namespace", o.SecretNamespace, "must be a namespace: "+faults[0]))
	}
	if o.ExecCredentialDir != "" {
		if info, err := os.Stat(o.ExecCredentialDir); err != nil {
			errs = append(errs, invalidError("exec-credential-dir", o.ExecCredentialDir, err))
		} else if !info.IsDir() {
			errs = append(errs, invalid("exec-credential-dir", o.ExecCredentialDir, "must be a directory"))
		}
	}
	for _, name := range o.ExecCredentialEnv {
		if faults := validation.IsEnvVarName(name); len(faults) > 0 {
			errs = append(errs, invalid("exec-credential-env", name, "must be the name of an environment variable: "+faults[0]))
		} else if o.ExecCredentialDir == "" {
			errs = append(errs, invalid("exec-credential-env", name, "must not be set without --exec-credential-dir"))
		}
	}
	_, faults := o.plugins()
	return append(errs, faults...)
}

// plugins reads the file that defines plugins. It returns every fault of the file. The result is
// nil if there is no file.
func (o *HubOptions) plugins() (*execplugin.Plugins, []error) {
	if o.ExecCredentialPlugins == "" {
		return nil, nil
	}
	plugins, err := execplugin.Load(o.ExecCredentialPlugins)
	if err == nil {
		return plugins, nil
	}
	faults := []error{err}
	var all utilerrors.Aggregate
	if errors.As(err, &all) {
		faults = all.Errors()
	}
	for i, fault := range faults {
		faults[i] = invalidError("exec-credential-plugins", o.ExecCredentialPlugins, fault)
	}
	return nil, faults
}

// parseOptions returns the part of the options of the parser that this group has.
func (o *HubOptions) parseOptions() (cluster.ParseOptions, error) {
	plugins, faults := o.plugins()
	return cluster.ParseOptions{
		ExecPlugins: plugins, ExecCredentialDir: o.ExecCredentialDir, ExecCredentialEnv: o.ExecCredentialEnv,
	}, utilerrors.NewAggregate(faults)
}

// HubConfig is how the gateway reaches the hub.
type HubConfig struct {
	// Client has no rate limit of its own. The hub has priority and fairness, and what a client here
	// waits for, users wait for.
	Client kubernetes.Interface
	// APIServices is a client of the hub's APIServices.
	APIServices apiregistrationclient.APIServiceInterface
	// Dynamic is a client of resources of the hub that the gateway has no types for.
	Dynamic dynamic.Interface
	// SecretNamespace is the namespace of the Secrets of clusters.
	SecretNamespace string
	// Kubeconfig is the file that the clients are from. Empty means the ServiceAccount of the Pod.
	Kubeconfig string
}

// config makes the clients. It does not connect.
func (o *HubOptions) config() (HubConfig, error) {
	config, err := o.restConfig()
	if err != nil {
		return HubConfig{}, err
	}
	config = rest.AddUserAgent(config, "cluster-gateway")
	services, err := apiregistrationclient.NewForConfig(config)
	if err != nil {
		return HubConfig{}, err
	}
	config = rest.CopyConfig(config)
	config.QPS = -1
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		return HubConfig{}, err
	}
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return HubConfig{}, err
	}
	return HubConfig{Client: client, APIServices: services.APIServices(), Dynamic: dyn, SecretNamespace: o.SecretNamespace, Kubeconfig: o.Kubeconfig}, nil
}

func (o *HubOptions) restConfig() (*rest.Config, error) {
	if o.Kubeconfig == "" {
		config, err := rest.InClusterConfig()
		if errors.Is(err, rest.ErrNotInCluster) {
			return nil, invalid("kubeconfig", "", "must be set, because the gateway does not run in a Pod and has no ServiceAccount")
		}
		return config, err
	}
	config, err := clientcmd.BuildConfigFromFlags("", o.Kubeconfig)
	if clientcmd.IsEmptyConfig(err) {
		return nil, invalid("kubeconfig", o.Kubeconfig, "the file is empty, or has no current context")
	}
	if err != nil {
		return nil, invalidError("kubeconfig", o.Kubeconfig, err)
	}
	return config, nil
}

// explain adds to an error of the hub which credential was used and what to do.
func (c HubConfig) explain(err error) error {
	from := "--kubeconfig " + c.Kubeconfig
	if c.Kubeconfig == "" {
		from = "the ServiceAccount of the Pod (--kubeconfig is not set)"
	}
	switch {
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("%s: the hub does not accept the credential: %w", from, err)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%s: the hub does not allow what the gateway needs; apply manifests/gateway/rbac.yaml: %w", from, err)
	case strings.Contains(err.Error(), "does not appear to be a protobuf message"): // it has no type
		return fmt.Errorf("%s: the server is not a Kubernetes API server; check the address in it: %w", from, err)
	case apierrors.ReasonForError(err) == metav1.StatusReasonUnknown: // not an answer of the API server
		return fmt.Errorf("%s: cannot reach the hub; check the server's address and CA in it, and that the hub runs: %w", from, err)
	default:
		return fmt.Errorf("%s: %w", from, err)
	}
}
