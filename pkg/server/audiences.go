// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"net/http"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/authenticatorfactory"
	"k8s.io/apiserver/pkg/authentication/group"
	"k8s.io/apiserver/pkg/authentication/request/bearertoken"
	unionauth "k8s.io/apiserver/pkg/authentication/request/union"
	"k8s.io/apiserver/pkg/authentication/request/websocket"
	"k8s.io/apiserver/pkg/authentication/token/cache"
	webhooktoken "k8s.io/apiserver/plugin/pkg/authenticator/token/webhook"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// withAudiences returns an authenticator that also accepts tokens for --api-audiences. Tokens that
// the hub accepts for itself are accepted as before. They come first: to ask only for the gateway's
// audiences would refuse them.
func (o *GenericOptions) withAudiences(hub authenticator.Request) (authenticator.Request, error) {
	if len(o.APIAudiences) == 0 {
		return hub, nil
	}
	client, err := o.tokenReviewClient()
	if err != nil {
		return nil, fmt.Errorf("cannot authenticate tokens for --api-audiences: %w", err)
	}
	backoff := o.Authentication.WebhookRetryBackoff
	if backoff == nil {
		backoff = webhooktoken.DefaultRetryBackoff()
	}
	reviews, err := webhooktoken.NewFromInterface(client.AuthenticationV1(), nil, *backoff, o.Authentication.TokenRequestTimeout,
		webhooktoken.AuthenticatorMetrics{
			RecordRequestTotal: authenticatorfactory.RecordRequestTotal, RecordRequestLatency: authenticatorfactory.RecordRequestLatency,
		})
	if err != nil {
		return nil, fmt.Errorf("cannot authenticate tokens for --api-audiences: %w", err)
	}
	token := cache.New(audienceToken{reviews, o.APIAudiences}, false, o.Authentication.CacheTTL, o.Authentication.CacheTTL)
	forGateway := group.NewAuthenticatedGroupAdder(unionauth.New(bearertoken.New(token), websocket.NewProtocolAuthenticator(token)))
	return audienceRequest{hub: hub, forGateway: forGateway}, nil
}

// tokenReviewClient returns a client like the one that k8s.io/apiserver makes for TokenReviews.
func (o *GenericOptions) tokenReviewClient() (kubernetes.Interface, error) {
	var config *rest.Config
	var err error
	if file := o.Authentication.RemoteKubeConfigFile; file != "" {
		config, err = clientcmd.BuildConfigFromFlags("", file)
	} else {
		config, err = rest.InClusterConfig()
	}
	if err != nil {
		return nil, err
	}
	config.QPS = -1 // users wait for it, and the hub has priority and fairness
	return kubernetes.NewForConfig(config)
}

// audienceToken accepts tokens for one of the audiences.
type audienceToken struct {
	authenticator.Token
	audiences authenticator.Audiences
}

// AuthenticateToken implements authenticator.Token.
func (t audienceToken) AuthenticateToken(ctx context.Context, token string) (*authenticator.Response, bool, error) {
	return t.Token.AuthenticateToken(authenticator.WithAudiences(ctx, t.audiences), token)
}

// audienceRequest accepts what hub accepts. If hub refuses a credential, forGateway decides.
type audienceRequest struct{ hub, forGateway authenticator.Request }

var _ authenticator.Request = audienceRequest{}

// AuthenticateRequest implements authenticator.Request. Its error is that of hub.
func (a audienceRequest) AuthenticateRequest(r *http.Request) (*authenticator.Response, bool, error) {
	resp, ok, err := a.hub.AuthenticateRequest(r)
	if err == nil {
		return resp, ok, nil
	}
	if resp, ok, forGatewayErr := a.forGateway.AuthenticateRequest(r); ok && forGatewayErr == nil {
		return resp, true, nil
	}
	return nil, false, err
}
