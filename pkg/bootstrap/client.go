// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

const (
	// maxClockSkew is the difference of clocks that certificates allow for: they become valid that
	// long before they are issued.
	maxClockSkew = 5 * time.Minute
	// connectTimeout bounds how long it takes to find out that nothing answers.
	connectTimeout = 10 * time.Second
)

// clusterClient is the client of a cluster, the hub or a managed one.
type clusterClient struct {
	// title is its name in messages: the hub, or the cluster "edge-1".
	title string
	// source is where its kubeconfig is from: a flag, a variable or a file.
	source string
	config *rest.Config
	// raw is the kubeconfig. It is nil if the cluster is reached through the gateway.
	raw  *clientcmdapi.Config
	kube kubernetes.Interface
	dyn  dynamic.Interface

	// version is the version of its API server; connect sets it.
	version string
	// issuesCertificates is whether the gateway of the hub issues certificates for the tunnel;
	// requireGateway sets it.
	issuesCertificates bool
	// uid identifies the cluster: the UID of its namespace kube-system. identify sets it.
	uid types.UID
}

// kubeconfigSource is where loadKubeconfig finds the kubeconfig, for messages.
func kubeconfigSource(flag, path string) string {
	switch {
	case path != "":
		return flag
	case os.Getenv(clientcmd.RecommendedConfigPathEnvVar) != "":
		return "$" + clientcmd.RecommendedConfigPathEnvVar
	}
	if _, err := os.Stat(clientcmd.RecommendedHomeFile); err == nil {
		return clientcmd.RecommendedHomeFile
	}
	return "the ServiceAccount of this Pod"
}

// loadKubeconfig reads the kubeconfig file that a flag names. If path is empty, it looks for one as
// kubectl does.
func loadKubeconfig(flag, path, kubecontext string) (*rest.Config, *clientcmdapi.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = path
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: kubecontext})
	raw, err := loader.RawConfig()
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", flag, err)
	}
	if kubecontext != "" {
		raw.CurrentContext = kubecontext
	}
	config, err := loader.ClientConfig()
	switch {
	case clientcmd.IsEmptyConfig(err) && path != "":
		return nil, nil, fmt.Errorf("%s: %s is empty, or has no current context: set a context, or use another file", flag, path)
	case clientcmd.IsEmptyConfig(err) && os.Getenv(clientcmd.RecommendedConfigPathEnvVar) != "":
		return nil, nil, fmt.Errorf("$%s: %s does not exist, is empty, or has no current context: set a context, or use another file",
			clientcmd.RecommendedConfigPathEnvVar, os.Getenv(clientcmd.RecommendedConfigPathEnvVar))
	case clientcmd.IsEmptyConfig(err):
		return nil, nil, fmt.Errorf("%s: no kubeconfig found: set %s FILE, or the environment variable KUBECONFIG", flag, flag)
	case err != nil && raw.CurrentContext != "" && raw.Contexts[raw.CurrentContext] == nil:
		return nil, nil, fmt.Errorf("%s: there is no context %q. The contexts are: %s", flag, raw.CurrentContext, strings.Join(slices.Sorted(maps.Keys(raw.Contexts)), ", "))
	case err != nil:
		return nil, nil, fmt.Errorf("%s: %w", flag, err)
	}
	return config, &raw, nil
}

func newClusterClient(title, source string, config *rest.Config, raw *clientcmdapi.Config) (*clusterClient, error) {
	config = rest.CopyConfig(config)
	config.QPS = -1
	config.WarningHandler = rest.NoWarnings{}
	config = rest.AddUserAgent(config, registration.FieldManager)
	s := &clusterClient{title: title, source: source, config: config, raw: raw}
	httpClient, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", source, err)
	}
	if s.kube, err = kubernetes.NewForConfigAndClient(config, httpClient); err != nil {
		return nil, fmt.Errorf("%s: %w", source, err)
	}
	if s.dyn, err = dynamic.NewForConfigAndClient(config, httpClient); err != nil {
		return nil, fmt.Errorf("%s: %w", source, err)
	}
	return s, nil
}

// maxVersionAnswer bounds the answer to a request for the version.
const maxVersionAnswer = 1 << 20

