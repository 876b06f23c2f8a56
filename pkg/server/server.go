// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/clusterapi"
	"github.com/oam-dev/cluster-gateway/pkg/health"
	"github.com/oam-dev/cluster-gateway/pkg/internal/events"
	"github.com/oam-dev/cluster-gateway/pkg/internal/memory"
	"github.com/oam-dev/cluster-gateway/pkg/inventory"
	"github.com/oam-dev/cluster-gateway/pkg/peers"
	"github.com/oam-dev/cluster-gateway/pkg/policy"
	"github.com/oam-dev/cluster-gateway/pkg/proxy"
	"github.com/oam-dev/cluster-gateway/pkg/registry"
	"github.com/oam-dev/cluster-gateway/pkg/rotation"
	"github.com/oam-dev/cluster-gateway/pkg/tunnel"
)

// Server is a gateway that is ready to run. Its fields are in the order in which they are made:
// each depends on earlier ones only. What goes the other way is a subscription, see subscribe.
type Server struct {
	config *completedConfig
	memory *memory.Budget
	// traces is nil if no traces are recorded.
	traces   *traces
	clusters *registry.Store
	agents   *agentAcceptance
	tunnel   tunnelRoute
	// embedded is the same as tunnel if the tunnel server is embedded, and nil otherwise.
	embedded *embeddedTunnel
	// replicas is nil if the replicas do not forward requests to each other.
	replicas    *replicas
	identity    *identities
	permissions *policy.Authorizer
	proxy       *proxy.Handler
	renewals    *renewals
	health      *health.Monitor
	// certificate is nil if the flags name a serving certificate, apiService also if the gateway
	// must not keep the APIService.
	certificate *servingCertificate
	apiService  *apiServiceController
	// profiles is nil if the gateway does not publish its clusters.
	profiles *inventory.Publisher
	// registrar is nil if the gateway registers no clusters of Cluster API.
	registrar *clusterapi.Registrar
	shutdown  *shutdown
	generic   *genericapiserver.GenericAPIServer
	leader    *leader

	proxyMetrics  *proxy.Metrics
	healthMetrics *health.Metrics
	renewMetrics  *rotation.Metrics
}

// New makes a server. It listens, but does not serve before Run. It reads from the hub what the
// generic API server needs, and creates the serving certificate there if it does not exist. ctx
// bounds New.
func (c CompletedConfig) New(ctx context.Context) (_ *Server, err error) {
	// The generic options are changed when they are applied.
	config := &completedConfig{c.Config}
	config.Generic = c.Generic.clone()
	s := &Server{config: config, memory: memory.NewBudget(c.MemoryBudget), proxyMetrics: proxy.NewMetrics(), healthMetrics: health.NewMetrics(), renewMetrics: rotation.NewMetrics()}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.traces, err = newTraces(ctx, config.Generic, hostname()); err != nil {
		return nil, err
	}
	s.clusters = registry.NewStore(c.Hub.Client, c.Hub.SecretNamespace, c.Parse)
	s.agents = &agentAcceptance{clusters: s.clusters, now: time.Now, removed: map[string]time.Time{}}
	var others otherReplicas
	if c.Peers != nil { // s.replicas is set before an agent is accepted
		others.missing = func(name string) bool { return s.replicas.Missing(name, c.Tunnel.Embedded.ServerCount) }
		others.away = func(name string) time.Duration { return s.replicas.Away(name) }
	}
	if s.tunnel, s.embedded, err = newTunnelRoute(ctx, c.Tunnel, c.Hub, s.agents, s.memory.Part(memory.Tunnels), others); err != nil {
		s.tunnel = nil
		return nil, err
	}
	if c.Peers != nil && s.embedded != nil {
		if s.replicas, err = newReplicas(c.Peers, c.Hub, s.embedded, s.clusters); err != nil {
			return nil, err
		}
	}
	if s.permissions, err = newPermissions(config.Generic, c.Proxy.AuthorizeRequests); err != nil {
		return nil, err
	}
	if s.identity, err = newIdentities(c.Identity); err != nil {
		return nil, err
	}
	s.proxy = s.newProxy()
	if s.replicas != nil {
		s.replicas.forwarded = s.traces.withForwarded(s.proxy.Forwarded(peers.ClusterOf))
	}
	s.renewals = newRenewals(&config.Config, s.clusters, s.proxy, dialers{s.tunnel}, s.embedded, s.replicas, s.renewMetrics)
	s.health = s.newHealth()
	// It is the first request to the hub, so its error explains what is wrong with the connection.
	clientCALoaded, err := config.Generic.useHubClientCA(ctx, c.Hub.Client)
	if err != nil {
		return nil, c.Hub.explain(err)
	}
	if err := s.createServingCertificate(ctx); err != nil {
		return nil, err
	}
	if c.Inventory != nil {
		s.profiles = s.newProfiles(c.Inventory)
	}
	if c.ClusterAPI != nil {
		s.registrar = s.newRegistrar(c.ClusterAPI)
	}
	if err := s.newAPIServer(clientCALoaded); err != nil {
		return nil, err
	}
	s.leader = s.newLeader()
	s.subscribe()
	return s, nil
}

