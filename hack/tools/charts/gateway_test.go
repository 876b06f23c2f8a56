// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package charts

import (
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	sigsyaml "sigs.k8s.io/yaml"
)

const (
	gatewayChart = "../../../charts/cluster-gateway"
	namespace    = "cluster-gateway-system"
)

// objects are objects by kind, namespace and name.
type objects map[string]*unstructured.Unstructured

// decode adds the objects of a file with YAML documents.
func (o objects) decode(t *testing.T, name, text string) {
	t.Helper()
	decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096)
	for {
		u := &unstructured.Unstructured{}
		if err := decoder.Decode(&u.Object); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, text)
		}
		if len(u.Object) == 0 {
			continue
		}
		key := strings.Join([]string{u.GetKind(), u.GetNamespace(), u.GetName()}, " ")
		if o[key] != nil {
			t.Errorf("%s: %s is there twice", name, key)
		}
		o[key] = u
	}
}

// values parses values that a user sets.
func values(t *testing.T, text string) map[string]any {
	t.Helper()
	parsed := map[string]any{}
	if err := sigsyaml.Unmarshal([]byte(text), &parsed); err != nil {
		t.Fatal(err)
	}
	return parsed
}

// render renders a chart as `helm install` does. notes are what it then prints.
func render(t *testing.T, path, set string) (rendered objects, notes string, err error) {
	t.Helper()
	return renderIn(t, namespace, path, set)
}

// renderIn is render for another namespace.
func renderIn(t *testing.T, namespace, path, set string) (rendered objects, notes string, err error) {
	t.Helper()
	chart, err := loader.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	options := common.ReleaseOptions{Name: "gateway", Namespace: namespace, Revision: 1, IsInstall: true}
	all, err := util.ToRenderValues(chart, values(t, set), options, common.DefaultCapabilities)
	if err != nil {
		return nil, "", err
	}
	files, err := engine.Engine{Strict: true}.Render(chart, all)
	if err != nil {
		return nil, "", err
	}
	rendered = objects{}
	for name, text := range files {
		switch {
		case strings.HasSuffix(name, "NOTES.txt"):
			notes = text
		case strings.HasSuffix(name, ".yaml"):
			rendered.decode(t, name, text)
		}
	}
	return rendered, notes, nil
}

// base returns the objects of a kustomize base.
func base(t *testing.T, dir string) objects {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files in %s: %v", dir, err)
	}
	all := objects{}
	for _, file := range files {
		if filepath.Base(file) == "kustomization.yaml" {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all.decode(t, file, string(text))
	}
	return all
}

// helmLabels are the labels that Helm's users expect, besides those of the base.
var helmLabels = []string{"app.kubernetes.io/instance", "app.kubernetes.io/managed-by", "app.kubernetes.io/version", "helm.sh/chart", "app.kubernetes.io/part-of"}

// withoutHelmLabels removes these labels from an object and its Pod template. A label of the base
// stays.
func withoutHelmLabels(o, like *unstructured.Unstructured) {
	for _, path := range [][]string{{"metadata", "labels"}, {"spec", "template", "metadata", "labels"}} {
		labels, found, _ := unstructured.NestedStringMap(o.Object, path...)
		if !found {
			continue
		}
		wanted, _, _ := unstructured.NestedStringMap(like.Object, path...)
		for _, label := range helmLabels {
			if _, has := wanted[label]; !has {
				delete(labels, label)
			}
		}
		if len(labels) == 0 {
			unstructured.RemoveNestedField(o.Object, path...)
		} else if err := unstructured.SetNestedStringMap(o.Object, labels, path...); err != nil {
			panic(err) // the path is there
		}
	}
}

