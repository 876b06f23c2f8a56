// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	genericfilters "k8s.io/apiserver/pkg/server/filters"
	"k8s.io/apiserver/pkg/server/healthz"
	"k8s.io/apiserver/pkg/server/routes"
	"k8s.io/apiserver/pkg/util/compatibility"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-base/metrics"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	apisopenapi "github.com/oam-dev/cluster-gateway/pkg/apis/openapi"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/health"
	"github.com/oam-dev/cluster-gateway/pkg/internal/events"
	"github.com/oam-dev/cluster-gateway/pkg/proxy"
	"github.com/oam-dev/cluster-gateway/pkg/registry"
	"github.com/oam-dev/cluster-gateway/pkg/rotation"
)

// Server is a gateway that is ready to run.
type Server struct {
	generic *genericapiserver.GenericAPIServer
	store   *registry.Store
	proxy   *proxy.Handler
	tunnels *tunnels
	// serving and apiService are nil when the serving pair is given, apiService also when it is not to be kept.
	serving    *servingContent
	apiService *apiServiceKeeper
	health     *health.Monitor
	tokens     *rotation.Tokens
	agents     *rotation.Agents
	client     kubernetes.Interface
	options    *Options
}

// New makes a server of options. It listens from here on, and serves from Run on. ctx bounds making it.
func New(ctx context.Context, o *Options) (_ *Server, err error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	if err := o.Validate(); err != nil {
		return nil, err
	}
	client, err := o.Hub.client()
	if err != nil {
		return nil, err
	}
	s := &Server{options: o, client: client}
	defer func() {
		if err != nil {
			s.abandon()
		}
	}()
	proxyMetrics, healthMetrics := proxy.NewMetrics(), health.NewMetrics()
	parse := cluster.ParseOptions{TunnelMode: cluster.TunnelMode(o.Tunnel.Mode), ExecCredentialDir: o.Hub.ExecCredentialDir}
	s.store = registry.NewStore(client, o.Hub.SecretNamespace, parse)
	if s.tunnels, err = o.Tunnel.tunnels(ctx, hub{client, o.Hub.SecretNamespace}); err != nil {
		return nil, err
	}
	s.proxy = proxy.NewHandler(proxy.Config{
		Clusters:       s.store,
		Dialers:        s.dialer,
		Metrics:        proxyMetrics,
		RequestTimeout: o.Proxy.RequestTimeout,
		DialTimeout:    o.Proxy.DialTimeout,
		MaxInFlight:    o.Proxy.MaxInFlight,
		MaxStreams:     o.Proxy.MaxStreams,
		Logger:         klog.Background().WithName("proxy"),
	})
	secrets := client.CoreV1().Secrets(o.Hub.SecretNamespace)
	s.newRotation(secrets)
	s.health = health.New(health.Config{
		Clusters: s.store, Prober: s.proxy, Agents: s.tunnels.agents, AgentCertificate: s.agentCertificate, Metrics: healthMetrics,
		Secrets: secrets, Events: client.CoreV1().Events(events.Namespace),
		Interval: o.Health.ProbeInterval, Timeout: o.Health.ProbeTimeout, Concurrency: o.Health.Concurrency,
		OverrideDuration: o.Health.OverrideDuration, Renewal: s.renewalFailures,
		Logger: klog.Background().WithName("health"),
	})
	s.store.Subscribe(s.proxy.Changed)
	s.store.Subscribe(s.health.ClusterChanged)
	s.tokens.OnChange(s.health.Trigger)
	s.agents.OnChange(s.health.Trigger)
	if server := s.tunnels.server; server != nil {
		server.OnAgentsChange(proxyMetrics.SetAgents)
		server.OnAgentsChange(func(name string, _ int) { s.health.AgentsChanged(name) })
		server.OnAgentLeaving(s.proxy.Reconnect)
	}
	scheme, err := registry.NewScheme()
	if err != nil {
		return nil, err
	}
	codecs := serializer.NewCodecFactory(scheme)
	config := genericapiserver.NewRecommendedConfig(codecs)
	config.OpenAPIConfig = genericapiserver.DefaultOpenAPIConfig(apisopenapi.GetOpenAPIDefinitions, openapi.NewDefinitionNamer(scheme))
	config.OpenAPIConfig.Info.Title = "Cluster Gateway"
	config.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(apisopenapi.GetOpenAPIDefinitions, openapi.NewDefinitionNamer(scheme))
	config.OpenAPIV3Config.Info.Title = "Cluster Gateway"
	clientCALoaded, err := o.useHubClientCA(ctx, client)
	if err != nil {
		return nil, o.Hub.explain(err)
	}
	config.AddReadyzChecks(clientCALoaded)
	if err := s.makeServing(ctx); err != nil {
		return nil, err
	}
	if err := s.applyTo(&config.Config); err != nil {
		return nil, err
	}
	if s.generic, err = config.Complete().New("cluster-gateway", genericapiserver.NewEmptyDelegate()); err != nil {
		return nil, err
	}
	group := genericapiserver.NewDefaultAPIGroupInfo(v1alpha1.GroupName, scheme, runtime.NewParameterCodec(scheme), codecs)
	group.VersionedResourcesStorageMap[v1alpha1.SchemeGroupVersion.Version] = map[string]rest.Storage{
		v1alpha1.ResourceName: registry.NewREST(secrets, parse).WithParsed(s.store.Get),
		v1alpha1.ResourceName + "/" + v1alpha1.ProxySubresource:  registry.NewProxyREST(s.proxy),
		v1alpha1.ResourceName + "/" + v1alpha1.HealthSubresource: registry.NewHealthREST(secrets, parse, s.probe),
	}
	if err := s.generic.InstallAPIGroup(&group); err != nil {
		return nil, err
	}
	return s, s.install(proxyMetrics.All(), healthMetrics.All())
}

