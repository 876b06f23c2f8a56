// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

const (
	// maxClockSkew is what certificates allow for: they begin that much in the past.
	maxClockSkew = 5 * time.Minute
	// connectTimeout bounds finding out that a kubeconfig points nowhere.
	connectTimeout = 10 * time.Second
)

// clusterClient is the client of a cluster, the hub or a managed one.
type clusterClient struct {
	// title is what it is called in messages: the hub, or the cluster "edge-1".
	title string
	// source is the flag that it came from.
	source string
	config *rest.Config
	// raw is the kubeconfig; nil when the cluster is reached through the gateway.
	raw  *clientcmdapi.Config
	kube kubernetes.Interface
	dyn  dynamic.Interface

	// version is what connect found.
	version string
	// uid is which cluster it is; identify sets it.
	uid types.UID
}

// loadKubeconfig reads a kubeconfig file by a flag, or as kubectl would when path is empty.
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
	case clientcmd.IsEmptyConfig(err):
		return nil, nil, fmt.Errorf("%s: there is no kubeconfig: give %s FILE, or set KUBECONFIG", flag, flag)
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

// connect finds out whether the cluster is there, and how far its clock is from now. It takes no right beyond those that everybody has.
func (s *clusterClient) connect(ctx context.Context, now func() time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	// By hand, for the Date header.
	httpClient, err := rest.HTTPClientFor(s.config)
	if err != nil {
		return fmt.Errorf("%s: %w", s.source, err)
	}
	base, _, err := rest.DefaultServerUrlFor(s.config)
	if err != nil {
		return fmt.Errorf("%s: %w", s.source, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base.JoinPath("version").String(), nil)
	if err != nil {
		return err
	}
	resp, err := httpClient.Do(req)
	if err != nil {
		return s.explain(err)
	}
	_ = resp.Body.Close() // nothing of it is used
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		if skew := now().Sub(date); skew.Abs() > maxClockSkew {
			return fmt.Errorf("this machine's clock and that of %s are %s apart: certificates and tokens that are made now would not be accepted; set the clock that is wrong",
				s.title, skew.Abs().Round(time.Second))
		}
	}
	version, err := s.kube.Discovery().ServerVersion()
	if err != nil {
		return s.explain(err)
	}
	s.version = version.GitVersion
	return nil
}

// identify finds out which cluster it is: the UID of its namespace kube-system, which the caller must be allowed to read.
func (s *clusterClient) identify(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	namespace, err := s.kube.CoreV1().Namespaces().Get(ctx, metav1.NamespaceSystem, metav1.GetOptions{})
	if err != nil {
		return s.explain(err)
	}
	s.uid = namespace.UID
	return nil
}

// kubeconfigCluster is what the kubeconfig says about reaching the cluster, if there is a kubeconfig.
func (s *clusterClient) kubeconfigCluster() *clientcmdapi.Cluster {
	if s.raw == nil {
		return nil
	}
	current, err := contextOf(s.raw)
	if err != nil { // client-go has read it, so this is a configuration from inside a Pod
		return nil
	}
	return current.cluster
}

// explain makes of an error what a person can act on.
func (s *clusterClient) explain(err error) error {
	var dns *net.DNSError
	var op *net.OpError
	host := s.config.Host
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled):
		return errors.New("interrupted; run the same command again to go on from here")
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("%s at %s does not accept the credential in %s (401): it has expired, or is for another cluster", s.title, host, s.source)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("your account may not do this on %s: %w\nAsk for the right that is named, or use a kubeconfig (%s) that has it", s.title, err, s.source)
	case errors.As(err, &dns):
		return fmt.Errorf("%s: %s points to %s, and there is no host of that name (%w)", s.title, s.source, host, err)
	case errors.As(err, &op) && op.Op == "dial", errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %s points to %s, where nothing answers (%w): check the address, and that it can be reached from here", s.title, s.source, host, err)
	case strings.Contains(err.Error(), "x509: "): // client-go wraps these in errors without a type
		return fmt.Errorf("%s: the server at %s is not the one that %s expects: %w", s.title, host, s.source, err)
	default:
		return fmt.Errorf("%s: %w", s.title, err)
	}
}

