// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
)

// maxRefusal is the size up to which a cluster's refusal is read, to see why it refuses.
const maxRefusal = 16 << 10

// impersonationRefusedError reports that the cluster does not let the gateway's account act as the
// caller.
type impersonationRefusedError struct{ status metav1.Status }

func (e *impersonationRefusedError) Error() string { return e.status.Message }

// checkImpersonation returns an *impersonationRefusedError if resp refuses the impersonation and
// not the request itself. The caller would read that an account that is not theirs lacks a right.
// Any other answer stays whole.
func (x *exchange) checkImpersonation(resp *http.Response) error {
	if x.attributes.relayed || x.seenHeaders.Get("Impersonate-User") == "" || resp.Body == nil {
		return nil
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal)) // whoever reads on gets the error again
	resp.Body = readCloser{io.MultiReader(bytes.NewReader(text), resp.Body), resp.Body}
	if !bytes.Contains(text, []byte("cannot impersonate")) {
		return nil
	}
	status, ok := parseStatus(text)
	if !ok || status.Reason != metav1.StatusReasonForbidden || !refusesImpersonation(status.Message) {
		return nil
	}
	return &impersonationRefusedError{status}
}

// refusesImpersonation recognizes the text of kube-apiserver's authorization. The verb is
// impersonate or, with constrained impersonation, impersonate:MODE or impersonate-on:MODE:VERB.
func refusesImpersonation(message string) bool {
	_, verb, found := strings.Cut(message, `" cannot impersonate`)
	return found && (strings.HasPrefix(verb, " ") || strings.HasPrefix(verb, ":") || strings.HasPrefix(verb, "-on:"))
}

// parseStatus parses a Status in JSON, YAML or protobuf.
func parseStatus(text []byte) (metav1.Status, bool) {
	object, err := runtime.Decode(serializer.NewCodecFactory(scheme.Scheme).UniversalDeserializer(), text)
	if err != nil {
		return metav1.Status{}, false
	}
	status, ok := object.(*metav1.Status)
	if !ok {
		return metav1.Status{}, false
	}
	return *status, true
}

// impersonationRefused is the Status of a request as whose caller the gateway must not act.
func impersonationRefused(c *cluster.Cluster, e *impersonationRefusedError) *apierrors.StatusError {
	return newStatus(http.StatusForbidden, metav1.StatusReasonForbidden, c.Name, CauseIdentity,
		fmt.Sprintf("cluster %q does not let the gateway's account act as you: %s. An administrator can allow it in that cluster, "+
			"for example with agent-bootstrap register %s --identity impersonate and --impersonate-user or --impersonate-group",
			c.Name, brief(e), c.Name))
}

// readCloser reads from one reader and closes another one.
type readCloser struct {
	io.Reader
	io.Closer
}