// abandon gives back what a server has taken that will not run.
func (s *Server) abandon() {
	if s.tunnels != nil {
		s.tunnels.abandon()
	}
	if lis := s.options.Serving.Listener; lis != nil {
		_ = lis.Close() // nothing has been accepted
	}
}

// applyTo configures the generic API server.
func (s *Server) applyTo(config *genericapiserver.Config) error {
	o := s.options
	config.EffectiveVersion = compatibility.DefaultBuildEffectiveVersion()
	config.LongRunningFunc = func(r *http.Request, info *request.RequestInfo) bool {
		// pkg/proxy knows better than the generic filters how long a proxied request may take, and says better what went
		// wrong when it takes longer.
		return isProxied(info) || genericfilters.BasicLongRunningRequestCheck(sets.NewString("watch"), sets.NewString())(r, info)
	}
	// install serves them together with the gateway's own.
	config.EnableMetrics = false
	config.BuildHandlerChainFunc = func(api http.Handler, c *genericapiserver.Config) http.Handler {
		api = registry.WithWriteRefusal(api, c.Serializer, o.Hub.SecretNamespace)
		proxied := withUpgradeAuthorization(s.proxy, c.Authorization.Authorizer, c.Serializer)
		return genericapiserver.DefaultBuildHandlerChain(withProxy(api, proxied), c)
	}
	if k := s.tunnels.keeper(); k != nil {
		config.AddReadyzChecks(healthz.NamedCheck("tunnel-certificates", func(*http.Request) error { return k.Ready() }))
	}
	config.AddReadyzChecks(healthz.NamedCheck("clusters-synced", func(*http.Request) error {
		if !s.store.HasSynced() {
			return fmt.Errorf("the Secrets of namespace %s have not been read yet", o.Hub.SecretNamespace)
		}
		return nil
	}))
	err := errors.Join(
		o.applyServing(config),
		o.Authentication.ApplyTo(&config.Authentication, config.SecureServing, config.OpenAPIConfig),
		o.Authorization.ApplyTo(&config.Authorization),
		o.Audit.ApplyTo(config),
		o.Features.ApplyTo(config, nil, nil),
		o.Tracing.ApplyTo(nil, config),
	)
	if s.serving != nil && config.SecureServing != nil {
		config.SecureServing.Cert = s.serving
	}
	// install serves the profiles alone: with them, the generic server offers to raise the log level while running, past
	// maxVerbosity.
	config.EnableProfiling = false
	return err
}