// connect checks that the cluster answers, and reads its version and the difference between its
// clock and now. It needs only the permissions that every user has.
func (c *clusterClient) connect(ctx context.Context, now func() time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	// Without client-go, which does not return the header Date.
	httpClient, err := rest.HTTPClientFor(c.config)
	if err != nil {
		return fmt.Errorf("%s: %w", c.source, err)
	}
	base, _, err := rest.DefaultServerUrlFor(c.config)
	if err != nil {
		return fmt.Errorf("%s: %w", c.source, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base.JoinPath("version").String(), nil)
	if err != nil {
		return err
	}
	resp, err := httpClient.Do(req)
	if err != nil {
		return c.explain(err)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxVersionAnswer))
	_ = resp.Body.Close() // a body that was read completely
	if err != nil {
		return c.explain(err)
	}
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		if skew := now().Sub(date); skew.Abs() > maxClockSkew {
			return fmt.Errorf("the clock of this machine and that of %s are %s apart, so that new certificates and tokens would not be accepted: correct the clock that is wrong",
				c.title, skew.Abs().Round(time.Second))
		}
	}
	if resp.StatusCode != http.StatusOK {
		return c.explain(apierrors.NewGenericServerResponse(resp.StatusCode, "get", schema.GroupResource{}, "version", strings.TrimSpace(string(body)), 0, true))
	}
	var info version.Info
	if err := json.Unmarshal(body, &info); err != nil {
		return fmt.Errorf("%s: %s points to %s, which is not a Kubernetes API server: %w", c.title, c.source, c.config.Host, err)
	}
	c.version = info.GitVersion
	return nil
}

// identify reads the UID of the cluster. The caller must be allowed to read the namespace
// kube-system.
func (c *clusterClient) identify(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	namespace, err := c.kube.CoreV1().Namespaces().Get(ctx, metav1.NamespaceSystem, metav1.GetOptions{})
	if err != nil {
		return c.explain(err)
	}
	c.uid = namespace.UID
	return nil
}

// kubeconfigCluster returns the part of the kubeconfig about the cluster, if there is a kubeconfig.
func (c *clusterClient) kubeconfigCluster() *clientcmdapi.Cluster {
	if c.raw == nil {
		return nil
	}
	current, err := contextOf(c.raw)
	if err != nil { // client-go has read it, so this is a configuration from inside a Pod
		return nil
	}
	return current.cluster
}

// unanswered reports whether a review about the caller failed because the cluster does not answer
// the question: it does not serve this kind of review, or the caller may not create one. Kubernetes
// has SelfSubjectReviews since 1.28. The ClusterRole system:basic-user allows every user to create
// reviews.
func unanswered(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.IsForbidden(err) || apierrors.IsMethodNotSupported(err)
}

// account returns the name of the caller for messages.
func (c *clusterClient) account(ctx context.Context) string {
	if name := c.whoami(ctx); name != "" {
		return fmt.Sprintf("your account %q", name)
	}
	return "your account"
}

// whoami returns the name of the caller in the cluster, or an empty string if the cluster does not
// return it.
func (c *clusterClient) whoami(ctx context.Context) string {
	review, err := c.kube.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return ""
	}
	return review.Status.UserInfo.Username
}

// credentialID returns the ID of the caller's credential, or an empty string if the cluster does
// not return it.
func (c *clusterClient) credentialID(ctx context.Context) string {
	review, err := c.kube.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return ""
	}
	if ids := review.Status.UserInfo.Extra["authentication.kubernetes.io/credential-id"]; len(ids) == 1 {
		return ids[0]
	}
	return ""
}

// apply applies an object. It returns the object that the server has then, or would have in a dry
// run.
func (c *clusterClient) apply(ctx context.Context, o *unstructured.Unstructured, dryRun bool) (registration.Outcome, *unstructured.Unstructured, error) {
	outcome, after, err := registration.Apply(ctx, c.dyn, o, dryRun)
	return outcome, after, c.explain(err)
}

// waitDeleted waits until an object does not exist.
func (c *clusterClient) waitDeleted(ctx context.Context, o *unstructured.Unstructured) error {
	resource, err := registration.ResourceFor(c.dyn, o)
	if err != nil {
		return err
	}
	for {
		_, err := resource.Get(ctx, o.GetName(), metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return c.explain(err)
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return fmt.Errorf("%s: %s %s is still being deleted: %w", c.title, o.GetKind(), o.GetName(), err)
		}
	}
}

// pause waits for d, or until ctx is done.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