// TestGatewayChartIsTheBase compares the chart with its default values to manifests/gateway, object
// by object and field by field.
func TestGatewayChartIsTheBase(t *testing.T) {
	t.Parallel()
	got, _, err := render(t, gatewayChart, "")
	if err != nil {
		t.Fatal(err)
	}
	want := base(t, "../../../manifests/gateway")
	// Helm creates the namespace with --create-namespace.
	delete(want, "Namespace  "+namespace)
	// The base leaves the tag of the image to an overlay.
	containers := func(o objects) []any {
		list, _, _ := unstructured.NestedSlice(o["Deployment "+namespace+" cluster-gateway"].Object, "spec", "template", "spec", "containers")
		return list
	}
	list := containers(got)
	container := list[0].(map[string]any)
	if container["image"] != "cluster-gateway:v0.0.0" {
		t.Errorf("the image is %v", container["image"])
	}
	container["image"] = "cluster-gateway"
	if err := unstructured.SetNestedSlice(got["Deployment "+namespace+" cluster-gateway"].Object, list, "spec", "template", "spec", "containers"); err != nil {
		t.Fatal(err)
	}
	compare(t, got, want)
}

// TestSwitchesAreTheComponents compares what a switch of the chart adds with the component of the
// base.
func TestSwitchesAreTheComponents(t *testing.T) {
	t.Parallel()
	for component, c := range map[string]struct{ file, set string }{
		"clusterprofiles": {"rbac.yaml", "clusterProfiles: {namespace: cluster-inventory}"},
		"clusterapi":      {"rbac.yaml", "clusterAPI: {namespaces: [clusters]}"},
		"tlsroute": {"tlsroutes.yaml", `{servingHosts: [gateway.example.com], tlsRoute: {enabled: true, parentRefs: [{name: public, namespace: gateways}]}, ` +
			`tunnel: {advertiseAddress: "tunnel.example.com:443", tlsRoute: {enabled: true, parentRefs: [{name: public, namespace: gateways}]}}}`},
		"ingress": {"ingresses.yaml", `{servingHosts: [gateway.example.com], ingress: {enabled: true}, ` +
			`tunnel: {advertiseAddress: "tunnel.example.com:443", ingress: {enabled: true}}}`},
	} {
		t.Run(component, func(t *testing.T) {
			t.Parallel()
			got, _, err := render(t, gatewayChart, c.set)
			if err != nil {
				t.Fatal(err)
			}
			want := objects{}
			text, err := os.ReadFile("../../../manifests/gateway/" + component + "/" + c.file)
			if err != nil {
				t.Fatal(err)
			}
			want.decode(t, c.file, string(text))
			if len(want) != 2 {
				t.Fatalf("the component has %d objects", len(want))
			}
			for key, w := range want {
				g := got[key]
				if g == nil {
					t.Fatalf("the chart has no %s", key)
				}
				withoutHelmLabels(g, w)
				if !reflect.DeepEqual(g.Object, w.Object) {
					t.Errorf("%s: the chart has\n%v\nand the component has\n%v", key, g.Object, w.Object)
				}
			}
		})
	}
}

// TestGatewayChartLint runs helm lint.
func TestGatewayChartLint(t *testing.T) {
	t.Parallel()
	for _, set := range []string{"", everything} {
		if problems := lint.RunAll(gatewayChart, values(t, set), namespace).Messages; len(problems) > 0 {
			for _, p := range problems {
				if p.Severity > 1 { // an icon is only recommended
					t.Errorf("helm lint: %s: %v", p.Path, p.Err)
				}
			}
		}
	}
}

