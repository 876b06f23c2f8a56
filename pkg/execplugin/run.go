// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package execplugin

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientauthenticationv1 "k8s.io/client-go/pkg/apis/clientauthentication/v1"
	"k8s.io/client-go/tools/metrics"
)

// infoVariable is the environment variable in which a plugin gets an ExecCredential without status.
const infoVariable = "KUBERNETES_EXEC_INFO"

const (
	// kindExecCredential is the kind of what a plugin gets and prints.
	kindExecCredential = "ExecCredential"
	// maxOutput is the longest output of a plugin.
	maxOutput = 1 << 20
	// maxErrorOutput is how much of the end of a plugin's error output is kept.
	maxErrorOutput = 4 << 10
	// outputDelay is how long the output of a plugin that has ended is waited for. A child of the
	// plugin may hold it open.
	outputDelay = time.Second
)

// Credential is what a plugin returned. It must not be changed.
type Credential struct {
	// Token is the bearer token. It is empty if there is none.
	Token string
	// Certificate is the client certificate. It is nil if there is none.
	Certificate *tls.Certificate
	// Expiry is when the credential expires. It is zero if that is not known.
	Expiry time.Time
}

var errNotFinished = errors.New("did not finish")

// run runs the program once. It returns the end of the error output also if it fails. No error
// contains output of the program.
func (c *Command) run(ctx context.Context, cluster clientauthenticationv1.Cluster) (*Credential, string, error) {
	program, err := c.Locate()
	if err != nil {
		metrics.ExecPluginCalls.Increment(1, "plugin_not_found_error")
		return nil, "", fmt.Errorf("cannot be run: %w", err)
	}
	// v1 and v1beta1 have the same fields.
	request := clientauthenticationv1.ExecCredential{TypeMeta: metav1.TypeMeta{APIVersion: c.APIVersion, Kind: kindExecCredential}}
	if c.ProvideClusterInfo {
		request.Spec.Cluster = &cluster
	}
	info, err := json.Marshal(request)
	if err != nil {
		return nil, "", fmt.Errorf("cannot be run: %w", err)
	}
	cmd := exec.CommandContext(ctx, program, c.Args...) //nolint:gosec // the operator chose the program
	cmd.Args[0] = c.Path                                // programs with several functions look at the name
	cmd.Env = c.environ(string(info))
	cmd.WaitDelay = outputDelay
	stopAll(cmd)
	output, errorOutput := &boundedBuffer{}, &tail{}
	cmd.Stdout, cmd.Stderr = output, errorOutput
	err = cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // the program succeeded, and a child of it holds the output open
	}
	countCall(err)
	stderr := string(errorOutput.text)
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil && err != nil:
		return nil, stderr, context.Cause(ctx)
	case output.exceeded:
		return nil, stderr, fmt.Errorf("printed more than %d bytes", maxOutput)
	case errors.As(err, &exit) && exit.Exited():
		return nil, stderr, fmt.Errorf("failed with exit code %d", exit.ExitCode())
	case err != nil:
		return nil, stderr, fmt.Errorf("failed: %w", err)
	}
	credential, err := c.decode(output.text)
	return credential, stderr, err
}

// countCall counts a run in the metric rest_client_exec_plugin_call_total, as client-go does.
func countCall(err error) {
	var exit *exec.ExitError
	var start *exec.Error
	var path *fs.PathError
	switch {
	case err == nil:
		metrics.ExecPluginCalls.Increment(0, "no_error")
	case errors.As(err, &exit):
		metrics.ExecPluginCalls.Increment(exit.ExitCode(), "plugin_execution_error")
	case errors.As(err, &start), errors.As(err, &path):
		metrics.ExecPluginCalls.Increment(1, "plugin_not_found_error")
	default:
		metrics.ExecPluginCalls.Increment(1, "client_internal_error")
	}
}

// decode returns the credential in the output of a program.
func (c *Command) decode(output []byte) (*Credential, error) {
	var answer clientauthenticationv1.ExecCredential
	if json.Unmarshal(output, &answer) != nil || answer.Kind != kindExecCredential {
		return nil, errors.New("did not print an ExecCredential in JSON")
	}
	if answer.APIVersion != c.APIVersion {
		return nil, fmt.Errorf("did not print an ExecCredential of the version %s", c.APIVersion)
	}
	status := answer.Status
	switch {
	case status == nil:
		return nil, errors.New("printed an ExecCredential without status")
	case status.Token == "" && status.ClientCertificateData == "" && status.ClientKeyData == "":
		return nil, errors.New("printed neither a token nor a certificate")
	case (status.ClientCertificateData == "") != (status.ClientKeyData == ""):
		return nil, errors.New("printed only one of certificate and key")
	case strings.ContainsFunc(status.Token, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return nil, errors.New("printed a token with characters that are not allowed in a bearer token")
	}
	credential := &Credential{Token: status.Token}
	if status.ExpirationTimestamp != nil {
		credential.Expiry = status.ExpirationTimestamp.Time
	}
	if status.ClientCertificateData == "" {
		return credential, nil
	}
	pair, err := tls.X509KeyPair([]byte(status.ClientCertificateData), []byte(status.ClientKeyData))
	if err != nil {
		return nil, errors.New("printed a certificate or key that cannot be parsed, or that do not belong together")
	}
	credential.Certificate = &pair
	if end := pair.Leaf.NotAfter; credential.Expiry.IsZero() || end.Before(credential.Expiry) {
		credential.Expiry = end
	}
	return credential, nil
}

// boundedBuffer keeps what is written to it, up to maxOutput. It then fails, so that the program
// that writes is ended by a broken pipe.
type boundedBuffer struct {
	text     []byte
	exceeded bool
}

func (b *boundedBuffer) Write(p []byte) (int, error) {
	if len(b.text)+len(p) > maxOutput {
		b.exceeded = true
		return 0, errors.New("too much output")
	}
	b.text = append(b.text, p...)
	return len(p), nil
}

// tail keeps the end of what is written to it.
type tail struct{ text []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.text = append(t.text, p...)
	if excess := len(t.text) - maxErrorOutput; excess > 0 {
		t.text = append(t.text[:0], t.text[excess:]...)
	}
	return len(p), nil
}
