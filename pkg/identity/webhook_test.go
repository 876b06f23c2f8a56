// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

// webhookServer is a webhook. Its handler is the fault that a test wants.
func webhookServer(t *testing.T, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(handler)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s
}

// newTestWebhook trusts the servers.
func newTestWebhook(t *testing.T, c WebhookConfig, servers ...*httptest.Server) *Webhook {
	t.Helper()
	pool := x509.NewCertPool()
	for _, s := range servers {
		pool.AddCert(s.Certificate())
	}
	c.TLS = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	w := NewWebhook(c)
	t.Cleanup(w.Close)
	return w
}

func answerWith(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, text)
	}
}

const allowedJack = `{"apiVersion":"cluster.core.oam.dev/v1alpha1","kind":"IdentityExchange","status":{"allowed":true,"user":{"username":"jack","uid":"1","groups":["g","system:authenticated"]}}}`

// TestWebhook checks the question, the answer, and that equal questions are asked once.
func TestWebhook(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	var question atomic.Value
	release := make(chan struct{})
	s := webhookServer(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		var got map[string]any
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil || r.Method != http.MethodPost || r.Header.Get("Authorization") != "" {
			t.Error(r.Method, err)
		}
		question.Store(got)
		<-release
		answerWith(allowedJack)(w, r)
	})
	w := newTestWebhook(t, WebhookConfig{}, s)
	rules, err := ParseRules([]byte("spec: {clientIdentityExchanger: {rules: [{name: ask, type: ExternalIdentityExchanger, source: {userPattern: 'j.*'}, url: '"+s.URL+"/exchange'}]}}"), RuleOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r := NewResolver(Config{Global: fixed{rules: rules}, Webhook: w})
	joe := User{Name: "joe", Groups: []string{"a"}, Extra: map[string][]string{"k": {"v"}, "authentication.kubernetes.io/credential-id": {"secret"}}}
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			seen, err := r.Resolve(t.Context(), "edge", Policy{Mode: ModeRules}, joe)
			h, _ := seen.Headers()
			if err != nil || seen.Rule != "ask" || !cmp.Equal(h, http.Header{"Impersonate-User": {"jack"}, "Impersonate-Uid": {"1"}, "Impersonate-Group": {"g"}}) {
				t.Errorf("%+v, %v", seen, err)
			}
		})
	}
	close(release)
	group.Wait()
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	want := map[string]any{"apiVersion": "cluster.core.oam.dev/v1alpha1", "kind": "IdentityExchange", "spec": map[string]any{
		"cluster": "edge", "rule": "ask", "user": map[string]any{"username": "joe", "groups": []any{"a"}, "extra": map[string]any{"k": []any{"v"}}},
	}}
	if d := cmp.Diff(want, question.Load()); d != "" {
		t.Errorf("question (-want +got):\n%s", d)
	}
	before := asked.Load()
	// Anything that differs is another question.
	for _, u := range []User{{Name: "jo"}, {Name: "joe"}, {Name: "joe", UID: "1"}, {Name: "joe", Groups: []string{"b"}}} {
		if _, err := r.Resolve(t.Context(), "edge", Policy{Mode: ModeRules}, u); err != nil {
			t.Error(err)
		}
	}
	if _, err := r.Resolve(t.Context(), "other", Policy{Mode: ModeRules}, joe); err != nil {
		t.Error(err)
	}
	if n := asked.Load() - before; n != 5 {
		t.Errorf("asked %d times", n)
	}
	// A name that is not text is not asked about.
	if _, err := r.Resolve(t.Context(), "edge", Policy{Mode: ModeRules}, User{Name: "j\xff"}); err == nil || asked.Load()-before != 5 {
		t.Error(err)
	}
}