// everything sets every value.
const everything = `
image: {repository: registry.example.com/gateway, tag: v1, digest: "", pullPolicy: Always, pullSecrets: [registry]}
replicas: 3
autoscaling: {enabled: true, minReplicas: 2, maxReplicas: 5, targetCPUUtilizationPercentage: 60}
tunnel:
  serverCount: 4
  advertiseAddress: tunnel.example.com:443
  minTLSVersion: VersionTLS12
  service: {type: LoadBalancer, port: 9132, nodePort: 30132, annotations: {a: b}, loadBalancerSourceRanges: [10.0.0.0/8]}
  tlsRoute: {enabled: true, parentRefs: [{name: public, namespace: gateways, sectionName: tunnel}], version: v1, annotations: {k: l}}
  ingress: {enabled: true, className: nginx, annotations: {mm: nn}}
service: {type: NodePort, annotations: {c: d}}
servingHosts: [gateway.example.com, "10.0.0.1", "::1"]
tlsRoute: {enabled: true, parentRefs: [{name: public}], version: v1, annotations: {o: p}}
ingress: {enabled: true, className: nginx, annotations: {q: r}}
shutdownDelay: 10s
terminationGracePeriodSeconds: 100
loggingFormat: json
extraArgs: [--v=2, "--identity-extra=example.com/team"]
extraEnv: [{name: GOMEMLIMIT, value: 1GiB}]
extraVolumes: [{name: rules, configMap: {name: rules}}]
extraVolumeMounts: [{name: rules, mountPath: /etc/rules}]
resources: {limits: {memory: 4Gi}}
priorityClass: {create: false, name: mine}
nodeSelector: {disk: ssd}
tolerations: [{operator: Exists}]
affinity: {podAntiAffinity: {}}
topologySpread: false
podAnnotations: {e: f}
podLabels: {g: h}
serviceAccount: {annotations: {i: j}}
podDisruptionBudget: {enabled: false, maxUnavailable: 50%}
networkPolicy: {enabled: false}
audit: {enabled: true, policy: {apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: Request}]}}
clusterProfiles: {namespace: fleet, selector: "env in (prod)"}
clusterAPI: {namespaces: [prod, test], selector: "gateway=register"}
serviceMonitor: {enabled: true, interval: 15s, labels: {release: prometheus}}
prometheusRule: {enabled: true, labels: {rules: ours}}
dashboards: {enabled: true, labels: {dashboards: ours}, annotations: {grafana_folder: Clusters}}
`

