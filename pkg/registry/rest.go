// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/registry/rest"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"sigs.k8s.io/apiserver-runtime/pkg/builder/resource/resourcerest"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
)

// REST is the storage of clustergateways. It is stateless and safe for concurrent use. It does not
// implement interfaces for writing, so that discovery does not list verbs for writing.
// WithWriteRefusal returns a helpful error for write requests.
type REST struct {
	secrets corev1client.SecretInterface
	opts    cluster.ParseOptions
	parsed  func(name string) (*cluster.Cluster, bool) // nil means that every Secret is parsed
	table   table
}

var (
	_ rest.Storage                    = (*REST)(nil)
	_ rest.Scoper                     = (*REST)(nil)
	_ rest.SingularNameProvider       = (*REST)(nil)
	_ resourcerest.Getter             = (*REST)(nil)
	_ resourcerest.Lister             = (*REST)(nil)
	_ resourcerest.Watcher            = (*REST)(nil)
	_ resourcerest.TableConvertor     = (*REST)(nil)
	_ resourcerest.ShortNamesProvider = (*REST)(nil)
	_ resourcerest.CategoriesProvider = (*REST)(nil)
)

// NewREST returns the storage for the Secrets in one namespace.
func NewREST(secrets corev1client.SecretInterface, opts cluster.ParseOptions) *REST {
	return &REST{secrets: secrets, opts: opts, table: newTable()}
}

// WithParsed returns a copy that does not parse a Secret if lookup (a Store's Get) returns it at
// the same resource version. Parsing a Secret with an RSA key takes half a millisecond, for every
// Secret of a list and for every watcher of an event.
func (r *REST) WithParsed(lookup func(name string) (*cluster.Cluster, bool)) *REST {
	faster := *r
	faster.parsed = lookup
	return &faster
}

// New returns an empty ClusterGateway.
func (r *REST) New() runtime.Object { return &v1alpha1.ClusterGateway{} }

// NewList returns an empty list.
func (r *REST) NewList() runtime.Object { return &v1alpha1.ClusterGatewayList{} }

// Destroy does nothing.
func (r *REST) Destroy() {}

// NamespaceScoped returns false. The namespace of the Secrets is not visible to clients.
func (r *REST) NamespaceScoped() bool { return false }

// GetSingularName returns the singular name, which kubectl also accepts.
func (r *REST) GetSingularName() string { return "clustergateway" }

// ShortNames returns the short names, which kubectl also accepts.
func (r *REST) ShortNames() []string { return []string{"cg", "cgw"} }

// Categories returns the categories, which kubectl get accepts.
func (r *REST) Categories() []string { return []string{"cluster-gateway"} }

// Get reads and converts one Secret. It returns NotFound for a Secret that is not a cluster.
func (r *REST) Get(ctx context.Context, name string, options *metav1.GetOptions) (runtime.Object, error) {
	_, gateway, err := getGateway(ctx, r.secrets, r.opts, name, options)
	if err != nil {
		return nil, err
	}
	return gateway, nil
}

// List lists and converts the Secrets.
func (r *REST) List(ctx context.Context, options *internalversion.ListOptions) (runtime.Object, error) {
	hubOptions, err := hubListOptions(options)
	if err != nil {
		return nil, err
	}
	secrets, err := r.secrets.List(ctx, hubOptions)
	if err != nil {
		return nil, hubError(err, "list", "")
	}
	list := &v1alpha1.ClusterGatewayList{
		ListMeta: secrets.ListMeta,
		Items:    make([]v1alpha1.ClusterGateway, 0, len(secrets.Items)),
	}
	list.SelfLink = "" //nolint:staticcheck // the path of the Secrets would be wrong here
	for i := range secrets.Items {
		list.Items = append(list.Items, *r.render(&secrets.Items[i]))
	}
	return list, nil
}

// Watch watches the Secrets and converts each event.
func (r *REST) Watch(ctx context.Context, options *internalversion.ListOptions) (watch.Interface, error) {
	hubOptions, err := hubListOptions(options)
	if err != nil {
		return nil, err
	}
	hubOptions.Watch = true
	hub, err := r.secrets.Watch(ctx, hubOptions)
	if err != nil {
		return nil, hubError(err, "watch", "")
	}
	return newWatch(hub, r.convert), nil
}

// ConvertToTable converts a ClusterGateway or a list of them for kubectl get.
func (r *REST) ConvertToTable(_ context.Context, object, options runtime.Object) (*metav1.Table, error) {
	return r.table.convert(object, options)
}

func (r *REST) render(secret *corev1.Secret) *v1alpha1.ClusterGateway {
	if r.parsed != nil && secret.ResourceVersion != "" {
		if c, ok := r.parsed(secret.Name); ok && c.UID == secret.UID && c.ResourceVersion == secret.ResourceVersion {
			return c.ClusterGateway(secret)
		}
	}
	return cluster.Render(secret, r.opts)
}

// convert converts the Secret in an event. A bookmark is not a cluster. It contains only a resource
// version and annotations that clients need, such as the one that marks the end of the initial
// events.
func (r *REST) convert(event watch.Event) (watch.Event, error) {
	if event.Type == watch.Error {
		return event, nil
	}
	secret, ok := event.Object.(*corev1.Secret)
	if !ok {
		return event, fmt.Errorf("the hub sent a %T in a watch of Secrets", event.Object)
	}
	if event.Type == watch.Bookmark {
		bookmark := &v1alpha1.ClusterGateway{ObjectMeta: metav1.ObjectMeta{
			ResourceVersion: secret.ResourceVersion,
			Annotations:     secret.Annotations,
		}}
		bookmark.SetGroupVersionKind(v1alpha1.SchemeGroupVersion.WithKind(v1alpha1.KindName))
		return watch.Event{Type: event.Type, Object: bookmark}, nil
	}
	return watch.Event{Type: event.Type, Object: r.render(secret)}, nil
}

// getGateway reads one Secret and converts it.
func getGateway(ctx context.Context, secrets corev1client.SecretInterface, opts cluster.ParseOptions, name string, options *metav1.GetOptions) (*corev1.Secret, *v1alpha1.ClusterGateway, error) {
	hubOptions := metav1.GetOptions{}
	if options != nil {
		hubOptions.ResourceVersion = options.ResourceVersion
	}
	secret, err := secrets.Get(ctx, name, hubOptions)
	if err != nil {
		return nil, nil, hubError(err, "get", name)
	}
	if !cluster.IsCluster(secret) {
		return nil, nil, notFound(name)
	}
	return secret, cluster.Render(secret, opts), nil
}
