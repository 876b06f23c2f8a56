// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"net/http"

	"golang.org/x/sync/singleflight"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	clientauthentication "k8s.io/client-go/pkg/apis/clientauthentication"
	"k8s.io/client-go/plugin/pkg/client/auth/exec"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/transport"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// pluginError reports that a credential plugin provided no credential.
type pluginError struct{ err error }

func (e *pluginError) Error() string { return "the credential plugin failed: " + e.err.Error() }
func (e *pluginError) Unwrap() error { return e.err }

func newPluginAuthenticator(c *cluster.Cluster, plugin *clientcmdapi.ExecConfig) (authenticator, error) {
	e, err := exec.GetAuthenticator(plugin, &clientauthentication.Cluster{
		Server: c.Endpoint.String(), TLSServerName: c.ServerName, InsecureSkipTLSVerify: c.Insecure, CertificateAuthorityData: c.CAData,
	})
	if err != nil {
		return authenticator{}, &pluginError{err}
	}
	var config transport.Config
	if err := e.UpdateTransportConfig(&config); err != nil {
		return authenticator{}, &pluginError{err}
	}
	certificate := config.TLS.GetCertHolder.GetCert
	flight := &singleflight.Group{}
	return authenticator{
		clientCertificate: certificate,
		wrap: func(rt http.RoundTripper) http.RoundTripper {
			ready := func() error { _, err := certificate(); return err }
			return &pluginGate{ready: ready, flight: flight, next: config.WrapTransport(rt)}
		},
		track: func(dial dialer.DialFunc) (dialer.DialFunc, error) {
			config := transport.Config{DialHolder: &transport.DialHolder{Dial: dial}}
			if err := e.UpdateTransportConfig(&config); err != nil {
				return nil, &pluginError{err}
			}
			return config.DialHolder.Dial, nil
		},
	}, nil
}

// pluginGate runs the plugin before a request needs its credential, so that a request which waits
// for the plugin still ends in time. The plugin does not know the request's context, and
// client-go's RoundTripper waits for it under a lock. Only one goroutine waits for the plugin,
// however many requests there are.
type pluginGate struct {
	ready  func() error
	flight *singleflight.Group
	next   http.RoundTripper
}

var _ utilnet.RoundTripperWrapper = (*pluginGate)(nil)

func (g *pluginGate) RoundTrip(req *http.Request) (*http.Response, error) {
	done := g.flight.DoChan("", func() (any, error) { return nil, g.ready() })
	select {
	case r := <-done:
		if r.Err != nil {
			closeBody(req)
			return nil, &pluginError{r.Err}
		}
	case <-req.Context().Done():
		closeBody(req)
		return nil, context.Cause(req.Context())
	}
	// client-go's RoundTripper changes the request that it gets.
	return g.next.RoundTrip(req.Clone(req.Context()))
}

// WrappedRoundTripper implements utilnet.RoundTripperWrapper.
func (g *pluginGate) WrappedRoundTripper() http.RoundTripper { return g.next }

// closeBody closes the body of a request, which a RoundTripper must do even if it does not send the
// request.
func closeBody(req *http.Request) {
	if req.Body != nil {
		_ = req.Body.Close()
	}
}
