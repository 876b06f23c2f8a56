// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"context"
	"errors"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
)

// unreachable is a renewer whose clusters cannot be reached yet.
type unreachable struct{ tried int }

func (*unreachable) due(*cluster.Cluster) bool { return true }

func (u *unreachable) renew(context.Context, *cluster.Cluster) error {
	u.tried++
	return &earlyError{errors.New("no agent is connected")}
}

func (*unreachable) expiry(*cluster.Cluster) (time.Time, bool) { return time.Time{}, false }

type list []*cluster.Cluster

func (l list) List() []*cluster.Cluster { return l }

// TestRetry checks that what has failed is due when its cluster can be reached again, and not
// before the usual wait otherwise.
func TestRetry(t *testing.T) {
	t.Parallel()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "edge"}}
	u := &unreachable{}
	r := newRenewals(u, "test", list{cluster.Parse(secret, cluster.ParseOptions{})}, klog.Logger{}, time.Now, nil, "")
	for _, step := range []struct {
		name  string
		retry string
		want  int
	}{{"first", "", 1}, {"too soon", "", 1}, {"another cluster connects", "other", 1}, {"the cluster connects", "edge", 2}, {"too soon again", "", 2}} {
		if step.retry != "" {
			r.retry(step.retry)
		}
		r.renewDue(t.Context())
		if u.tried != step.want {
			t.Fatalf("%s: tried %d times, want %d", step.name, u.tried, step.want)
		}
	}
}