// hostname tells replicas apart. In Pods, it is the name of the Pod.
func hostname() string {
	name, _ := os.Hostname() // empty if it is not known
	return name
}

// close releases what a server holds that will not run.
func (s *Server) close() {
	if s.tunnel != nil {
		s.tunnel.close()
	}
	if s.replicas != nil {
		_ = s.replicas.listener.Close() // no replica has been accepted
	}
	if s.identity != nil {
		s.identity.close()
	}
	s.traces.close()
	s.config.Generic.close()
}

func (s *Server) newProxy() *proxy.Handler {
	config := s.config.Proxy
	config.Memory, config.Identities, config.Authorizer = s.memory, s.identity.resolver, s.permissions
	config.Clusters, config.Dialers, config.Metrics = s.clusters, dialers{s.tunnel}.dialer, s.proxyMetrics
	if s.replicas != nil {
		config.Forwarder = s.replicas
	}
	config.Logger = klog.Background().WithName("proxy")
	return proxy.NewHandler(config)
}

func (s *Server) newHealth() *health.Monitor {
	hub := s.config.Hub
	config := s.config.Health
	config.Clusters, config.Prober, config.Metrics = s.clusters, s.proxy, s.healthMetrics
	if s.embedded != nil {
		config.Agents, config.AgentRefusal = s.embedded.server, s.embedded.server.RecentRefusal
		config.FailingAgents = s.embedded.server.FailingAgents
	}
	config.ExternalTunnel = s.config.Tunnel.Mode == cluster.TunnelExternal
	config.AgentCertificate, config.Renewal = s.renewals.agentCertificate, s.renewals.failures
	config.Secrets, config.Events = hub.Client.CoreV1().Secrets(hub.SecretNamespace), hub.Client.CoreV1().Events(events.Namespace)
	config.Logger = klog.Background().WithName("health")
	return health.New(config)
}

// createServingCertificate reads the serving certificate from the hub, or creates it, unless the
// flags name one.
func (s *Server) createServingCertificate(ctx context.Context) error {
	config, hub := s.config.ServingCertificate, s.config.Hub
	if config == nil {
		return nil
	}
	s.certificate = newServingCertificate(config, hub)
	if config.KeepAPIService {
		s.apiService = &apiServiceController{
			services: hub.APIServices, namespace: hub.SecretNamespace, bundle: s.certificate.keeper.Bundle,
			logger: klog.Background().WithName("apiservice"),
		}
	}
	if err := s.certificate.keeper.LoadOrCreate(ctx); err != nil {
		return fmt.Errorf("cannot read or create the serving certificate, and --tls-cert-file is not set: %w", err)
	}
	return nil
}

// newLeader returns the tasks that only one replica must run.
func (s *Server) newLeader() *leader {
	l := &leader{
		client: s.config.Hub.Client, namespace: s.config.Hub.SecretNamespace, elect: s.config.LeaderElect,
		wait: func(ctx context.Context) bool { return cache.WaitForCacheSync(ctx.Done(), s.clusters.HasSynced) },
		tasks: []task{
			{"the health of clusters", s.health.Run},
			{"the renewal of tokens", s.renewals.tokens.Run},
			{"the renewal of agents' certificates", s.renewals.agents.Run},
			{"the upkeep of clusters", s.renewals.upkeep.Run},
		},
	}
	if s.embedded != nil {
		if own, ok := s.embedded.certificates.(keeperCertificates); ok {
			l.tasks = append(l.tasks, task{"the renewal of the tunnel's certificates", own.keeper.Renew})
		}
	}
	if s.replicas != nil {
		l.tasks = append(l.tasks, task{"the renewal of the replicas' certificate", s.replicas.keeper.Renew})
	}
	if s.certificate != nil {
		l.tasks = append(l.tasks, task{"the renewal of the serving certificate", s.certificate.keeper.Renew})
	}
	if s.apiService != nil {
		l.tasks = append(l.tasks, task{"the APIService", s.apiService.run})
	}
	if s.profiles != nil {
		l.tasks = append(l.tasks, task{"the ClusterProfiles", s.profiles.Run})
	}
	if s.registrar != nil {
		l.tasks = append(l.tasks, task{"the clusters of Cluster API", s.registrar.Run})
	}
	return l
}

