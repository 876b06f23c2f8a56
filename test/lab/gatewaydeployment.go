// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	discoveryclient "k8s.io/client-go/kubernetes/typed/discovery/v1"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/utils/ptr"
)

// GatewayDeploymentOptions describe a Deployment of the gateway.
type GatewayDeploymentOptions struct {
	// Hub is its cluster. It needs --enable-aggregator-routing, because there is no kube-proxy.
	// Required.
	Hub *Cluster
	// Address is the address of the lab's host on which the gateways listen, and TunnelPort that of
	// the Service for agents there. Required.
	Address    string
	TunnelPort int
	// Program returns how the program of an image is run: Path, and, in a container, Container and
	// Env. Required.
	Program func(image string) (ProcessOptions, error)
}

// GatewayDeployment runs the gateway of the Deployment cluster-gateway as a cluster would, always
// with one replica. If the Pod template changes, it starts a new gateway, and stops the old one
// when the new one is ready. When the Deployment is deleted, it stops the gateway. It also
// publishes the endpoints of both Services. It is safe for concurrent use.
type GatewayDeployment struct {
	lab    *Lab
	opts   GatewayDeploymentOptions
	tunnel *Relay
	stop   context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	current *gatewayPod
	rolls   int
	err     error
}

// gatewayPod is a gateway that runs.
type gatewayPod struct {
	*Process
	container        corev1.Container
	port, tunnelPort int
	grace            time.Duration
}

// RunGatewayDeployment runs the gateways of a Deployment until Stop. The Deployment may be created
// later.
func (l *Lab) RunGatewayDeployment(o GatewayDeploymentOptions) (*GatewayDeployment, error) {
	tunnel, err := NewRelay(net.JoinHostPort(o.Address, strconv.Itoa(o.TunnelPort)))
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	d := &GatewayDeployment{lab: l, opts: o, tunnel: tunnel, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(d.done)
		d.fail(d.run(ctx))
	}()
	return d, nil
}

// Process returns the gateway that serves, or nil if there is none, and how often a gateway has
// been replaced.
func (d *GatewayDeployment) Process() (gateway *Process, rolls int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.current == nil {
		return nil, d.rolls
	}
	return d.current.Process, d.rolls
}

// Err returns the errors that occurred so far.
func (d *GatewayDeployment) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// Stop stops the gateway, and returns the errors that occurred.
func (d *GatewayDeployment) Stop() error {
	d.stop()
	<-d.done
	return errors.Join(d.Err(), d.tunnel.Close())
}

func (d *GatewayDeployment) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = errors.Join(d.err, err)
}

func (d *GatewayDeployment) run(ctx context.Context) error {
	var leaving sync.WaitGroup
	defer leaving.Wait()
	end := func(pod *gatewayPod) {
		if pod != nil {
			d.tunnel.Remove(net.JoinHostPort(d.opts.Address, strconv.Itoa(pod.tunnelPort)))
			leaving.Go(func() { d.fail(pod.Stop()) })
		}
	}
	defer func() { end(d.replace(nil)) }()
	for count := 0; ; {
		deployment, err := d.opts.Hub.client.AppsV1().Deployments(defaultServiceNamespace).Get(ctx, defaultService, metav1.GetOptions{})
		switch {
		case ctx.Err() != nil:
			return nil
		case apierrors.IsNotFound(err):
			if old := d.replace(nil); old != nil {
				end(old)
				if err := d.endpoints().Delete(ctx, endpointSlice, metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
					d.fail(err)
				}
			}
		case err != nil:
			return err
		default:
			pod := &gatewayPod{container: deployment.Spec.Template.Spec.Containers[0]}
			pod.grace = time.Duration(ptr.Deref(deployment.Spec.Template.Spec.TerminationGracePeriodSeconds, 30)) * time.Second
			if d.current != nil && reflect.DeepEqual(d.current.container, pod.container) {
				break
			}
			count++
			switch err := d.start(ctx, pod, fmt.Sprintf("gateway-%d", count)); {
			case ctx.Err() != nil:
				return nil // closing the lab ends it
			case err != nil:
				return err
			}
			end(d.replace(pod))
		}
		select {
		case <-ctx.Done():
		case <-time.After(deploymentInterval):
		}
	}
}