// TestWebhookFaults checks that every answer but the right one refuses.
func TestWebhookFaults(t *testing.T) {
	t.Parallel()
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	answer := func(status string) http.HandlerFunc {
		return answerWith(`{"apiVersion":"cluster.core.oam.dev/v1alpha1","kind":"IdentityExchange","status":` + status + `}`)
	}
	elsewhere := webhookServer(t, func(w http.ResponseWriter, r *http.Request) {
		t.Error("a redirect was followed")
		answerWith(allowedJack)(w, r)
	})
	for name, test := range map[string]struct {
		handler http.HandlerFunc
		want    Reason
	}{
		"it hangs": {func(_ http.ResponseWriter, r *http.Request) { <-hang }, ReasonExchangeFailed},
		"it hangs in its answer": {func(w http.ResponseWriter, r *http.Request) {
			answerWith("{")(w, r)
			_ = http.NewResponseController(w).Flush()
			<-hang
		}, ReasonExchangeFailed},
		"garbage": {answerWith("\x00\xff garbage"), ReasonExchangeFailed},
		"HTML": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, allowedJack)
		}, ReasonExchangeFailed},
		"nothing": {answerWith(""), ReasonExchangeFailed},
		"5 MB":    {answerWith(allowedJack + strings.Repeat(" ", 5<<20)), ReasonExchangeFailed},
		"an endless header": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X", strings.Repeat("x", 1<<20))
			answerWith(allowedJack)(w, r)
		}, ReasonExchangeFailed},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		}, ReasonExchangeFailed},
		"an error with an answer": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(500)
			_, _ = io.WriteString(w, allowedJack)
		}, ReasonExchangeFailed},
		"201": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(201)
			_, _ = io.WriteString(w, allowedJack)
		}, ReasonExchangeFailed},
		"it breaks off":            {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, ReasonExchangeFailed},
		"another kind":             {answerWith(strings.Replace(allowedJack, "IdentityExchange", "TokenReview", 1)), ReasonExchangeFailed},
		"an unknown field":         {answer(`{"allowed":true,"user":{"username":"jack","Groups":["g"]}}`), ReasonExchangeFailed},
		"a field twice":            {answer(`{"allowed":true,"user":{"username":"jack","username":"root"}}`), ReasonExchangeFailed},
		"two answers":              {answerWith(allowedJack + allowedJack), ReasonExchangeFailed},
		"no status":                {answerWith(`{"apiVersion":"cluster.core.oam.dev/v1alpha1","kind":"IdentityExchange"}`), ReasonExchangeFailed},
		"allowed as nobody":        {answer(`{"allowed":true}`), ReasonExchangeFailed},
		"allowed without a name":   {answer(`{"allowed":true,"user":{"groups":["g"]}}`), ReasonNoUser},
		"denied":                   {answer(`{"allowed":false,"reason":"not\u001b[31m you","user":{"username":"jack"}}`), ReasonExchangeDenied},
		"an empty status":          {answer(`{}`), ReasonExchangeDenied},
		"system:masters":           {answer(`{"allowed":true,"user":{"username":"jack","groups":["system:masters"]}}`), ReasonReserved},
		"a Node":                   {answer(`{"allowed":true,"user":{"username":"system:node:n"}}`), ReasonReserved},
		"a ServiceAccount":         {answer(`{"allowed":true,"user":{"username":"system:serviceaccount:kube-system:x"}}`), ReasonReserved},
		"anonymous":                {answer(`{"allowed":true,"user":{"username":"system:anonymous"}}`), ReasonReserved},
		"a line break in the name": {answer(`{"allowed":true,"user":{"username":"a\nb"}}`), ReasonInvalid},
		"hundreds of groups":       {answer(`{"allowed":true,"user":{"username":"a","groups":["` + manyGroups() + `"]}}`), ReasonTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := webhookServer(t, test.handler)
			w := newTestWebhook(t, WebhookConfig{Timeout: 300 * time.Millisecond}, s, elsewhere)
			rules, err := ParseRules([]byte("spec: {clientIdentityExchanger: {rules: [{type: ExternalIdentityExchanger, source: {}, url: '"+s.URL+"'}]}}"), RuleOptions{})
			if err != nil {
				t.Fatal(err)
			}
			r := NewResolver(Config{Global: fixed{rules: rules}, Webhook: w})
			seen, err := r.Resolve(t.Context(), "c", Policy{Mode: ModeRules}, User{Name: "joe"})
			var refusal *Refusal
			if !errors.As(err, &refusal) || refusal.Reason != test.want || refusal.Temporary != (test.want == ReasonExchangeFailed) {
				t.Fatalf("%+v, %#v", seen, err)
			}
			if strings.ContainsAny(refusal.Message, "\x00\x1b\n") || strings.Contains(refusal.Message, s.URL) {
				t.Errorf("message %q", refusal.Message)
			}
		})
	}
}