// subscribe connects each part with the parts that depend on it. Nothing runs yet.
func (s *Server) subscribe() {
	s.clusters.Subscribe(s.agents.changed)
	if s.embedded != nil {
		s.clusters.Subscribe(func(name string, _ *cluster.Cluster) { s.embedded.server.Recheck(name) })
	}
	s.clusters.Subscribe(s.proxy.Changed)
	s.clusters.Subscribe(s.health.ClusterChanged)
	if s.profiles != nil {
		s.clusters.Subscribe(s.profiles.ClusterChanged)
	}
	if s.registrar != nil {
		s.clusters.Subscribe(s.registrar.ClusterChanged)
	}
	s.renewals.tokens.OnChange(s.health.Trigger)
	s.renewals.agents.OnChange(s.health.Trigger)
	s.renewals.upkeep.OnChange(s.health.Trigger)
	if s.embedded != nil {
		s.embedded.server.OnAgentsChange(s.proxyMetrics.SetAgents)
		if s.replicas != nil {
			s.embedded.server.OnAgentsChange(s.replicas.SetAgents)
		}
		s.embedded.server.OnAgentsChange(func(name string, _ int) { s.health.AgentsChanged(name) })
		s.embedded.server.OnAgentsChange(s.renewals.agentsChanged)
		s.embedded.server.OnAgentLeaving(s.proxy.Reconnect)
		s.embedded.server.OnRefusal(func(name string) {
			if _, registered := s.clusters.Get(name); registered { // others have no metrics
				s.proxyMetrics.AgentRefused(name)
			}
		})
		s.embedded.server.OnFailingAgent(s.proxyMetrics.SetAgentFailing)
		s.embedded.server.OnFailingAgent(func(name, _ string, _ bool) { s.health.Trigger(name) })
		s.embedded.server.OnUpgrade(s.proxyMetrics.TunnelUpgrade)
		s.embedded.server.OnStreamsChange(func(name string, n tunnel.Streams) {
			s.proxyMetrics.SetTunnelStreams(name, n.Requests, n.Upgrades, n.Parked)
		})
	}
	if s.apiService != nil {
		s.certificate.keeper.OnPublish(s.apiService.publish)
	}
}

// Address is where the gateway's own HTTPS endpoint listens.
func (s *Server) Address() net.Addr { return s.generic.SecureServingInfo.Listener.Addr() }

// TunnelAddress is where agents connect. It is nil unless the tunnel server is embedded.
func (s *Server) TunnelAddress() net.Addr { return agentAddress(s.embedded) }

// Run serves until ctx ends, waits for requests in flight, and stops everything. It returns early
// if a part fails. A Server runs once.
func (s *Server) Run(ctx context.Context) error {
	defer s.traces.close()
	// The API server stops first. The parts that it needs run until it has stopped.
	partsCtx, stopParts := context.WithCancel(context.WithoutCancel(ctx))
	defer stopParts()
	servingCtx, stopServing := context.WithCancel(ctx)
	defer stopServing()

	group, partsCtx := errgroup.WithContext(partsCtx)
	for _, t := range s.parts() {
		group.Go(func() error { return t.runNamed(partsCtx) })
	}
	group.Go(func() error {
		defer stopParts()
		serve := task{"the API server", func(ctx context.Context) error { return s.shutdown.run(ctx, s.generic, s.proxy) }}
		return serve.runNamed(servingCtx)
	})
	if s.replicas != nil {
		defer context.AfterFunc(servingCtx, s.replicas.Drain)()
	}
	if s.embedded != nil {
		defer context.AfterFunc(servingCtx, s.embedded.server.Leave)()
	}
	// If a part fails, the API server stops, too.
	defer context.AfterFunc(partsCtx, stopServing)()
	klog.InfoS("Starting the gateway", "address", s.Address(), "tunnelMode", s.config.Tunnel.Mode, "tunnelAddress", s.TunnelAddress(),
		"secretNamespace", s.config.Hub.SecretNamespace, "memoryBudget", s.config.MemoryBudget)
	return group.Wait()
}

// parts are what runs in every replica while the API server runs.
func (s *Server) parts() []task {
	parts := []task{
		{"the store of clusters", s.clusters.Run},
		{"the tunnel", s.tunnel.run},
		{"the leader's tasks", s.leader.run},
		{"the rules for identities", s.identity.run},
	}
	if s.replicas != nil {
		parts = append(parts, task{"the other replicas", s.replicas.run})
	}
	if s.certificate != nil {
		parts = append(parts, task{"the serving certificate", s.certificate.keeper.Follow})
	}
	return parts
}

// runNamed runs the task. Its error names the task. A task that ends because of its context has not
// failed.
func (t task) runNamed(ctx context.Context) error {
	err := t.run(ctx)
	if err == nil || errors.Is(err, context.Canceled) {
		return nil
	}
	return fmt.Errorf("%s: %w", t.name, err)
}
