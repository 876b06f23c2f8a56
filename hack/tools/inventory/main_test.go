// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/cluster-inventory-api/client/clientset/versioned"
	"sigs.k8s.io/cluster-inventory-api/pkg/access"
	"sigs.k8s.io/yaml"

	"github.com/oam-dev/cluster-gateway/pkg/inventory"
)

const (
	namespace = "cluster-inventory"
	token     = "of-the-consumer"
)

// profile returns a profile as the gateway and kubectl cg export write it.
func profile(t *testing.T, name, server string, ca []byte) []byte {
	t.Helper()
	data, err := json.Marshal(inventory.New(inventory.Cluster{
		Name: name, UID: "uid", Labels: map[string]string{"env": "prod"}, Version: "v1.36.1" + strings.Repeat("x", 3000), Route: "tunnel", Identity: "impersonate",
		Ready: metav1.Condition{Status: metav1.ConditionFalse, Reason: "NoAgent", Message: strings.Repeat("m", 40000), LastTransitionTime: metav1.Now()},
	}, inventory.Access{Server: server, CAData: ca}, namespace, inventory.DefaultManager))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestProfileFitsTheDefinition validates a profile as a hub does, with the definition of the pinned
// version. Unlike a hub, it also refuses fields that are not in the definition.
func TestProfileFitsTheDefinition(t *testing.T) {
	t.Parallel()
	var text bytes.Buffer
	if err := writeCRD(t.Context(), &text); err != nil {
		t.Fatal(err)
	}
	definition, schema := &apiextensionsv1.CustomResourceDefinition{}, &apiextensions.CustomResourceValidation{}
	if err := yaml.UnmarshalStrict(text.Bytes(), definition); err != nil {
		t.Fatal(err)
	}
	gvr := inventory.Resource()
	if v := definition.Spec.Versions[0]; definition.Spec.Group != gvr.Group || v.Name != gvr.Version || definition.Spec.Names.Plural != gvr.Resource || v.Subresources.Status == nil {
		t.Fatalf("the definition is of %s %s %s", definition.Spec.Group, v.Name, definition.Spec.Names.Plural)
	}
	if err := apiextensionsv1.Convert_v1_CustomResourceValidation_To_apiextensions_CustomResourceValidation(definition.Spec.Versions[0].Schema, schema, nil); err != nil {
		t.Fatal(err)
	}
	validator, _, err := validation.NewSchemaValidator(schema.OpenAPIV3Schema)
	if err != nil {
		t.Fatal(err)
	}
	var object map[string]any
	if err := json.Unmarshal(profile(t, "edge-1", "https://gateway", []byte("ca")), &object); err != nil {
		t.Fatal(err)
	}
	if errs := validation.ValidateCustomResource(nil, object, validator); len(errs) > 0 {
		t.Error(errs)
	}
	// The validation finds faults.
	object["status"].(map[string]any)["properties"].([]any)[0].(map[string]any)["value"] = ""
	if errs := validation.ValidateCustomResource(nil, object, validator); len(errs) != 1 {
		t.Errorf("an empty property: %v", errs)
	}
}

// standIn is a hub that has profiles, and a gateway with the Pods of their clusters.
type standIn struct {
	*httptest.Server
	t        *testing.T
	profiles map[string][]byte
	mu       sync.Mutex
	requests []string
}

func (s *standIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r.Header.Get("Authorization")+" "+r.URL.Path)
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	name, ok := strings.CutPrefix(r.URL.Path, "/apis/multicluster.x-k8s.io/v1alpha1/namespaces/"+namespace+"/clusterprofiles/")
	switch {
	case ok && s.profiles[name] != nil:
		_, _ = w.Write(s.profiles[name])
	case strings.HasSuffix(r.URL.Path, "/proxy/api/v1/pods") && r.URL.Query().Get("watch") != "":
		_, _ = w.Write([]byte(`{"type":"ADDED","object":{"kind":"Pod","apiVersion":"v1","metadata":{"name":"new"}}}`))
	case strings.HasSuffix(r.URL.Path, "/proxy/api/v1/pods"):
		_, _ = w.Write([]byte(`{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"7"},"items":[{"metadata":{"name":"a"}}]}`))
	default:
		http.NotFound(w, r)
	}
}

// TestConsumer builds a client for each profile with the code of the Inventory API. Each one
// reaches its own cluster at the gateway, with the consumer's token and no other credential.
func TestConsumer(t *testing.T) {
	t.Parallel()
	s := &standIn{t: t, profiles: map[string][]byte{}}
	s.Server = httptest.NewTLSServer(s)
	defer s.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	for _, name := range []string{"edge-1", "edge-2"} {
		s.profiles[name] = profile(t, name, s.URL, ca)
	}
	plugin := filepath.Join(t.TempDir(), "plugin")
	script := `#!/bin/sh
echo '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"` + token + `"}}'
`
	if err := os.WriteFile(plugin, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	client, err := versioned.NewForConfig(&rest.Config{Host: s.URL, TLSClientConfig: rest.TLSClientConfig{CAData: ca}})
	if err != nil {
		t.Fatal(err)
	}
	config := access.New([]access.Provider{{Name: inventory.AccessProvider, ProfileSourcedCLIArgsPolicy: access.ProfileSourcedCLIArgsPolicyAppend,
		ExecConfig: &clientcmdapi.ExecConfig{APIVersion: "client.authentication.k8s.io/v1", Command: plugin}}})
	var out bytes.Buffer
	for _, name := range []string{"edge-1", "edge-2"} {
		built, err := build(context.Background(), client, config, namespace, name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := use(context.Background(), &out, built, name); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if want := "edge-1 listed 1\nedge-1 watched new\nedge-2 listed 1\nedge-2 watched new\n"; out.String() != want {
		t.Errorf("got %q", out.String())
	}
	// The library adds the arguments of each profile to the ones before.
	if args := config.Providers[0].ExecConfig.Args; len(args) > 0 {
		t.Errorf("the profiles have the arguments %q for the plugin", args)
	}
	for _, name := range []string{"edge-1", "edge-2"} {
		want := "Bearer " + token + " /apis/cluster.core.oam.dev/v1alpha1/clustergateways/" + name + "/proxy/api/v1/pods"
		if n := len(slices.DeleteFunc(slices.Clone(s.requests), func(r string) bool { return r != want })); n != 2 {
			t.Errorf("%d requests %q in %q", n, want, s.requests)
		}
	}
}
