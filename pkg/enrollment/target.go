// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package enrollment

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/oam-dev/cluster-gateway/pkg/registration"
	"github.com/oam-dev/cluster-gateway/pkg/tunnel"
)

// target is the client of the cluster that enrolls. It uses the cluster's stream and its token.
type target struct {
	endpoint  string
	transport *http.Transport
	kube      kubernetes.Interface
	dyn       dynamic.Interface
	uid       types.UID

	now func() time.Time
	mu  sync.Mutex
	off time.Duration
}

func newTarget(invited tunnel.Invited, endpoint string, ca []byte, now func() time.Time) (*target, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, errors.New("the CA that the cluster sent contains no certificate")
	}
	base, err := url.Parse(endpoint)
	if err != nil || base.Scheme != "https" || base.Hostname() == "" {
		return nil, fmt.Errorf("the endpoint of the invitation, %q, is not an https URL: ask for another invitation", endpoint)
	}
	address := net.JoinHostPort(base.Hostname(), cmp.Or(base.Port(), "443"))
	t := &target{endpoint: endpoint, now: now}
	// Its own transport, which lives as long as the stream. (client-go would keep it forever.)
	t.transport = &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return invited.Dial(ctx, address) },
		TLSClientConfig:   &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: base.Hostname(), Time: now},
		ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: 20 * time.Second,
		MaxResponseHeaderBytes: 64 << 10, DisableCompression: true,
	}
	// The token is only in requests, and those are sent after the API server's certificate was
	// verified.
	client := &http.Client{
		Transport:     &credentialed{target: t, token: invited.Token},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	config := &rest.Config{Host: endpoint, QPS: -1, WarningHandler: rest.NoWarnings{}}
	if t.kube, err = kubernetes.NewForConfigAndClient(config, client); err != nil {
		return nil, err
	}
	t.dyn, err = dynamic.NewForConfigAndClient(config, client)
	return t, err
}

// close closes the connections.
func (t *target) close() { t.transport.CloseIdleConnections() }

// credentialed sends requests with the token, and reads the API server's clock from the answers.
type credentialed struct {
	target *target
	token  string
}

// RoundTrip implements http.RoundTripper.
func (c *credentialed) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+c.token)
	resp, err := c.target.transport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		c.target.mu.Lock()
		c.target.off = c.target.now().Sub(date)
		c.target.mu.Unlock()
	}
	// The cluster may be anybody's.
	resp.Body = http.MaxBytesReader(nil, resp.Body, maxAnswer)
	return resp, nil
}

// maxAnswer bounds the size of an answer.
const maxAnswer = 4 << 20

// WrappedRoundTripper returns the transport that sends the requests.
func (c *credentialed) WrappedRoundTripper() http.RoundTripper { return c.target.transport }

// skew is how far the gateway's clock is ahead of the cluster's.
func (t *target) skew() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.off
}

// explain says which step failed, and what to do.
func (t *target) explain(what string, err error) error {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var wrongName x509.HostnameError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &unknown), errors.As(err, &invalid), errors.As(err, &wrongName):
		return fmt.Errorf("the API server at %s cannot be verified with the cluster's CA (ConfigMap kube-root-ca.crt): %w", t.endpoint, err)
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("the cluster does not accept the token that it sent (401): it must be a token of ServiceAccount %s/%s that has not expired",
			registration.AgentNamespace, registration.MaintenanceAccount)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("the gateway may not %s: apply the whole file of the invitation: %w", what, err)
	default:
		return fmt.Errorf("the gateway cannot %s: %w", what, err)
	}
}

// Resources whose owners are set.
var (
	clusterRoles        = schema.GroupVersionResource{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterroles"}
	clusterRoleBindings = clusterRoles.GroupVersion().WithResource("clusterrolebindings")
	roles               = clusterRoles.GroupVersion().WithResource("roles")
	roleBindings        = clusterRoles.GroupVersion().WithResource("rolebindings")
	priorityClasses     = schema.GroupVersionResource{Group: "scheduling.k8s.io", Version: "v1", Resource: "priorityclasses"}
	jobs                = schema.GroupVersionResource{Group: "batch", Version: "v1", Resource: "jobs"}
	secrets             = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}
)

// setOwners sets owners: the namespace for the objects of the registration, the ClusterRoleBinding
// of the enrollment for the objects of the enrollment.
func (t *target) setOwners(ctx context.Context, record *registration.Invitation, namespace types.UID) error {
	agent := metav1.OwnerReference{APIVersion: "v1", Kind: "Namespace", Name: registration.AgentNamespace, UID: namespace}
	binding, err := t.setOwner(ctx, clusterRoleBindings, "", registration.EnrollBinding, agent)
	if apierrors.IsNotFound(err) {
		return nil // removed already
	}
	if err != nil {
		return err
	}
	bound, err := record.AccessObjects()
	if err != nil {
		return err
	}
	enrollment := metav1.OwnerReference{APIVersion: clusterRoleBindings.GroupVersion().String(), Kind: "ClusterRoleBinding", Name: binding.GetName(), UID: binding.GetUID()}
	type dependent struct {
		resource        schema.GroupVersionResource
		namespace, name string
		owner           metav1.OwnerReference
	}
	dependents := []dependent{{clusterRoles, "", registration.EnrollBinding, enrollment}}
	if !record.Process {
		dependents = append(dependents,
			dependent{priorityClasses, "", registration.AgentPriorityClass, agent},
			dependent{roles, registration.AgentNamespace, registration.EnrollName, enrollment},
			dependent{roleBindings, registration.AgentNamespace, registration.EnrollName, enrollment},
			dependent{secrets, registration.AgentNamespace, registration.EnrollName, enrollment},
			dependent{jobs, registration.AgentNamespace, record.JobName(), enrollment})
	}
	for _, o := range bound {
		resource := clusterRoleBindings
		if o.GetKind() == "ClusterRole" {
			resource = clusterRoles
		}
		dependents = append(dependents, dependent{resource, "", o.GetName(), agent})
	}
	for _, d := range dependents {
		if _, err := t.setOwner(ctx, d.resource, d.namespace, d.name, d.owner); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}

func (t *target) setOwner(ctx context.Context, resource schema.GroupVersionResource, namespace, name string, owner metav1.OwnerReference) (*unstructured.Unstructured, error) {
	patch, err := registration.MergePatch(nil, map[string]any{"metadata": map[string]any{"ownerReferences": []metav1.OwnerReference{owner}}})
	if err != nil {
		return nil, err
	}
	client := dynamic.ResourceInterface(t.dyn.Resource(resource))
	if namespace != "" {
		client = t.dyn.Resource(resource).Namespace(namespace)
	}
	return client.Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: registration.FieldManager})
}

// deleteEnrollment deletes the owner of the objects of the enrollment.
func (t *target) deleteEnrollment(ctx context.Context) error {
	err := t.kube.RbacV1().ClusterRoleBindings().Delete(ctx, registration.EnrollBinding, metav1.DeleteOptions{PropagationPolicy: ptr.To(metav1.DeletePropagationBackground)})
	if apierrors.IsNotFound(err) || apierrors.IsForbidden(err) { // it also grants the right to delete it
		return nil
	}
	return err
}
