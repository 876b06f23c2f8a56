// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Command inventory is a consumer of ClusterProfiles, for tests. It reads profiles
// from the hub, builds a client for each cluster with the code of
// sigs.k8s.io/cluster-inventory-api, and lists and watches Pods with it:
//
//	inventory -kubeconfig HUB -namespace NAMESPACE -providers FILE NAME...
//
// For each cluster, it writes "NAME listed COUNT", and then "NAME watched POD" for the next Pod
// that is created. With -controller, it runs a controller of multicluster-runtime for the Pods of
// all clusters instead, and writes "NAME reconciled POD". With -print-crd, it writes the
// CustomResourceDefinition and ends.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/cluster-inventory-api/client/clientset/versioned"
	"sigs.k8s.io/cluster-inventory-api/pkg/access"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer) error {
	kubeconfig := flag.String("kubeconfig", "", "kubeconfig of the hub")
	namespace := flag.String("namespace", "", "namespace of the profiles")
	providers := flag.String("providers", "", "file with the access providers")
	controller := flag.Bool("controller", false, "run a controller for the clusters")
	printCRD := flag.Bool("print-crd", false, "print the CustomResourceDefinition")
	flag.Parse()
	if *printCRD {
		return writeCRD(ctx, out)
	}
	hub, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return err
	}
	client, err := versioned.NewForConfig(hub)
	if err != nil {
		return err
	}
	config, err := access.NewFromFile(*providers)
	if err != nil {
		return err
	}
	configs := map[string]*rest.Config{}
	for _, name := range flag.Args() {
		if configs[name], err = build(ctx, client, config, *namespace, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if *controller {
		return control(ctx, out, hub, configs)
	}
	for _, name := range flag.Args() {
		if err := use(ctx, out, configs[name], name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// build builds the configuration of a client from the profile of a cluster.
func build(ctx context.Context, client versioned.Interface, config *access.Config, namespace, name string) (*rest.Config, error) {
	profile, err := client.ApisV1alpha1().ClusterProfiles(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return config.BuildConfigFromCP(profile)
}

// use lists and watches the Pods of one cluster.
func use(ctx context.Context, out io.Writer, restConfig *rest.Config, name string) error {
	cluster, err := kubernetes.NewForConfig(restConfig)
	if err != nil {
		return err
	}
	pods := cluster.CoreV1().Pods(metav1.NamespaceAll)
	list, err := pods.List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	events, err := pods.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		return err
	}
	defer events.Stop()
	if _, err := fmt.Fprintln(out, name, "listed", len(list.Items)); err != nil {
		return err
	}
	for event := range events.ResultChan() {
		if pod, ok := event.Object.(*corev1.Pod); ok && event.Type == watch.Added {
			_, err := fmt.Fprintln(out, name, "watched", pod.Name)
			return err
		}
	}
	return errors.New("the watch ended")
}

// writeCRD writes the definition that the pinned version of the module has. It is to be run in the
// folder of this file.
func writeCRD(ctx context.Context, out io.Writer) error {
	dir, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/cluster-inventory-api").Output()
	if err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), "config", "crd", "*", "*_clusterprofiles.yaml"))
	if err != nil || len(files) != 1 {
		return fmt.Errorf("the module has the files %v: %w", files, err)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		return err
	}
	_, err = out.Write(text)
	return err
}