func manyGroups() string {
	var all []string
	for i := range 400 {
		all = append(all, fmt.Sprint("g", i))
	}
	return strings.Join(all, `","`)
}

// TestWebhookIsVerified checks that a webhook with a certificate of an unknown CA is not asked, and
// that without webhooks the rules that need one refuse.
func TestWebhookIsVerified(t *testing.T) {
	t.Parallel()
	s := webhookServer(t, func(http.ResponseWriter, *http.Request) { t.Error("asked") })
	w := newTestWebhook(t, WebhookConfig{})
	if _, err := w.Exchange(t.Context(), s.URL, Query{User: User{Name: "joe"}}); err == nil {
		t.Error("not verified")
	}
	rules, err := ParseRules([]byte("spec: {clientIdentityExchanger: {rules: [{type: ExternalIdentityExchanger, source: {}, url: 'https://a'}]}}"), RuleOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if seen, err := NewResolver(Config{Global: fixed{rules: rules}}).Resolve(t.Context(), "c", Policy{Mode: ModeRules}, User{Name: "joe"}); err == nil {
		t.Errorf("%+v", seen)
	}
}

// TestWebhookAnswersExpire checks the life of answers, and that a failure is not remembered.
func TestWebhookAnswersExpire(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	away := atomic.Bool{}
	s := webhookServer(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if away.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		answerWith(allowedJack)(w, r)
	})
	ask := func(w *Webhook) error {
		_, err := w.Exchange(t.Context(), s.URL, Query{User: User{Name: "joe"}})
		return err
	}
	always := newTestWebhook(t, WebhookConfig{TTL: -1}, s)
	for range 3 {
		if err := ask(always); err != nil {
			t.Fatal(err)
		}
	}
	if asked.Load() != 3 {
		t.Errorf("asked %d times", asked.Load())
	}
	away.Store(true)
	remembers := newTestWebhook(t, WebhookConfig{TTL: time.Hour}, s)
	if err := ask(remembers); err == nil {
		t.Error("away")
	}
	away.Store(false)
	if err := ask(remembers); err != nil {
		t.Error("a failure is remembered:", err)
	}
	away.Store(true)
	if err := ask(remembers); err != nil {
		t.Error("an answer is not remembered:", err)
	}
	short := newTestWebhook(t, WebhookConfig{TTL: time.Nanosecond}, s)
	if err := ask(short); err == nil {
		t.Error("away, and the answer is of another Webhook")
	}
}

// TestWebhookCallerLeaves checks that a caller who leaves does not end the question of others, and
// that Close ends it.
func TestWebhookCallerLeaves(t *testing.T) {
	t.Parallel()
	arrived, release := make(chan struct{}), make(chan struct{})
	s := webhookServer(t, func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		select {
		case <-release:
			answerWith(allowedJack)(w, r)
		case <-r.Context().Done():
		}
	})
	w := newTestWebhook(t, WebhookConfig{Timeout: time.Minute}, s)
	ctx, leave := context.WithCancel(t.Context())
	errs := make(chan error, 2)
	go func() {
		_, err := w.Exchange(ctx, s.URL, Query{User: User{Name: "joe"}})
		errs <- err
	}()
	<-arrived
	leave()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	go func() {
		u, err := w.Exchange(t.Context(), s.URL, Query{User: User{Name: "joe"}})
		if err == nil && u.Name != "jack" {
			t.Error(u)
		}
		errs <- err
	}()
	close(release)
	select {
	case err := <-errs:
		if err != nil {
			t.Error(err)
		}
	case <-arrived:
		t.Error("asked again while the question was open")
	}
	w.Close()
	if _, err := w.Exchange(t.Context(), s.URL, Query{User: User{Name: "other"}}); err == nil {
		t.Error("asked after Close")
	}
}
