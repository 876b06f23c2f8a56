// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"

	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/util/cert"
)

// validateFiles reads the files of the generic API server's options: left to itself it reads them late, after it has asked the hub, and
// says what is wrong without naming the flag.
func (o *Options) validateFiles() []error {
	var errs []error
	switch pair := o.Serving.ServerCert.CertKey; {
	case pair.CertFile == "" && pair.KeyFile == "":
	case pair.CertFile == "" || pair.KeyFile == "":
		errs = append(errs, errors.New("--tls-cert-file and --tls-private-key-file belong together: give both or none"))
	default:
		if _, err := tls.LoadX509KeyPair(pair.CertFile, pair.KeyFile); err != nil {
			errs = append(errs, fmt.Errorf("--tls-cert-file, --tls-private-key-file: %w", err))
		}
	}
	for _, f := range []fileFlag{
		{"--client-ca-file", o.Authentication.ClientCert.ClientCA},
		{"--requestheader-client-ca-file", o.Authentication.RequestHeader.ClientCAFile},
	} {
		if f.path == "" {
			continue
		}
		content, err := os.ReadFile(f.path)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.flag, err))
		} else if _, err := cert.ParseCertsPEM(content); err != nil {
			errs = append(errs, fmt.Errorf("%s %s: there is no CA in it, in PEM: %w", f.flag, f.path, err))
		}
	}
	return errs
}

// applyServing listens, and says by which flags when it cannot.
func (o *Options) applyServing(config *genericapiserver.Config) error {
	port := o.Serving.BindPort // set to 0 when it fails
	err := o.Serving.ApplyToConfig(config)
	if err != nil && o.Serving.Listener == nil {
		return fmt.Errorf("--bind-address %s, --secure-port %d: %w", o.Serving.BindAddress, port, err)
	}
	return err
}
