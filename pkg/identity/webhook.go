// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"k8s.io/apimachinery/pkg/util/cache"
	"sigs.k8s.io/json"

	"github.com/oam-dev/cluster-gateway/pkg/internal/untrusted"
)

// Defaults of WebhookConfig, and limits of what a webhook can make the gateway hold.
const (
	DefaultWebhookTimeout = 5 * time.Second
	DefaultWebhookTTL     = 30 * time.Second

	maxWebhookAnswer  = 64 << 10
	maxWebhookHeader  = 64 << 10
	maxWebhookCached  = 4096
	maxWebhookConns   = 32
	webhookIdle       = 90 * time.Second
	webhookAPIVersion = "cluster.core.oam.dev/v1alpha1"
	webhookKind       = "IdentityExchange"
)

// Query is the question to a webhook.
type Query struct {
	// Cluster is the name of the cluster, and Rule that of the rule.
	Cluster, Rule string
	// User is the caller.
	User User
}

// DeniedError is the error about a caller that a webhook has refused.
type DeniedError struct {
	// Reason is what the webhook says, printable and of limited length. It may be empty.
	Reason string
}

// Error implements error.
func (e *DeniedError) Error() string { return "the webhook has refused the caller" + e.because() }

func (e *DeniedError) because() string {
	if e.Reason == "" {
		return ""
	}
	return ": " + e.Reason
}

// WebhookConfig is what a Webhook needs. In its zero value, the certificates of the operating
// system verify webhooks, and the gateway presents none.
type WebhookConfig struct {
	// TLS verifies the webhooks. Nil means the defaults of crypto/tls.
	TLS *tls.Config
	// Timeout limits a question. 0 means DefaultWebhookTimeout.
	Timeout time.Duration
	// TTL is how long an answer is used for the same question. 0 means DefaultWebhookTTL; less than
	// 0 means that every request asks.
	TTL time.Duration
}

// Webhook asks webhooks over HTTPS, and remembers their answers for a short time. A webhook that
// does not answer, or not as it must, is not remembered. It is safe for concurrent use. Close it
// after use.
type Webhook struct {
	timeout, ttl time.Duration
	client       *http.Client
	answers      *cache.LRUExpireCache
	flight       singleflight.Group

	// ctx ends with Close, which waits for the questions under way.
	ctx     context.Context //nolint:containedctx // a question outlives the request that asked first
	stop    context.CancelFunc
	mu      sync.Mutex
	closed  bool
	waiting sync.WaitGroup
}

var _ Exchanger = (*Webhook)(nil)

// NewWebhook returns a Webhook.
func NewWebhook(c WebhookConfig) *Webhook {
	w := &Webhook{timeout: c.Timeout, ttl: c.TTL, answers: cache.NewLRUExpireCache(maxWebhookCached)}
	if w.timeout == 0 {
		w.timeout = DefaultWebhookTimeout
	}
	if w.ttl == 0 {
		w.ttl = DefaultWebhookTTL
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.TLS != nil {
		config = c.TLS.Clone()
	}
	w.client = &http.Client{
		// Neither a proxy nor a redirect: the question names a caller, and the answer is trusted.
		Transport: &http.Transport{
			TLSClientConfig: config, TLSHandshakeTimeout: w.timeout, ForceAttemptHTTP2: true, DisableCompression: true,
			MaxConnsPerHost: maxWebhookConns, IdleConnTimeout: webhookIdle, MaxResponseHeaderBytes: maxWebhookHeader,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	w.ctx, w.stop = context.WithCancel(context.Background())
	return w
}

// Close ends the questions under way and waits for them. After that, every question fails.
func (w *Webhook) Close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.stop()
	w.waiting.Wait()
	w.client.CloseIdleConnections()
}

// answer is what a webhook has said.
type answer struct {
	user   User
	denied *DeniedError
}

func (a answer) result() (User, error) {
	if a.denied != nil {
		return User{}, a.denied
	}
	return a.user, nil
}

// Exchange implements Exchanger. Equal questions at the same time are asked once.
func (w *Webhook) Exchange(ctx context.Context, url string, q Query) (User, error) {
	question, err := encodeQuestion(q)
	if err != nil {
		return User{}, err
	}
	sum := sha256.Sum256(append([]byte(url+"\x00"), question...))
	key := string(sum[:])
	if known, ok := w.answers.Get(key); ok {
		return known.(answer).result()
	}
	// Whoever asked first may leave, and others still wait.
	if !w.begin() {
		return User{}, errors.New("the gateway is shutting down")
	}
	result := w.flight.DoChan(key, func() (any, error) {
		if known, ok := w.answers.Get(key); ok { // since it was looked up above
			return known, nil
		}
		a, err := w.ask(url, question)
		if err == nil && w.ttl > 0 {
			w.answers.Add(key, a, w.ttl)
		}
		return a, err
	})
	done := make(chan singleflight.Result, 1)
	go func() {
		defer w.waiting.Done()
		done <- <-result
	}()
	select {
	case r := <-done:
		if r.Err != nil {
			return User{}, r.Err
		}
		return r.Val.(answer).result()
	case <-ctx.Done():
		return User{}, context.Cause(ctx)
	}
}

// begin reports whether a question may be asked. Close waits for it.
func (w *Webhook) begin() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return false
	}
	w.waiting.Add(1)
	return true
}

