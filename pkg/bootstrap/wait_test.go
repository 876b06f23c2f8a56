// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// laggingHub is a hub whose gateway goes on answering about an earlier version of a Secret for a
// number of requests. What it serves as the ClusterGateway is rendered from the Secret as it is
// now.
type laggingHub struct {
	secret *corev1.Secret
	// stale is how many requests the gateway answers with the earlier version; answer does so.
	stale  atomic.Int32
	answer func(w http.ResponseWriter, review bool)
	// tokenID is the ID of the token in the Secret.
	tokenID string
	// lag is how many times the ClusterGateway shows an earlier version of the Secret.
	lag atomic.Int32
	// old is whether the cluster has no SelfSubjectReviews.
	old bool
}

func (h *laggingHub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	review := strings.HasSuffix(r.URL.Path, "/selfsubjectreviews")
	switch proxied := strings.HasPrefix(r.URL.Path, v1alpha1.ProxyPath("edge")+"/"); {
	case proxied && review && h.old:
		writeJSON(w, http.StatusNotFound, metav1.Status{Status: metav1.StatusFailure, Code: http.StatusNotFound, Reason: metav1.StatusReasonNotFound})
	case proxied && !review && h.stale.Load() > 0:
		h.answer(w, false)
	case proxied && review && h.stale.Add(-1) >= 0:
		h.answer(w, true)
	case proxied && review:
		writeReview(w, h.tokenID)
	case proxied:
		writeJSON(w, http.StatusOK, version.Info{GitVersion: "v1.37.0"})
	case strings.HasSuffix(r.URL.Path, "/secrets/edge"):
		writeJSON(w, http.StatusOK, h.secret)
	case r.URL.Path == v1alpha1.BasePath+"edge" && h.lag.Add(-1) >= 0:
		earlier := h.secret.DeepCopy()
		earlier.ResourceVersion = "7"
		writeJSON(w, http.StatusOK, cluster.Render(earlier, cluster.ParseOptions{}))
	case r.URL.Path == v1alpha1.BasePath+"edge":
		writeJSON(w, http.StatusOK, cluster.Render(h.secret, cluster.ParseOptions{}))
	default:
		writeJSON(w, http.StatusNotFound, metav1.Status{Status: metav1.StatusFailure, Code: http.StatusNotFound, Reason: metav1.StatusReasonNotFound})
	}
}

func writeReview(w http.ResponseWriter, id string) {
	writeJSON(w, http.StatusCreated, authenticationv1.SelfSubjectReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "SelfSubjectReview"},
		Status: authenticationv1.SelfSubjectReviewStatus{UserInfo: authenticationv1.UserInfo{
			Extra: map[string]authenticationv1.ExtraValue{"authentication.kubernetes.io/credential-id": {"JTI=" + id}},
		}},
	})
}

func writeJSON(w http.ResponseWriter, code int, o any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(o) // the client notices
}

func tokenWithID(id string) string {
	return "h." + base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"iat":1,"exp":4102444800,"jti":%q}`, id)) + ".s"
}

// newLaggingHub returns a hub with a valid Secret whose annotations still say that an earlier
// version was invalid, and a waiter for it.
func newLaggingHub(t *testing.T) (*laggingHub, *waiter) {
	t.Helper()
	h := &laggingHub{tokenID: "new"}
	h.secret = registration.ClusterSecret{
		Name: "edge", Namespace: v1alpha1.DefaultNamespace, Endpoint: "https://10.0.0.1:6443", Token: tokenWithID("new"), UID: "uid",
	}.Secret()
	h.secret.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}
	h.secret.UID, h.secret.ResourceVersion = "secret-uid", "8"
	h.secret.Annotations[v1alpha1.AnnotationHealthy] = "false"
	h.secret.Annotations[v1alpha1.AnnotationHealthyReason] = v1alpha1.ReasonInvalidSecret
	h.secret.Annotations[v1alpha1.AnnotationConditions] = `[{"type":"Ready","status":"False","reason":"InvalidSecret","message":"token: is missing"}]`
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	hub, err := newClusterClient("the hub", "--kubeconfig", &rest.Config{Host: server.URL}, nil)
	if err != nil {
		t.Fatal(err)
	}
	a := &app{Config: Config{Out: io.Discard, ErrOut: io.Discard, Now: time.Now}, hub: hubOptions{namespace: v1alpha1.DefaultNamespace}}
	return h, &waiter{
		app: a, hub: hub, name: "edge", token: string(h.secret.Data[v1alpha1.SecretKeyToken]), timeout: time.Minute,
		done: "the cluster is registered", missing: "was not reached",
	}
}

// TestWaitIgnoresAnswersAboutEarlierSecret shows that only an answer about the Secret that was
// written ends the wait, whether the answer about the earlier one is a failure or a success.
func TestWaitIgnoresAnswersAboutEarlierSecret(t *testing.T) {
	t.Parallel()
	t.Run("invalid", func(t *testing.T) {
		t.Parallel()
		h, w := newLaggingHub(t)
		h.stale.Store(3)
		h.answer = func(w http.ResponseWriter, _ bool) {
			h.stale.Add(-1)
			writeJSON(w, http.StatusServiceUnavailable, metav1.Status{
				TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure,
				Code: http.StatusServiceUnavailable, Reason: metav1.StatusReasonServiceUnavailable, Message: "token: is missing",
				Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: v1alpha1.CauseInvalidSecret, Message: "token: is missing"}}},
			})
		}
		if err := w.run(t.Context()); err != nil {
			t.Error(err)
		}
		if h.stale.Load() > 0 {
			t.Error("it did not wait for the new Secret")
		}
	})
	t.Run("success with the previous token", func(t *testing.T) {
		t.Parallel()
		h, w := newLaggingHub(t)
		h.stale.Store(3)
		h.answer = func(w http.ResponseWriter, review bool) {
			if review {
				writeReview(w, "previous")
				return
			}
			writeJSON(w, http.StatusOK, version.Info{GitVersion: "v1.36.0"})
		}
		if err := w.run(t.Context()); err != nil {
			t.Error(err)
		}
		if h.stale.Load() > 0 {
			t.Error("it did not wait for the new token")
		}
	})
	t.Run("success, and the cluster does not say with which token", func(t *testing.T) {
		t.Parallel()
		h, w := newLaggingHub(t)
		h.old = true
		h.lag.Store(3)
		if err := w.run(t.Context()); err != nil {
			t.Error(err)
		}
		if h.lag.Load() >= 0 {
			t.Error("it did not wait until the gateway had read the Secret")
		}
	})
	t.Run("invalid now", func(t *testing.T) {
		t.Parallel()
		h, w := newLaggingHub(t)
		delete(h.secret.Data, v1alpha1.SecretKeyToken)
		h.stale.Store(1 << 20)
		h.answer = func(w http.ResponseWriter, _ bool) {
			writeJSON(w, http.StatusServiceUnavailable, metav1.Status{
				TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure,
				Code: http.StatusServiceUnavailable, Reason: metav1.StatusReasonServiceUnavailable, Message: "token: is missing",
				Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: v1alpha1.CauseInvalidSecret, Message: "token: is missing"}}},
			})
		}
		if err := w.run(t.Context()); err == nil || !strings.Contains(err.Error(), "the gateway cannot use its Secret") {
			t.Errorf("got %v", err)
		}
	})
}
