// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"fmt"
	"net/http"

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

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	apisopenapi "github.com/oam-dev/cluster-gateway/pkg/apis/openapi"
	"github.com/oam-dev/cluster-gateway/pkg/internal/memory"
	"github.com/oam-dev/cluster-gateway/pkg/registry"
)

// newAPIServer makes the generic API server with the storage of ClusterGateways and, in front of
// it, the proxy.
func (s *Server) newAPIServer(clientCALoaded healthz.HealthChecker) error {
	scheme, err := registry.NewScheme()
	if err != nil {
		return err
	}
	codecs := serializer.NewCodecFactory(scheme)
	config := newGenericConfig(scheme, codecs)
	config.BuildHandlerChainFunc = func(api http.Handler, c *genericapiserver.Config) http.Handler {
		return buildHandlerChain(registry.WithWriteRefusal(api, c.Serializer, s.config.Hub.SecretNamespace), s.proxy, s.memory, c)
	}
	config.AddReadyzChecks(clientCALoaded)
	s.addReadyzChecks(config)
	if err := s.applyOptions(config); err != nil {
		return err
	}
	authenticated, err := s.config.Generic.withAudiences(config.Authentication.Authenticator)
	if err != nil {
		return err
	}
	config.Authentication.Authenticator = releasingAuthenticator{authenticated}
	config.Authorization.Authorizer = hubAuthorizer{config.Authorization.Authorizer}
	s.shutdown = &shutdown{grace: s.config.ShutdownGrace}
	if s.replicas != nil {
		s.shutdown.drained = s.replicas.drain
	}
	s.shutdown.prepare(&config.Config)
	if s.generic, err = config.Complete().New("cluster-gateway", genericapiserver.NewEmptyDelegate()); err != nil {
		return err
	}
	hub := s.config.Hub
	secrets := hub.Client.CoreV1().Secrets(hub.SecretNamespace)
	group := genericapiserver.NewDefaultAPIGroupInfo(v1alpha1.GroupName, scheme, runtime.NewParameterCodec(scheme), codecs)
	storage := map[string]rest.Storage{
		v1alpha1.ResourceName: registry.NewREST(secrets, s.config.Parse).WithParsed(s.clusters.Get),
		v1alpha1.ResourceName + "/" + v1alpha1.ProxySubresource:  registry.NewProxyREST(s.proxy),
		v1alpha1.ResourceName + "/" + v1alpha1.HealthSubresource: registry.NewHealthREST(secrets, s.config.Parse, prober{s.clusters, s.proxy}.probe),
	}
	if s.embedded != nil {
		if own, ok := s.embedded.certificates.(keeperCertificates); ok {
			storage[v1alpha1.ResourceName+"/"+v1alpha1.AgentCertificateSubresource] = registry.NewAgentCertificateREST(own)
		}
	}
	group.VersionedResourcesStorageMap[v1alpha1.SchemeGroupVersion.Version] = storage
	if err := s.generic.InstallAPIGroup(&group); err != nil {
		return err
	}
	return s.installPaths()
}

// newGenericConfig returns the configuration of the generic API server, before the options are
// applied.
func newGenericConfig(scheme *runtime.Scheme, codecs serializer.CodecFactory) *genericapiserver.RecommendedConfig {
	config := genericapiserver.NewRecommendedConfig(codecs)
	config.OpenAPIConfig = genericapiserver.DefaultOpenAPIConfig(apisopenapi.GetOpenAPIDefinitions, openapi.NewDefinitionNamer(scheme))
	config.OpenAPIConfig.Info.Title = "Cluster Gateway"
	config.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(apisopenapi.GetOpenAPIDefinitions, openapi.NewDefinitionNamer(scheme))
	config.OpenAPIV3Config.Info.Title = "Cluster Gateway"
	config.EffectiveVersion = compatibility.DefaultBuildEffectiveVersion()
	config.LongRunningFunc = func(r *http.Request, info *request.RequestInfo) bool {
		// pkg/proxy has its own limit for proxied requests, and its answer says more about what
		// took too long.
		return isProxied(info) || genericfilters.BasicLongRunningRequestCheck(sets.NewString("watch"), sets.NewString())(r, info)
	}
	// installPaths serves them together with the gateway's own.
	config.EnableMetrics = false
	return config
}

// buildHandlerChain returns the handler of the endpoint: the limit before authentication,
// authentication, audit, authorization, and then the proxy or the API.
func buildHandlerChain(api, proxied http.Handler, budget *memory.Budget, c *genericapiserver.Config) http.Handler {
	proxied = withThroughHub(proxied, c.Authentication.RequestHeaderConfig)
	proxied = withUpgradeAuthorization(proxied, c.Authorization.Authorizer, c.Serializer)
	chain := genericapiserver.DefaultBuildHandlerChain(withProxy(api, proxied), c)
	return withUnauthenticatedLimit(chain, budget.Part(memory.Unauthenticated), c.Serializer)
}

func (s *Server) addReadyzChecks(config *genericapiserver.RecommendedConfig) {
	if s.embedded != nil {
		if own, ok := s.embedded.certificates.(keeperCertificates); ok {
			config.AddReadyzChecks(healthz.NamedCheck("tunnel-certificates", func(*http.Request) error { return own.keeper.Ready() }))
		}
	}
	if s.replicas != nil {
		config.AddReadyzChecks(healthz.NamedCheck("replicas-synced", func(*http.Request) error { return s.replicas.Ready() }))
	}
	config.AddReadyzChecks(healthz.NamedCheck("clusters-synced", func(*http.Request) error {
		if !s.clusters.HasSynced() {
			return fmt.Errorf("the Secrets of namespace %s have not been read yet", s.config.Hub.SecretNamespace)
		}
		return nil
	}))
}

// applyOptions applies the generic options. It listens, and reads the front-proxy configuration
// from the hub.
func (s *Server) applyOptions(config *genericapiserver.RecommendedConfig) error {
	o := s.config.Generic
	err := errors.Join(
		o.listen(&config.Config),
		o.Authentication.ApplyTo(&config.Authentication, config.SecureServing, config.OpenAPIConfig),
		o.Authorization.ApplyTo(&config.Authorization),
		o.Audit.ApplyTo(&config.Config),
		o.Features.ApplyTo(&config.Config, nil, nil),
	)
	config.TracerProvider = s.traces.providerOr(config.TracerProvider)
	if s.certificate != nil && config.SecureServing != nil {
		config.SecureServing.Cert = s.certificate
	}
	// installPaths serves the profiles alone. With them, the generic server serves a path that
	// raises the log level while running, above maxVerbosity.
	config.EnableProfiling = false
	return err
}

// installPaths adds what is not part of the API group.
func (s *Server) installPaths() error {
	raw := append(s.certificateMetrics(), s.proxy, s.memory, s.identity.metric())
	if s.replicas != nil {
		raw = append(raw, s.replicas.metrics.All()...)
	}
	handler, err := metricsHandler(raw, s.proxyMetrics.All(), s.healthMetrics.All(), s.renewMetrics.All())
	if err != nil {
		return err
	}
	s.generic.Handler.NonGoRestfulMux.Handle("/metrics", handler)
	if s.config.Generic.Features.EnableProfiling {
		routes.Profiling{}.Install(s.generic.Handler.NonGoRestfulMux)
	}
	if s.embedded != nil {
		s.generic.Handler.NonGoRestfulMux.Handle(tunnelsPath, tunnelsHandler(hostname(), s.embedded.server.Snapshot))
	}
	return nil
}
