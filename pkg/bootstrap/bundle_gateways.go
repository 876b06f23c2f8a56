// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/utils/ptr"
)

// gatewayPaths are what is read from each replica, with the names of the files.
var gatewayPaths = []struct{ path, file string }{
	{"/version", "version.json"}, {"/readyz?verbose", "readyz.txt"}, {"/debug/tunnels", "tunnels.json"}, {"/metrics", "metrics.txt"},
}

// maxGatewayAnswer bounds what is read from a path of a replica.
const maxGatewayAnswer = 64 << 20

// replica is one process of the gateway.
type replica struct {
	name string
	host string
	port int
	// pod is where the port can be forwarded from. It is empty if the replica is not a Pod.
	namespace, pod string
}

func (r replica) address() string { return net.JoinHostPort(r.host, strconv.Itoa(r.port)) }

// readGateways reads the state of each replica over the gateway's own endpoint: the hub does not
// pass these paths on. The certificate is always verified, since the caller's credential is sent.
func (c *collection) readGateways(ctx context.Context) string {
	serverName, ca, err := gatewayTrust(ctx, c.hub)
	if err != nil {
		c.miss("the state of the replicas", err)
		return "none"
	}
	replicas, err := c.replicas(ctx)
	c.miss("the addresses of the replicas", err)
	read := 0
	for _, r := range replicas {
		config := rest.CopyConfig(c.hub.config)
		config.TLSClientConfig.ServerName, config.TLSClientConfig.Insecure = serverName, false
		config.TLSClientConfig.CAData, config.TLSClientConfig.CAFile = ca, ""
		config.Proxy = nil
		if err := c.readReplica(ctx, r, config); err != nil {
			c.miss("the state of the replica "+r.name, err)
		} else {
			read++
		}
	}
	return fmt.Sprintf("%d of %d replicas answer", read, len(replicas))
}

// replicas returns the processes behind the gateway's Service.
func (c *collection) replicas(ctx context.Context) ([]replica, error) {
	if c.service == nil {
		return nil, errors.New("the Service of the gateway is not known")
	}
	if c.service.Spec.Type == corev1.ServiceTypeExternalName {
		return []replica{{name: c.service.Spec.ExternalName, host: c.service.Spec.ExternalName, port: c.port}}, nil
	}
	list, err := c.hub.kube.DiscoveryV1().EndpointSlices(c.service.Namespace).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + c.service.Name})
	if err != nil {
		return nil, err
	}
	var all []replica
	for _, slice := range list.Items {
		i := slices.IndexFunc(slice.Ports, func(p discoveryv1.EndpointPort) bool { return p.Port != nil && ptr.Deref(p.Name, "") == c.portName() })
		if i < 0 {
			continue
		}
		for _, e := range slice.Endpoints {
			if len(e.Addresses) == 0 {
				continue
			}
			r := replica{name: e.Addresses[0], host: e.Addresses[0], port: int(*slice.Ports[i].Port), namespace: slice.Namespace}
			if e.TargetRef != nil && e.TargetRef.Kind == "Pod" {
				r.name, r.pod = e.TargetRef.Name, e.TargetRef.Name
			}
			all = append(all, r)
		}
	}
	return all, nil
}

// portName is the name of the port of the gateway's Service that the hub uses.
func (c *collection) portName() string {
	for _, p := range c.service.Spec.Ports {
		if int(p.Port) == c.port {
			return p.Name
		}
	}
	return ""
}

// readReplica adds the files of one replica. A path that cannot be read is missing. It is an error
// if none can be read.
func (c *collection) readReplica(ctx context.Context, r replica, config *rest.Config) error {
	ctx, cancel := c.within(ctx)
	defer cancel()
	dialer := &replicaDialer{collection: c, replica: r}
	defer dialer.close()
	config.Host, config.APIPath, config.Dial = "https://"+r.address(), "", dialer.dial
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	var failed []error
	for _, p := range gatewayPaths {
		text, err := read(ctx, client, config.Host+p.path)
		failed = append(failed, err)
		if err == nil {
			c.put("gateways/"+r.name+"/"+p.file, text)
		}
	}
	if !slices.Contains(failed, nil) {
		return failed[0] // the others are the same
	}
	for i, p := range gatewayPaths {
		c.miss(p.path+" of the replica "+r.name, failed[i])
	}
	return nil
}

// read returns the answer to a GET, which must have the code 200.
func read(ctx context.Context, client *http.Client, address string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxGatewayAnswer))
	_ = response.Body.Close() // it was read
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %.300s", response.Status, body)
	}
	return string(body), err
}

// replicaDialer connects to one replica: to its own address if it can be reached from here, and
// otherwise to one that the hub forwards to its Pod.
type replicaDialer struct {
	*collection
	replica

	forward   sync.Once
	forwarded string
	err       error
	stop      func()
}

func (d *replicaDialer) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	directCtx, cancel := context.WithTimeout(ctx, connectTimeout/4)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(directCtx, network, d.address())
	if err == nil || d.pod == "" {
		return conn, err
	}
	d.forward.Do(func() { d.forwarded, d.stop, d.err = d.forwardPort(ctx, d.replica) })
	if d.err != nil {
		return nil, errors.Join(err, d.err)
	}
	return (&net.Dialer{}).DialContext(ctx, network, d.forwarded)
}

func (d *replicaDialer) close() {
	if d.stop != nil {
		d.stop()
	}
}

// forwardPort forwards a free port of this machine to a Pod, until stop is called.
func (c *collection) forwardPort(ctx context.Context, r replica) (address string, stop func(), err error) {
	transport, upgrader, err := spdy.RoundTripperFor(c.hub.config)
	if err != nil {
		return "", nil, err
	}
	to := c.hub.kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(r.namespace).Name(r.pod).SubResource("portforward").URL()
	stopped, ready, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, to)
	forwarder, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", r.port)}, stopped, ready, io.Discard, io.Discard)
	if err != nil {
		return "", nil, err
	}
	var running sync.WaitGroup
	running.Go(func() { done <- forwarder.ForwardPorts() })
	stop = func() {
		close(stopped)
		running.Wait()
	}
	select {
	case err := <-done:
		return "", nil, fmt.Errorf("forward a port to Pod %s: %w", r.pod, err)
	case <-ctx.Done():
		close(stopped) // ForwardPorts may still be in the request, which has no context
		return "", nil, ctx.Err()
	case <-ready:
	}
	ports, err := forwarder.GetPorts()
	if err != nil {
		stop()
		return "", nil, err
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(int(ports[0].Local))), stop, nil
}
