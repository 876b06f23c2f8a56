// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/testutil"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
)

// answers is a renewer whose renewals end with these errors, one after another.
type answers struct{ left []error }

func (a *answers) due(*cluster.Cluster) bool { return len(a.left) > 0 }

func (a *answers) renew(context.Context, *cluster.Cluster) error {
	err := a.left[0]
	a.left = a.left[1:]
	return err
}

func (*answers) expiry(*cluster.Cluster) (time.Time, bool) { return time.Time{}, false }

// TestResultsAreCounted checks that failures that matter are told apart from those that do not yet.
func TestResultsAreCounted(t *testing.T) {
	t.Parallel()
	all := NewMetrics()
	registry := metrics.NewKubeRegistry()
	for _, m := range all.All() {
		registry.MustRegister(m)
	}
	refused := errors.New("refused")
	a := &answers{left: []error{nil, refused, &earlyError{refused}, &NotOursError{"renew it yourself"}, refused}}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "edge"}}
	r := newRenewals(a, "test", list{cluster.Parse(secret, cluster.ParseOptions{})}, klog.Logger{}, time.Now, all, taskAgent)
	for range 5 {
		r.retry("edge")
		r.renewDue(t.Context())
	}
	const want = `# HELP cluster_gateway_renewals_total [ALPHA] Renewals in managed clusters that have ended, by task (tokens; agent: the certificate of the agent and the tunnel CA; registration: the check of the cluster CA and of rights) and result (success; failure; early: it failed, and is not due yet, or somebody else must renew).
# TYPE cluster_gateway_renewals_total counter
cluster_gateway_renewals_total{result="early",task="agent"} 2
cluster_gateway_renewals_total{result="failure",task="agent"} 2
cluster_gateway_renewals_total{result="success",task="agent"} 1
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "cluster_gateway_renewals_total"); err != nil {
		t.Error(err)
	}
}