// ask sends one question.
func (w *Webhook) ask(url string, question []byte) (answer, error) {
	ctx, cancel := context.WithTimeout(w.ctx, w.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(question))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "cluster-gateway")
	resp, err := w.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return answer{}, fmt.Errorf("webhook %s answered %d, and not 200", url, resp.StatusCode)
	}
	if kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return answer{}, fmt.Errorf("webhook %s answered with the type %s, and not application/json", url, quote(resp.Header.Get("Content-Type")))
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxWebhookAnswer+1))
	switch {
	case err != nil:
		return answer{}, fmt.Errorf("webhook %s: %w", url, err)
	case len(body) > maxWebhookAnswer:
		return answer{}, fmt.Errorf("webhook %s answered with more than %d bytes", url, maxWebhookAnswer)
	}
	a, err := decodeAnswer(body)
	if err != nil {
		return answer{}, fmt.Errorf("webhook %s: %s", url, untrusted.Limit(err.Error(), 256)) //nolint:errorlint // the text may be anything
	}
	return a, nil
}

// exchange is a question and its answer, in the form of a review of Kubernetes.
type exchange struct {
	APIVersion string          `json:"apiVersion"`
	Kind       string          `json:"kind"`
	Spec       *exchangeSpec   `json:"spec,omitempty"`
	Status     *exchangeStatus `json:"status,omitempty"`
}

type exchangeSpec struct {
	Cluster string       `json:"cluster"`
	Rule    string       `json:"rule"`
	User    exchangeUser `json:"user"`
}

type exchangeStatus struct {
	Allowed bool          `json:"allowed"`
	Reason  string        `json:"reason,omitempty"`
	User    *exchangeUser `json:"user,omitempty"`
}

// exchangeUser has the fields of authentication.k8s.io/v1 UserInfo.
type exchangeUser struct {
	Username string              `json:"username,omitempty"`
	UID      string              `json:"uid,omitempty"`
	Groups   []string            `json:"groups,omitempty"`
	Extra    map[string][]string `json:"extra,omitempty"`
}

// encodeQuestion returns the question as it is sent. It leaves out the extra values of Kubernetes
// itself: they differ from credential to credential, and say nothing about who the caller is.
func encodeQuestion(q Query) ([]byte, error) {
	u := exchangeUser{Username: q.User.Name, UID: q.User.UID, Groups: q.User.Groups}
	for key, values := range q.User.Extra {
		if !IsReservedExtra(strings.ToLower(key)) {
			if u.Extra == nil {
				u.Extra = map[string][]string{}
			}
			u.Extra[key] = values
		}
	}
	return stdjson.Marshal(exchange{APIVersion: webhookAPIVersion, Kind: webhookKind, Spec: &exchangeSpec{Cluster: q.Cluster, Rule: q.Rule, User: u}})
}

// decodeAnswer decodes an answer. It must be exactly what is expected.
func decodeAnswer(body []byte) (answer, error) {
	var e exchange
	strict, err := json.UnmarshalStrict(body, &e)
	if err := errors.Join(append(strict, err)...); err != nil {
		return answer{}, fmt.Errorf("the answer is not valid: %w", err)
	}
	switch {
	case e.APIVersion != webhookAPIVersion || e.Kind != webhookKind || e.Status == nil:
		return answer{}, fmt.Errorf("the answer is not a %s %s with a status", webhookAPIVersion, webhookKind)
	case !e.Status.Allowed:
		return answer{denied: &DeniedError{Reason: untrusted.Limit(e.Status.Reason, 256)}}, nil
	case e.Status.User == nil:
		return answer{}, errors.New("the answer allows the caller and names no user")
	}
	u := e.Status.User
	return answer{user: User{Name: u.Username, UID: u.UID, Groups: u.Groups, Extra: u.Extra}}, nil
}