// may asks whether the caller has a right; what is not known counts as yes, and shows when it is used.
func (s *clusterClient) may(ctx context.Context, attributes authorizationv1.ResourceAttributes) (bool, error) {
	review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &attributes}}
	answer, err := s.kube.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return false, s.explain(err)
	}
	return answer.Status.Allowed, nil
}

// whoami is the caller's name there, or "".
func (s *clusterClient) whoami(ctx context.Context) string {
	review, err := s.kube.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return ""
	}
	return review.Status.UserInfo.Username
}

// credentialID is which credential the caller is known by there, or "" if that is not said.
func (s *clusterClient) credentialID(ctx context.Context) string {
	review, err := s.kube.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return ""
	}
	if ids := review.Status.UserInfo.Extra["authentication.kubernetes.io/credential-id"]; len(ids) == 1 {
		return ids[0]
	}
	return ""
}

// rightsAtATime bounds how many rights are asked for at a time.
const rightsAtATime = 8

// requireRights says at once all that the caller is missing.
func (s *clusterClient) requireRights(ctx context.Context, rights []authorizationv1.ResourceAttributes) error {
	allowed := make([]bool, len(rights))
	group, asking := errgroup.WithContext(ctx)
	group.SetLimit(rightsAtATime)
	for i, right := range rights {
		group.Go(func() (err error) {
			allowed[i], err = s.may(asking, right)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	var missing []authorizationv1.ResourceAttributes
	for i, right := range rights {
		if allowed[i] {
			continue
		}
		if n := len(missing) - 1; n >= 0 { // in one line with the verb before
			before := missing[n].Verb
			if missing[n].Verb = right.Verb; missing[n] == right {
				missing[n].Verb = before + ", " + right.Verb
				continue
			}
			missing[n].Verb = before
		}
		missing = append(missing, right)
	}
	if len(missing) == 0 {
		return nil
	}
	var lines []string
	for _, right := range missing {
		lines = append(lines, rightText(right))
	}
	return fmt.Errorf("your account %q lacks rights on %s, and nothing was changed. It may not:\n  %s\nAsk for these, or use a kubeconfig (%s) that has them",
		s.whoami(ctx), s.title, strings.Join(lines, "\n  "), s.source)
}

func rightText(r authorizationv1.ResourceAttributes) string {
	if r.Verb == "*" && r.Resource == "*" {
		return "do everything"
	}
	text := r.Verb + " " + r.Resource
	if r.Subresource != "" {
		text += "/" + r.Subresource
	}
	if r.Group != "" {
		text += " of " + r.Group
	}
	if r.Name != "" {
		text += " " + strconv.Quote(r.Name)
	}
	if r.Namespace != "" {
		text += " in namespace " + r.Namespace
	}
	return text
}

// apply applies an object. Its result is what the server has then, or in a dry run would have.
func (c *clusterClient) apply(ctx context.Context, o *unstructured.Unstructured, dryRun bool) (registration.Outcome, *unstructured.Unstructured, error) {
	outcome, after, err := registration.Apply(ctx, c.dyn, o, dryRun)
	return outcome, after, c.explain(err)
}

// gone waits until an object does not exist.
func (s *clusterClient) gone(ctx context.Context, o *unstructured.Unstructured) error {
	client, err := registration.ResourceFor(s.dyn, o)
	if err != nil {
		return err
	}
	for {
		_, err := client.Get(ctx, o.GetName(), metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return s.explain(err)
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return fmt.Errorf("%s: %s %s is still being deleted: %w", s.title, o.GetKind(), o.GetName(), err)
		}
	}
}

// pause waits, unless ctx ends.
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
