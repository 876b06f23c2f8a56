// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// table converts ClusterGateways to the table that kubectl get prints.
type table struct {
	now func() time.Time
}

func newTable() table { return table{now: time.Now} }

// columns returns the columns of the table. kubectl shows a column with a priority above zero only
// with -o wide.
func columns() []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		{Name: "Name", Type: "string", Format: "name", Description: "The name of the cluster and of its Secret."},
		{Name: "Route", Type: "string", Description: "The route of requests to the cluster: direct or tunnel."},
		{Name: "Healthy", Type: "string", Description: "The condition Ready: True, False or Unknown."},
		{Name: "Version", Type: "string", Description: "The version of the cluster's API server."},
		{Name: "Endpoint", Type: "string", Description: "The address of the cluster's API server."},
		{Name: "Age", Type: "string", Description: "The time since the cluster was registered."},
		{Name: "Credential", Type: "string", Priority: 1, Description: "The type of the credential that the gateway presents."},
		{Name: "Expires", Type: "string", Priority: 1, Description: "The time until the credential expires, if it is known."},
		{Name: "Reason", Type: "string", Priority: 1, Description: "The reason of the condition Ready."},
		{Name: "Latency", Type: "string", Priority: 1, Description: "The response time of the API server in the last probe."},
		{Name: "Identity", Type: "string", Priority: 1, Description: "Who the cluster sees: credential, impersonate or rules."},
	}
}

func (t table) convert(object, options runtime.Object) (*metav1.Table, error) {
	printed := &metav1.Table{}
	switch o := object.(type) {
	case *v1alpha1.ClusterGateway:
		printed.ResourceVersion = o.ResourceVersion
		printed.Rows = []metav1.TableRow{t.row(o)}
	case *v1alpha1.ClusterGatewayList:
		printed.ResourceVersion, printed.Continue = o.ResourceVersion, o.Continue
		printed.RemainingItemCount = o.RemainingItemCount
		printed.Rows = make([]metav1.TableRow, 0, len(o.Items))
		for i := range o.Items {
			printed.Rows = append(printed.Rows, t.row(&o.Items[i]))
		}
	default:
		return nil, fmt.Errorf("no table for a %T", object)
	}
	if o, ok := options.(*metav1.TableOptions); !ok || !o.NoHeaders {
		printed.ColumnDefinitions = columns()
	}
	return printed, nil
}

func (t table) row(gateway *v1alpha1.ClusterGateway) metav1.TableRow {
	healthy, reason := string(metav1.ConditionUnknown), ""
	if ready := meta.FindStatusCondition(gateway.Status.Conditions, v1alpha1.ConditionReady); ready != nil {
		healthy, reason = string(ready.Status), ready.Reason
	}
	endpoint, credential, latency := "", "", ""
	if e := gateway.Spec.Access.Endpoint; e != nil && e.Const != nil {
		endpoint = e.Const.Address
	}
	if c := gateway.Spec.Access.Credential; c != nil {
		credential = string(c.Type)
	}
	if l := gateway.Status.Latency; l != nil {
		latency = l.Duration.Round(100 * time.Microsecond).String()
	}
	return metav1.TableRow{
		Cells: []any{
			gateway.Name,
			or(gateway.Status.Route, "<none>"),
			healthy,
			or(gateway.Status.Version, "<unknown>"),
			or(endpoint, "<none>"),
			t.since(gateway.CreationTimestamp),
			or(credential, "<none>"),
			t.until(gateway.Status.CredentialExpirationTime),
			or(reason, "<none>"),
			or(latency, "<none>"),
			or(gateway.Status.Identity, "<none>"),
		},
		Object: runtime.RawExtension{Object: gateway},
	}
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

func (t table) since(moment metav1.Time) string {
	if moment.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(t.now().Sub(moment.Time))
}

func (t table) until(moment *metav1.Time) string {
	if moment.IsZero() {
		return "<unknown>"
	}
	left := moment.Sub(t.now())
	if left <= 0 {
		return "<expired>"
	}
	return duration.HumanDuration(left)
}
