// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"crypto/tls"
	"net/http"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	clientauthenticationv1 "k8s.io/client-go/pkg/apis/clientauthentication/v1"
	"k8s.io/client-go/util/connrotation"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/execplugin"
)

// pluginError reports that a credential plugin provided no credential.
type pluginError struct{ err error }

func (e *pluginError) Error() string { return "the credential plugin failed: " + e.err.Error() }
func (e *pluginError) Unwrap() error { return e.err }

func newPluginAuthenticator(c *cluster.Cluster, command *execplugin.Command, logger klog.Logger) authenticator {
	connections := connrotation.NewConnectionTracker()
	source := pluginCredentials{execplugin.NewRunner(execplugin.Config{
		Command: command,
		Cluster: clientauthenticationv1.Cluster{
			Server: c.Endpoint.String(), TLSServerName: c.ServerName, InsecureSkipTLSVerify: c.Insecure, CertificateAuthorityData: c.CAData,
		},
		OnCertificateChange: connections.CloseAll,
		Logger:              logger.WithValues("cluster", c.Name),
	})}
	return authenticator{
		clientCertificate: func(ctx context.Context) (*tls.Certificate, error) {
			credential, err := source.get(ctx)
			if err != nil {
				return nil, err
			}
			return credential.Certificate, nil
		},
		wrap: func(rt http.RoundTripper) http.RoundTripper { return &pluginTransport{source: source, next: rt} },
		track: func(dial dialer.DialFunc) dialer.DialFunc {
			return connrotation.NewDialerWithTracker(connrotation.DialFunc(dial), connections).DialContext
		},
		close: source.runner.Close,
	}
}

// pluginCredentials are the credentials of a plugin, for as long as a request waits.
type pluginCredentials struct{ runner *execplugin.Runner }

func (s pluginCredentials) get(ctx context.Context) (*execplugin.Credential, error) {
	credential, err := s.runner.Credential(ctx)
	switch {
	case err == nil:
		return credential, nil
	case ctx.Err() != nil: // the request ended first
		return nil, context.Cause(ctx)
	default:
		return nil, &pluginError{err}
	}
}

// pluginTransport sends each request with the current credential of a plugin. It waits for the
// plugin, but not longer than the request may take.
type pluginTransport struct {
	source pluginCredentials
	next   http.RoundTripper
}

var _ utilnet.RoundTripperWrapper = (*pluginTransport)(nil)

func (t *pluginTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	credential, err := t.source.get(req.Context())
	if err != nil {
		closeBody(req)
		return nil, err
	}
	var authorization []string
	if credential.Token != "" {
		authorization = []string{"Bearer " + credential.Token}
	}
	resp, err := t.next.RoundTrip(withAuthorization(req, authorization))
	if err == nil && resp.StatusCode == http.StatusUnauthorized {
		t.source.runner.Reject(credential)
	}
	return resp, err
}

// WrappedRoundTripper implements utilnet.RoundTripperWrapper.
func (t *pluginTransport) WrappedRoundTripper() http.RoundTripper { return t.next }

// closeBody closes the body of a request, which a RoundTripper must do even if it does not send the
// request.
func closeBody(req *http.Request) {
	if req.Body != nil {
		_ = req.Body.Close()
	}
}
