// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/pflag"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	apiregistrationclient "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset/typed/apiregistration/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// HubOptions say where the hub is, and where in it the clusters are.
type HubOptions struct {
	// Kubeconfig is a file; empty means the Pod's own ServiceAccount.
	Kubeconfig string
	// SecretNamespace is where the cluster Secrets are.
	SecretNamespace string
	// ExecCredentialDir is the folder that exec credential plugins must lie in; empty means that none may run.
	ExecCredentialDir string
}

// NewHubOptions returns the defaults.
func NewHubOptions() *HubOptions { return &HubOptions{SecretNamespace: v1alpha1.DefaultNamespace} }

// AddFlags adds the flags of the group.
func (o *HubOptions) AddFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.Kubeconfig, "kubeconfig", o.Kubeconfig,
		"Kubeconfig file of the hub cluster. Empty: the ServiceAccount of the Pod that the gateway runs in.")
	fs.StringVar(&o.SecretNamespace, "secret-namespace", o.SecretNamespace,
		"Namespace of the hub in which each Secret with the label cluster.core.oam.dev/cluster-credential-type is a cluster.")
	fs.StringVar(&o.ExecCredentialDir, "exec-credential-dir", o.ExecCredentialDir,
		"Folder of the exec credential plugins that the Secrets of clusters may name. Empty: none may be run.")
}

// Validate returns every fault.
func (o *HubOptions) Validate() []error {
	var errs []error
	if faults := validation.IsDNS1123Label(o.SecretNamespace); len(faults) > 0 {
		errs = append(errs, fmt.Errorf("--secret-namespace %q: %s", o.SecretNamespace, faults[0]))
	}
	if o.ExecCredentialDir != "" {
		if info, err := os.Stat(o.ExecCredentialDir); err != nil {
			errs = append(errs, fmt.Errorf("--exec-credential-dir: %w", err))
		} else if !info.IsDir() {
			errs = append(errs, fmt.Errorf("--exec-credential-dir %s is not a folder", o.ExecCredentialDir))
		}
	}
	return errs
}

// client returns a client of the hub without a rate limit of its own: the hub has priority and fairness, and what a client
// here waits for, users wait for.
func (o *HubOptions) client() (kubernetes.Interface, error) {
	config, err := o.restConfig()
	if err != nil {
		return nil, err
	}
	config.QPS = -1
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	return kubernetes.NewForConfig(rest.AddUserAgent(config, "cluster-gateway"))
}

// apiServices returns a client of the hub's APIServices.
func (o *HubOptions) apiServices() (apiregistrationclient.APIServiceInterface, error) {
	config, err := o.restConfig()
	if err != nil {
		return nil, err
	}
	client, err := apiregistrationclient.NewForConfig(rest.AddUserAgent(config, "cluster-gateway"))
	if err != nil {
		return nil, err
	}
	return client.APIServices(), nil
}

// explain says of an error of the hub's which flag it is about, and what to do.
func (o *HubOptions) explain(err error) error {
	from := "--kubeconfig " + o.Kubeconfig
	if o.Kubeconfig == "" {
		from = "the ServiceAccount of the Pod (there is no --kubeconfig)"
	}
	switch {
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("%s: the hub does not accept the credential: %w", from, err)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%s: the hub does not allow what the gateway needs; manifests/gateway/rbac.yaml has it: %w", from, err)
	case apierrors.ReasonForError(err) == metav1.StatusReasonUnknown: // none of the API server's
		return fmt.Errorf("%s: the hub cannot be reached; check the server's address and CA there, and that the hub runs: %w", from, err)
	default:
		return fmt.Errorf("%s: %w", from, err)
	}
}

func (o *HubOptions) restConfig() (*rest.Config, error) {
	if o.Kubeconfig == "" {
		config, err := rest.InClusterConfig()
		if errors.Is(err, rest.ErrNotInCluster) {
			return nil, errors.New("--kubeconfig is needed: the gateway does not run in a Pod, so there is no ServiceAccount to use instead")
		}
		return config, err
	}
	config, err := clientcmd.BuildConfigFromFlags("", o.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig %s: %w", o.Kubeconfig, err)
	}
	return config, nil
}