// replace sets the current gateway, and returns the previous one.
func (d *GatewayDeployment) replace(next *gatewayPod) (old *gatewayPod) {
	d.mu.Lock()
	defer d.mu.Unlock()
	old, d.current = d.current, next
	if old != nil && next != nil {
		d.rolls++
	}
	return old
}

// start starts a gateway and makes it the endpoint of the Services when it is ready.
func (d *GatewayDeployment) start(ctx context.Context, pod *gatewayPod, name string) error {
	options, err := d.process(ctx, pod, name)
	if err != nil {
		return err
	}
	if pod.Process, err = d.lab.StartProcess(ctx, options); err != nil {
		return err
	}
	d.tunnel.Add(net.JoinHostPort(d.opts.Address, strconv.Itoa(pod.tunnelPort)))
	return d.publish(ctx, pod)
}

// process returns how a gateway is started.
func (d *GatewayDeployment) process(ctx context.Context, pod *gatewayPod, name string) (o ProcessOptions, err error) {
	if o, err = d.opts.Program(pod.container.Image); err != nil {
		return o, err
	}
	o.Name, o.StopTimeout = name, pod.grace
	var peerPort int
	for _, port := range []*int{&pod.port, &pod.tunnelPort, &peerPort} {
		if *port, err = d.lab.FreePort(); err != nil {
			return o, err
		}
	}
	for _, arg := range pod.container.Args {
		o.Args = append(o.Args, strings.ReplaceAll(arg, "$(POD_IP)", d.opts.Address))
	}
	// A Pod has all ports and addresses for itself. This process shares them with others.
	o.Args = append(o.Args, "--bind-address="+d.opts.Address, "--secure-port="+strconv.Itoa(pod.port),
		"--peer-bind-address="+d.opts.Address, "--peer-port="+strconv.Itoa(peerPort),
		"--tunnel-bind-address="+d.opts.Address, "--tunnel-port="+strconv.Itoa(pod.tunnelPort))
	token, err := d.opts.Hub.ServiceAccountToken(ctx, defaultServiceNamespace, defaultService, "")
	if err != nil {
		return o, err
	}
	o.ReadyURL = "https://" + net.JoinHostPort(d.opts.Address, strconv.Itoa(pod.port)) + "/readyz"
	o.ReadyTLS = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // a kubelet does not verify it, either
	dir := filepath.Join(d.lab.dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return o, err
	}
	if o.Container == nil {
		o.Args = append(o.Args, "--kubeconfig="+filepath.Join(dir, "kubeconfig"))
		return o, WriteKubeconfig(filepath.Join(dir, "kubeconfig"), d.opts.Hub.Endpoint(), d.opts.Hub.CAPEM(), &clientcmdapi.AuthInfo{Token: token})
	}
	// What every Pod has.
	o.Env = append(o.Env, "KUBERNETES_SERVICE_HOST="+d.opts.Hub.Address(), "KUBERNETES_SERVICE_PORT="+strconv.Itoa(d.opts.Hub.Port()))
	o.Container.Mounts = map[string]string{"/var/run/secrets/kubernetes.io/serviceaccount": dir}
	return o, errors.Join(
		os.WriteFile(filepath.Join(dir, "token"), []byte(token), 0o644),
		os.WriteFile(filepath.Join(dir, corev1.ServiceAccountRootCAKey), d.opts.Hub.CAPEM(), 0o644),
		os.WriteFile(filepath.Join(dir, "namespace"), []byte(defaultServiceNamespace), 0o644))
}

// publish makes a gateway the endpoint of the Service of the API.
func (d *GatewayDeployment) publish(ctx context.Context, pod *gatewayPod) error {
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: endpointSlice, Labels: map[string]string{discoveryv1.LabelServiceName: defaultService}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{d.opts.Address}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}}},
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("https"), Port: ptr.To(int32(pod.port))}},
	}
	if _, err := d.endpoints().Create(ctx, slice, metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		return err
	}
	_, err := d.endpoints().Update(ctx, slice, metav1.UpdateOptions{})
	return err
}

// endpointSlice is the name of the EndpointSlice of the Service of the API.
const endpointSlice = "cluster-gateway-process"

func (d *GatewayDeployment) endpoints() discoveryclient.EndpointSliceInterface {
	return d.opts.Hub.client.DiscoveryV1().EndpointSlices(defaultServiceNamespace)
}
