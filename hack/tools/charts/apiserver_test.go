// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package charts

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

var hub *lab.Cluster

func TestMain(m *testing.M) {
	labtest.MainAPIServers(m, map[string]**lab.Cluster{"hub": &hub}, prepareHub)
}

// prepareHub creates what the objects of the charts refer to. The namespaces of the charts enforce
// restricted pod security.
func prepareHub(ctx context.Context) error {
	if err := createTLSRoutes(ctx); err != nil {
		return err
	}
	restricted := map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}
	for name, labels := range map[string]map[string]string{namespace: restricted, agentNamespace: restricted, "fleet": nil, "prod": nil, "test": nil} {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
		if _, err := hub.Client().CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	for _, name := range []string{"cluster-gateway", "cluster-gateway-agent", "mine"} {
		class := &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: 1}
		if _, err := hub.Client().SchedulingV1().PriorityClasses().Create(ctx, class, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	return nil
}

// createTLSRoutes creates the kind TLSRoute, as the experimental channel of the Gateway API has it:
// with each version that a value of the chart can choose.
func createTLSRoutes(ctx context.Context) error {
	module, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", strings.TrimSuffix(reflect.TypeFor[gatewayv1.TLSRoute]().PkgPath(), "/apis/v1")).Output()
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(module)), "config/crd/experimental", gatewayv1.GroupName+"_tlsroutes.yaml"))
	if err != nil {
		return err
	}
	definition := &unstructured.Unstructured{}
	if err := sigsyaml.Unmarshal(text, &definition.Object); err != nil {
		return err
	}
	client, err := dynamic.NewForConfig(hub.RESTConfig())
	if err != nil {
		return err
	}
	definitions := schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	if _, err := client.Resource(definitions).Create(ctx, definition, metav1.CreateOptions{}); err != nil {
		return err
	}
	return wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		served, err := client.Resource(definitions).Get(ctx, definition.GetName(), metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		conditions, _, _ := unstructured.NestedSlice(served.Object, "status", "conditions") // null at first
		established := slices.ContainsFunc(conditions, func(c any) bool {
			condition, _ := c.(map[string]any)
			return condition["type"] == "Established" && condition["status"] == "True"
		})
		return established, nil
	})
}

// corners returns the values of a schema that a user chooses from a few: both of a switch, and each
// of an enumeration. Each corner sets one of them.
func corners(t *testing.T, chart string) map[string]map[string]any {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(chart, "values.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	var schema schemaNode
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	all := map[string]map[string]any{}
	schema.walk(nil, all)
	if len(all) < 5 {
		t.Fatalf("the schema of %s has only the corners %q", chart, slices.Sorted(maps.Keys(all)))
	}
	return all
}

type schemaNode struct {
	Type       any
	Enum       []any
	Properties map[string]schemaNode
}

func (n schemaNode) walk(path []string, all map[string]map[string]any) {
	choices := n.Enum
	if n.Type == "boolean" {
		choices = []any{true, false}
	}
	for _, choice := range choices {
		set := map[string]any{}
		if err := unstructured.SetNestedField(set, choice, path...); err != nil {
			panic(err) // the map is empty
		}
		all[fmt.Sprintf("%s=%v", strings.Join(path, "."), choice)] = set
	}
	for name, property := range n.Properties {
		property.walk(append(slices.Clone(path), name), all)
	}
}

// overlay sets values over others.
func overlay(base, set map[string]any) {
	for key, value := range set {
		nested, ok := value.(map[string]any)
		below, has := base[key].(map[string]any)
		if ok && has {
			overlay(below, nested)
			continue
		}
		base[key] = value
	}
}

// TestChartsAtTheAPIServer lets a real API server judge every object of the charts, for each corner
// of the values, beside the defaults and beside all values of the other tests. The API server
// validates strictly, and its admission of restricted pod security must let the Pods in.
func TestChartsAtTheAPIServer(t *testing.T) {
	_, file := invitation(t, "admin", "")
	invited := invitedValues(t, "view", site, file)
	needImpersonate := map[string]string{"impersonation.unconstrained=true": "requires identity impersonate"}
	for _, c := range []struct {
		chart, namespace, base string
		// refused are the corners that the chart itself refuses beside the base.
		refused map[string]string
	}{
		{gatewayChart, namespace, "", map[string]string{
			"tlsRoute.enabled=true":        "tlsRoute.enabled needs",
			"ingress.enabled=true":         "ingress.enabled needs",
			"tunnel.tlsRoute.enabled=true": "need tunnel.advertiseAddress",
			"tunnel.ingress.enabled=true":  "need tunnel.advertiseAddress",
		}},
		{gatewayChart, namespace, everything, map[string]string{
			"priorityClass.create=true":     "priorityClass.create must be false",
			"tunnel.service.type=NodePort":  "tunnel.service.loadBalancerSourceRanges is for",
			"tunnel.service.type=ClusterIP": "tunnel.service.loadBalancerSourceRanges is for",
		}},
		{agentChart, agentNamespace, "", needImpersonate},
		{agentChart, agentNamespace, invited, needImpersonate},
		{agentChart, agentNamespace, invited + "\nidentity: impersonate\nimpersonation: {adminGroups: [ops], viewGroups: [developers]}\n", map[string]string{
			"identity=credential": "requires identity impersonate",
		}},
	} {
		judge := newJudge(t, c.namespace)
		all := corners(t, c.chart)
		all["the base"] = nil
		for name, set := range all {
			merged := values(t, c.base)
			overlay(merged, set)
			text, err := sigsyaml.Marshal(merged)
			if err != nil {
				t.Fatal(err)
			}
			rendered, _, err := renderIn(t, c.namespace, c.chart, string(text))
			switch want := c.refused[name]; {
			case want != "":
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%s, %s: got %v, want %q", filepath.Base(c.chart), name, err, want)
				}
			case err != nil:
				t.Errorf("%s, %s: %v", filepath.Base(c.chart), name, err)
			default:
				judge.objects(t, filepath.Base(c.chart)+", "+name, rendered)
			}
		}
		if judge.pods < len(all)-len(c.refused)-1 && c.chart == gatewayChart {
			t.Errorf("%d Pods of %d corners were admitted", judge.pods, len(all))
		}
		t.Logf("%s: %d corners, %d kinds of objects, %d Pods", filepath.Base(c.chart), len(all), len(judge.kinds), judge.pods)
	}
}