// TestGatewayChartValues checks that each value has its effect, and that everything above is
// every value there is.
func TestGatewayChartValues(t *testing.T) {
	t.Parallel()
	got, _, err := render(t, gatewayChart, everything)
	if err != nil {
		t.Fatal(err)
	}
	for _, absent := range []string{"PriorityClass  cluster-gateway", "PodDisruptionBudget " + namespace + " cluster-gateway", "NetworkPolicy " + namespace + " cluster-gateway"} {
		if got[absent] != nil {
			t.Errorf("%s is there", absent)
		}
	}
	for key, wants := range map[string][]string{
		"Deployment": {"registry.example.com/gateway:v1", "imagePullPolicy: Always", "- name: registry", "--tunnel-server-count=4", "--tunnel-advertise-address=tunnel.example.com:443",
			"--serving-host=gateway.example.com", "--tunnel-tls-min-version=VersionTLS12", "--logging-format=json", "--shutdown-delay-duration=10s", "terminationGracePeriodSeconds: 100", "- --v=2", "- --identity-extra=example.com/team", "GOMEMLIMIT",
			"mountPath: /etc/rules", "mountPath: /etc/cluster-gateway/audit", "- --audit-log-path=-", "- --cluster-profiles-namespace=fleet", "- --cluster-profiles-selector=env in (prod)", "- --cluster-api-namespaces=prod,test", "- --cluster-api-selector=gateway=register", "cluster-gateway/audit-policy: ", "memory: 4Gi", "priorityClassName: mine", "disk: ssd", "operator: Exists", "podAntiAffinity", "e: f", "g: h"},
		"TLSRoute":                {"name: public", "namespace: gateways", "sectionName: tunnel", "- gateway.example.com", "- tunnel.example.com", "port: 9132", "port: 8443", "k: l", "o: p"},
		"Ingress":                 {"ingressClassName: nginx", "host: gateway.example.com", "host: tunnel.example.com", "mm: nn", "q: r"},
		"Service":                 {"type: NodePort", "port: 9132", "nodePort: 30132", "a: b", "10.0.0.0/8", "type: LoadBalancer", "c: d"},
		"HorizontalPodAutoscaler": {"minReplicas: 2", "maxReplicas: 5", "averageUtilization: 60"},
		"ServiceAccount":          {"i: j"},
		"RoleBinding":             {"namespace: fleet"},
		"ConfigMap":               {"level: Request", "dashboards: ours", "grafana_folder: Clusters", `"uid": "cluster-gateway-cluster"`},
		"PrometheusRule":          {"rules: ours", "alert: ClusterGatewayNoLeader", "Cluster {{ $labels.cluster }} is not ready"},
		"ServiceMonitor":          {"interval: 15s", "release: prometheus"},
	} {
		text := ""
		for name, o := range got {
			if strings.HasPrefix(name, key+" ") {
				data, _ := sigsyaml.Marshal(o.Object)
				text += string(data)
			}
		}
		for _, want := range wants {
			if !strings.Contains(text, want) {
				t.Errorf("%s: no %q in\n%s", key, want, text)
			}
		}
	}
	deployment, _ := sigsyaml.Marshal(got["Deployment "+namespace+" cluster-gateway"].Object)
	for _, absent := range []string{"replicas:", "topologySpread"} {
		if strings.Contains(string(deployment), absent) {
			t.Errorf("the Deployment has %s", absent)
		}
	}

	defaults, err := os.ReadFile(filepath.Join(gatewayChart, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if a, b := paths(values(t, everything), ""), paths(values(t, string(defaults)), ""); !slices.Equal(a, b) {
		t.Errorf("this test sets\n%v\nand values.yaml has\n%v", a, b)
	}
	readme, err := os.ReadFile(filepath.Join(gatewayChart, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths(values(t, string(defaults)), "") {
		if !strings.Contains(string(readme), "`"+path+"`") {
			t.Errorf("README.md does not describe the value %s", path)
		}
	}
}

// open are values whose content is the user's.
var open = regexp.MustCompile(`(?i)(annotations|labels|resources|nodeSelector|affinity)$|^policy$`)

// paths lists the values that a user can set.
func paths(in map[string]any, prefix string) []string {
	var all []string
	for key, value := range in {
		if nested, ok := value.(map[string]any); ok && !open.MatchString(key) {
			all = append(all, paths(nested, prefix+key+".")...)
			continue
		}
		all = append(all, prefix+key)
	}
	slices.Sort(all)
	return all
}

// TestGatewayChartRefuses checks that wrong values are refused, and named.
func TestGatewayChartRefuses(t *testing.T) {
	t.Parallel()
	for set, want := range map[string]string{
		"replica: 3":                                   "replica",
		"replicas: many":                               "replicas",
		"replicas: -1":                                 "replicas",
		"image: {digest: sha256:abc}":                  "image",
		"image: {repository: ''}":                      "repository",
		"tunnel: {advertiseAddress: 'https://a'}":      "advertiseAddress",
		"tunnel: {service: {type: External}}":          "type",
		"extraArgs: [v=2]":                             "extraArgs",
		"loggingFormat: xml":                           "loggingFormat",
		"tunnel: {minTLSVersion: VersionTLS11}":        "minTLSVersion",
		"shutdownDelay: 5":                             "shutdownDelay",
		"podAnnotations: {a: 1}":                       "podAnnotations",
		"autoscaling: {enabled: true, minReplicas: 9}": "autoscaling.minReplicas must not be greater",
		"replicas: 0":                                  "replicas",
		"tunnel: {service: {type: NodePort, loadBalancerSourceRanges: [10.0.0.0/8]}}": "tunnel.service.loadBalancerSourceRanges is for",
		"tunnel: {service: {type: ClusterIP, nodePort: 30000}}":                       "tunnel.service.nodePort is for",
		"tunnel: {advertiseAddress: a, service: {type: NodePort}}":                    "tunnel.advertiseAddress needs a port",
		"{autoscaling: {enabled: true}, resources: {requests: {cpu: null}}}":          "resources.requests.cpu",
		"podLabels: {app.kubernetes.io/name: x}":                                      "app.kubernetes.io/name",
		"clusterProfiles: {selector: a=b}":                                            "clusterProfiles.selector needs",
		"clusterProfiles: {namespace: a_b}":                                           "namespace",
		"clusterAPI: {selector: a=b}":                                                 "clusterAPI.selector needs",
		"clusterAPI: {namespaces: [a_b]}":                                             "namespaces",
		"priorityClass: {name: mine}":                                                 "priorityClass.create must be false",
		"tlsRoute: {enabled: true}":                                                   "needs tlsRoute.parentRefs",
		"tlsRoute: {enabled: true, parentRefs: [{name: a}]}":                          "tlsRoute.enabled needs a name in servingHosts",
		"tlsRoute: {version: v1beta1}":                                                "version",
		"tlsRoute: {parentRefs: [{namespace: a}]}":                                    "parentRefs",
		"{servingHosts: ['10.0.0.1', '::1'], ingress: {enabled: true}}":               "ingress.enabled needs a name in servingHosts",
		"tunnel: {tlsRoute: {enabled: true}}":                                         "need tunnel.advertiseAddress with the port of the proxy",
		"tunnel: {advertiseAddress: a.example.com, ingress: {enabled: true}}":         "need tunnel.advertiseAddress with the port of the proxy",
		"tunnel: {advertiseAddress: '[::1]:443', ingress: {enabled: true}}":           "need tunnel.advertiseAddress with the port of the proxy",
		"tunnel: {advertiseAddress: '10.0.0.1:443', ingress: {enabled: true}}":        "agents ask for no name",
		"tunnel: {advertiseAddress: 'a:443', tlsRoute: {enabled: true}}":              "needs tunnel.tlsRoute.parentRefs",
	} {
		if _, _, err := render(t, gatewayChart, set); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want that it names %q", set, err, want)
		}
	}
}

// TestGatewayChartAudit compares the audit policy of the chart with that of the component in
// manifests/gateway/audit.
func TestGatewayChartAudit(t *testing.T) {
	t.Parallel()
	got, _, err := render(t, gatewayChart, "audit: {enabled: true}")
	if err != nil {
		t.Fatal(err)
	}
	text, _, _ := unstructured.NestedString(got["ConfigMap "+namespace+" cluster-gateway-audit"].Object, "data", "policy.yaml")
	want, err := os.ReadFile("../../../manifests/gateway/audit/policy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if a, b := values(t, text), values(t, string(want)); !reflect.DeepEqual(a, b) {
		t.Errorf("the chart has\n%v\nand the component has\n%v", a, b)
	}
}

// TestGatewayChartMonitoring compares the alerts, the dashboards and the ServiceMonitor of the
// chart with those of the component in manifests/gateway/monitoring.
func TestGatewayChartMonitoring(t *testing.T) {
	t.Parallel()
	got, _, err := render(t, gatewayChart, "{prometheusRule: {enabled: true}, dashboards: {enabled: true}, serviceMonitor: {enabled: true}}")
	if err != nil {
		t.Fatal(err)
	}
	const dir = "../../../manifests/gateway/monitoring"
	want := objects{}
	for _, name := range []string{"prometheusrule.yaml", "servicemonitor.yaml"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		want.decode(t, name, string(text))
	}
	for key, w := range want {
		g := got[key]
		if g == nil {
			t.Errorf("the chart has no %s", key)
			continue
		}
		withoutHelmLabels(g, w)
		if !reflect.DeepEqual(g.Object, w.Object) {
			a, _ := sigsyaml.Marshal(g.Object)
			b, _ := sigsyaml.Marshal(w.Object)
			t.Errorf("%s: the chart has\n%s\nand the component has\n%s", key, a, b)
		}
	}

	var component struct {
		ConfigMapGenerator []struct {
			Name, Namespace string
			Files           []string
			Options         struct{ Labels map[string]string }
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "kustomization.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := sigsyaml.Unmarshal(text, &component); err != nil || len(component.ConfigMapGenerator) != 1 {
		t.Fatalf("%d ConfigMaps in the component: %v", len(component.ConfigMapGenerator), err)
	}
	c := component.ConfigMapGenerator[0]
	g := got["ConfigMap "+c.Namespace+" "+c.Name]
	if g == nil {
		t.Fatalf("the chart has no ConfigMap %s", c.Name)
	}
	data, _, _ := unstructured.NestedStringMap(g.Object, "data")
	if keys := slices.Sorted(maps.Keys(data)); !slices.Equal(keys, slices.Sorted(slices.Values(c.Files))) {
		t.Errorf("the chart has the dashboards %v, and the component %v", keys, c.Files)
	}
	for _, name := range c.Files {
		want, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if strings.TrimSpace(data[name]) != strings.TrimSpace(string(want)) {
			t.Errorf("the dashboard %s of the chart is not that of the component", name)
		}
	}
	for key, value := range c.Options.Labels {
		if g.GetLabels()[key] != value {
			t.Errorf("the chart's ConfigMap has no label %s=%s", key, value)
		}
	}
}

// TestGatewayChartMonitoringKinds reads the objects of the Prometheus operator strictly, into the
// types from which the operator generates its CustomResourceDefinitions.
func TestGatewayChartMonitoringKinds(t *testing.T) {
	t.Parallel()
	for _, set := range []string{"{prometheusRule: {enabled: true}, serviceMonitor: {enabled: true}}", everything} {
		got, _, err := render(t, gatewayChart, set)
		if err != nil {
			t.Fatal(err)
		}
		for kind, into := range map[string]any{"ServiceMonitor": &monitoringv1.ServiceMonitor{}, "PrometheusRule": &monitoringv1.PrometheusRule{}} {
			o := got[kind+" "+namespace+" cluster-gateway"]
			if o == nil {
				t.Fatalf("there is no %s", kind)
			}
			text, err := sigsyaml.Marshal(o.Object)
			if err != nil {
				t.Fatal(err)
			}
			if err := sigsyaml.UnmarshalStrict(text, into); err != nil {
				t.Errorf("%s: %v", kind, err)
			}
		}
	}
}

// TestGatewayChartDetails checks what depends on several values.
func TestGatewayChartDetails(t *testing.T) {
	t.Parallel()
	for set, want := range map[string]string{
		"":            "--tunnel-server-count=2",
		"replicas: 5": "--tunnel-server-count=2",
		"replicas: 1": "--tunnel-server-count=1",
		"tunnel: {advertiseAddress: a.example.com, service: {type: NodePort, nodePort: 30132}}": "--tunnel-advertise-address=a.example.com:30132",
		"autoscaling: {enabled: true}":                              "--tunnel-server-count=2",
		"tunnel: {advertiseAddress: 'a.example.com:443'}":           "--tunnel-advertise-address=a.example.com:443",
		"tunnel: {advertiseAddress: '10.0.0.1'}":                    "--tunnel-advertise-address=10.0.0.1:8132",
		"tunnel: {advertiseAddress: '::1'}":                         "--tunnel-advertise-address=[::1]:8132",
		"tunnel: {advertiseAddress: '[::1]:9'}":                     "--tunnel-advertise-address=[::1]:9",
		"image: {digest: 'sha256:" + strings.Repeat("a", 64) + "'}": "image: cluster-gateway@sha256:aaaa",
	} {
		got, notes, err := render(t, gatewayChart, set)
		if err != nil {
			t.Errorf("%s: %v", set, err)
			continue
		}
		text, _ := sigsyaml.Marshal(got["Deployment "+namespace+" cluster-gateway"].Object)
		if !strings.Contains(string(text), want) {
			t.Errorf("%s: no %q in\n%s", set, want, text)
		}
		advertised := strings.Contains(set, "advertiseAddress")
		if strings.Contains(notes, "tunnel.advertiseAddress=HOST") == advertised {
			t.Errorf("%s: the notes are\n%s", set, notes)
		}
	}
	if got, _, err := render(t, gatewayChart, ""); err != nil {
		t.Error(err)
	} else if _, has, _ := unstructured.NestedFieldNoCopy(got["APIService  v1alpha1.cluster.core.oam.dev"].Object, "spec", "caBundle"); has {
		t.Error("the chart sets caBundle, which the gateway writes")
	}
}