// install adds what is not part of the API group.
func (s *Server) install(all ...[]metrics.Registerable) error {
	handler, err := metricsHandler(s.certificateMetrics(), all...)
	if err != nil {
		return err
	}
	s.generic.Handler.NonGoRestfulMux.Handle("/metrics", handler)
	if s.options.Features.EnableProfiling {
		routes.Profiling{}.Install(s.generic.Handler.NonGoRestfulMux)
	}
	return s.generic.AddPreShutdownHook("end-streams", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), s.options.Proxy.ShutdownGrace)
		defer cancel()
		s.proxy.EndStreams(ctx)
		return nil
	})
}

// isProxied reports whether a request is for the proxy subresource of a ClusterGateway.
func isProxied(info *request.RequestInfo) bool {
	return info.IsResourceRequest && info.Subresource == v1alpha1.ProxySubresource && info.Resource == v1alpha1.ResourceName && info.APIGroup == v1alpha1.GroupName
}

// withProxy hands proxied requests to proxied, before the API machinery: that would read, and refuse, options that are meant for
// the managed cluster (dryRun: kubernetes, pkg/endpoints/handlers/rest.go, ConnectResource).
func withProxy(api, proxied http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if info, ok := request.RequestInfoFrom(r.Context()); ok && isProxied(info) {
			proxied.ServeHTTP(w, r)
			return
		}
		api.ServeHTTP(w, r)
	})
}

// dialer chooses the dialer of a cluster. There is no way from one route to the other: a cluster that wants a tunnel is never
// dialled directly.
func (s *Server) dialer(c *cluster.Cluster, purpose dialer.Purpose) (dialer.Dialer, error) {
	switch c.Route {
	case cluster.RouteTunnel:
		return s.tunnels.dialer(c, purpose)
	case cluster.RouteDirect:
		return dialer.NewDirect(c.Name, c.ProxyURL)
	default:
		return nil, fmt.Errorf("cluster %q has no route", c.Name)
	}
}

// probe serves the health subresource.
func (s *Server) probe(ctx context.Context, name string) (registry.ProbeResult, error) {
	c, ok := s.store.Get(name)
	if !ok {
		return registry.ProbeResult{}, fmt.Errorf("cluster %q is not known to this replica yet", name)
	}
	readiness, err := s.proxy.Ready(ctx, name)
	if err != nil && ctx.Err() != nil {
		return registry.ProbeResult{}, err
	}
	result := registry.ProbeResult{Latency: readiness.Latency, Time: time.Now()}
	result.Healthy, result.Reason, result.Message = health.Assess(c, err)
	if result.Healthy {
		// A server that is ready and does not tell its version is ready.
		result.Version, _ = s.proxy.Version(ctx, name)
	}
	return result, nil
}

// Address is where the gateway's own HTTPS endpoint listens.
func (s *Server) Address() net.Addr { return s.generic.SecureServingInfo.Listener.Addr() }

// TunnelAddress is where agents connect; nil unless the tunnel server is embedded.
func (s *Server) TunnelAddress() net.Addr { return s.tunnels.address }

// Run serves until ctx ends, lets what is in flight end, and stops everything. It returns early if a part fails.
func (s *Server) Run(ctx context.Context) error {
	// The API server goes first; what it needs goes on until it has stopped.
	parts, stopParts := context.WithCancel(context.WithoutCancel(ctx))
	defer stopParts()
	serving, stopServing := context.WithCancel(ctx)
	defer stopServing()

	group, groupCtx := errgroup.WithContext(parts)
	group.Go(func() error { return part("the store of clusters", s.store.Run(groupCtx)) })
	group.Go(func() error { return part("the tunnel", s.tunnels.run(groupCtx)) })
	if s.serving != nil {
		group.Go(func() error { return part("the serving certificate", s.serving.keeper.Follow(groupCtx)) })
	}
	group.Go(func() error { return part("the leader's duties", s.lead(groupCtx)) })
	group.Go(func() error {
		defer stopParts()
		defer s.proxy.Close()
		return part("the API server", s.generic.PrepareRun().RunWithContext(serving))
	})
	// A part that fails takes the API server along.
	stop := context.AfterFunc(groupCtx, stopServing)
	defer stop()
	klog.InfoS("The gateway is starting", "address", s.Address(), "tunnelMode", s.options.Tunnel.Mode, "tunnelAddress", s.TunnelAddress(),
		"secretNamespace", s.options.Hub.SecretNamespace)
	return group.Wait()
}

func part(name string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return nil
	}
	return fmt.Errorf("%s: %w", name, err)
}