// judge asks the API server about objects.
type judge struct {
	client    dynamic.Interface
	mapper    meta.RESTMapper
	namespace string
	kinds     map[string]bool
	pods      int
}

func newJudge(t *testing.T, namespace string) *judge {
	t.Helper()
	client, err := dynamic.NewForConfig(hub.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	resources, err := restmapper.GetAPIGroupResources(hub.Client().Discovery())
	if err != nil {
		t.Fatal(err)
	}
	return &judge{client: client, mapper: restmapper.NewDiscoveryRESTMapper(resources), namespace: namespace, kinds: map[string]bool{}}
}

// objects asks about the objects of one rendering.
func (j *judge) objects(t *testing.T, what string, rendered objects) {
	t.Helper()
	for key, o := range rendered {
		if o.GroupVersionKind().Group == "monitoring.coreos.com" {
			continue // the API server does not have these kinds: see TestGatewayChartMonitoringKinds
		}
		j.kinds[o.GetKind()] = true
		options := metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}
		if o.GetKind() != "ServiceAccount" { // Pods are admitted only if their account is there
			options.DryRun = []string{metav1.DryRunAll}
		}
		if err := j.create(t.Context(), o, options); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Errorf("%s: %s: %v", what, key, err)
		}
	}
	for key, o := range rendered {
		template, found, _ := unstructured.NestedMap(o.Object, "spec", "template")
		if !found {
			continue
		}
		pod := &unstructured.Unstructured{Object: template}
		pod.SetAPIVersion("v1")
		pod.SetKind("Pod")
		pod.SetName("judged")
		pod.SetNamespace(o.GetNamespace())
		options := metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict, DryRun: []string{metav1.DryRunAll}}
		if err := j.create(t.Context(), pod, options); err != nil {
			t.Errorf("%s: a Pod of %s: %v", what, key, err)
			continue
		}
		j.pods++
	}
}

func (j *judge) create(ctx context.Context, o *unstructured.Unstructured, options metav1.CreateOptions) error {
	mapping, err := j.mapper.RESTMapping(o.GroupVersionKind().GroupKind(), o.GroupVersionKind().Version)
	if err != nil {
		return err
	}
	resource := j.client.Resource(mapping.Resource)
	if mapping.Scope.Name() == meta.RESTScopeNameRoot {
		_, err = resource.Create(ctx, o, options)
	} else {
		_, err = resource.Namespace(o.GetNamespace()).Create(ctx, o, options)
	}
	return err
}
