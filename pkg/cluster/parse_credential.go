// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/execplugin"
	"github.com/oam-dev/cluster-gateway/pkg/internal/cabundle"
)

// credential parses the credential. It ignores the keys of other types: Secrets of ServiceAccounts,
// for example, contain more keys.
func (p *parser) credential() {
	label, ok := p.secret.Labels[v1alpha1.LabelCredentialType]
	c := &p.cluster.Credential
	c.Type = credentialType(label)
	switch c.Type {
	case v1alpha1.CredentialTypeX509:
		p.x509Pair()
	case v1alpha1.CredentialTypeServiceAccountToken:
		p.token()
	case v1alpha1.CredentialTypeDynamic:
		p.exec()
	default:
		problem := "is missing"
		if ok {
			problem = "is " + quote(label)
		}
		p.fault("label "+v1alpha1.LabelCredentialType, "%s; it must be %s, %s or %s", problem,
			v1alpha1.CredentialTypeX509, v1alpha1.CredentialTypeServiceAccountToken, v1alpha1.CredentialTypeDynamic)
	}
}

// credentialType returns the type for the value of the label, which may be an alias.
func credentialType(label string) v1alpha1.CredentialType {
	if t := v1alpha1.CredentialType(label); t != v1alpha1.CredentialTypeX509Alias {
		return t
	}
	return v1alpha1.CredentialTypeX509
}

// x509Pair parses a certificate and its key. No message quotes an error about the key.
func (p *parser) x509Pair() {
	s := &secrets{}
	var certs []*x509.Certificate
	certOK := p.given(v1alpha1.SecretKeyCert)
	if !certOK {
		p.fault(v1alpha1.SecretKeyCert, "is missing; it must be the client certificate, in PEM")
	} else if certs, certOK = p.certificateChain(v1alpha1.SecretKeyCert); certOK {
		s.certPEM = encodeCertificates(certs)
		s.begin, s.expiry = certs[0].NotBefore, certs[0].NotAfter
	}
	if p.privateKey() && certOK {
		pair, err := tls.X509KeyPair(s.certPEM, p.secret.Data[v1alpha1.SecretKeyPrivateKey])
		if err != nil {
			p.fault(v1alpha1.SecretKeyPrivateKey, "does not match the first certificate of %s", v1alpha1.SecretKeyCert)
			return
		}
		s.pair = &pair
	}
	p.cluster.Credential.setSecrets(s)
}

// certificateChain parses a client certificate and its chain. Text between the blocks is allowed.
// Other types of blocks are ignored. Blocks that are truncated or cannot be parsed are faults.
func (p *parser) certificateChain(key string) ([]*x509.Certificate, bool) {
	data := p.secret.Data[key]
	if len(data) > maxCert {
		p.fault(key, "is %d bytes long; at most %d are allowed", len(data), maxCert)
		return nil, false
	}
	want := bytes.Count(data, []byte(cabundle.Begin)) // the decoder skips malformed blocks
	if want == 0 {
		p.fault(key, "is not in PEM format; it must contain a block that begins with -----BEGIN CERTIFICATE-----")
		return nil, false
	}
	var certs []*x509.Certificate
	for n := 1; ; n++ {
		var block *pem.Block
		block, data = pem.Decode(data)
		if block == nil {
			if n-1 != want {
				p.fault(key, "PEM block %d of %d is truncated or malformed", n, want)
				return nil, false
			}
			break
		}
		if block.Type != "CERTIFICATE" {
			continue // a key or parameters in the same file, which are never served
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			p.fault(key, "the certificate in PEM block %d cannot be parsed: %s", n, quote(err.Error()))
			return nil, false
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		p.fault(key, "contains no block that begins with -----BEGIN CERTIFICATE-----")
		return nil, false
	}
	return certs, true
}

// privateKey reports whether tls.key contains a valid key, whether or not it belongs to the
// certificate.
func (p *parser) privateKey() bool {
	data := p.secret.Data[v1alpha1.SecretKeyPrivateKey]
	switch {
	case !p.given(v1alpha1.SecretKeyPrivateKey):
		p.fault(v1alpha1.SecretKeyPrivateKey, "is missing; it must be the private key of %s, in PEM", v1alpha1.SecretKeyCert)
		return false
	case len(data) > maxKey:
		p.fault(v1alpha1.SecretKeyPrivateKey, "is %d bytes long; at most %d are allowed", len(data), maxKey)
		return false
	case bytes.Contains(data, []byte("-----BEGIN ENCRYPTED PRIVATE KEY-----")) || bytes.Contains(data, []byte("Proc-Type: 4,ENCRYPTED")):
		p.fault(v1alpha1.SecretKeyPrivateKey, "is encrypted; it must not be")
		return false
	}
	for {
		var block *pem.Block
		block, data = pem.Decode(data)
		if block == nil {
			p.fault(v1alpha1.SecretKeyPrivateKey, "contains no complete PEM block with a private key")
			return false
		}
		if block.Type != "PRIVATE KEY" && !strings.HasSuffix(block.Type, " PRIVATE KEY") {
			continue // openssl writes EC PARAMETERS first
		}
		if !parsesAsKey(block.Bytes) {
			p.fault(v1alpha1.SecretKeyPrivateKey, "the private key cannot be parsed")
			return false
		}
		return true
	}
}

func parsesAsKey(der []byte) bool {
	if _, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		return true
	}
	if _, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return true
	}
	_, err := x509.ParseECPrivateKey(der)
	return err == nil
}

// token parses a bearer token. A token that cannot be sent in a header is a fault here, where the
// message can name the key, and not an error of the first request.
func (p *parser) token() {
	token, problem := checkToken(p.secret.Data[v1alpha1.SecretKeyToken])
	if problem != "" {
		p.fault(v1alpha1.SecretKeyToken, "%s", problem)
		return
	}
	p.cluster.Credential.setSecrets(tokenSecrets(token))
}

// maintenance parses the token for maintenance. A fault in it does not make the Secret invalid:
// callers do not need it, and the gateway can replace it.
func (p *parser) maintenance() {
	if len(p.secret.Data[v1alpha1.SecretKeyMaintenanceToken]) == 0 {
		return
	}
	token, problem := checkToken(p.secret.Data[v1alpha1.SecretKeyMaintenanceToken])
	if problem != "" {
		p.cluster.warnings = append(p.cluster.warnings, fmt.Sprintf("%s %s, and is ignored", v1alpha1.SecretKeyMaintenanceToken, problem))
		return
	}
	p.cluster.maintenance.Type = v1alpha1.CredentialTypeServiceAccountToken
	p.cluster.maintenance.setSecrets(tokenSecrets(token))
}

// CheckToken returns an error unless a Secret with this bearer token would be valid. The error does
// not contain the token.
func CheckToken(token string) error {
	if _, problem := checkToken([]byte(token)); problem != "" {
		return errors.New("the token " + problem)
	}
	return nil
}

// checkToken returns a bearer token without the newline that files end with, or what is wrong with
// it.
func checkToken(data []byte) (token, problem string) {
	token = strings.TrimRight(string(data), "\r\n")
	switch {
	case strings.TrimSpace(token) == "":
		return "", "is missing; it must be a bearer token"
	case len(token) > maxToken:
		return "", fmt.Sprintf("is %d bytes long; at most %d are allowed", len(token), maxToken)
	case strings.ContainsAny(token, "\r\n"):
		return "", "has more than one line"
	case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return "", "contains white space, control characters or other characters that are not allowed in a bearer token"
	}
	return token, ""
}

func tokenSecrets(token string) *secrets {
	begin, expiry := tokenValidity(token)
	return &secrets{token: token, begin: begin, expiry: expiry}
}

// tokenValidity returns the iat and exp claims of a JWT, which it does not verify. They are only
// used to show when the token expires and to decide when to renew it. They are zero if there are
// none.
func tokenValidity(token string) (begin, expiry time.Time) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}, time.Time{}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}, time.Time{}
	}
	var claims struct {
		Iat, Exp any
	}
	if json.Unmarshal(payload, &claims) != nil {
		return time.Time{}, time.Time{}
	}
	return numericDate(claims.Iat), numericDate(claims.Exp)
}

// numericDate converts seconds since 1970.
func numericDate(claim any) time.Time {
	const lastOf9999 = 253402300799 // RFC 3339 cannot represent later times
	seconds, ok := claim.(float64)
	if !ok || seconds <= 0 || seconds > lastOf9999 {
		return time.Time{}
	}
	return time.Unix(int64(seconds), 0).UTC()
}

// execConfig is the value of the key exec. It is a client-go ExecConfig with two more fields:
// plugin and parameters, which stand for command, args and env.
type execConfig struct {
	Plugin     *string           `json:"plugin"`
	Parameters map[string]string `json:"parameters"`
	APIVersion string            `json:"apiVersion"`

	Command            string            `json:"command"`
	Args               []string          `json:"args"`
	Env                []json.RawMessage `json:"env"`
	InteractiveMode    string            `json:"interactiveMode"`
	ProvideClusterInfo bool              `json:"provideClusterInfo"`
}

// exec parses the configuration of a credential plugin. The plugin runs in the gateway with the
// gateway's rights. So that a user who may write a Secret cannot run any program, the Secret
// selects a plugin that the operator has defined, or a program in the operator's directory.
func (p *parser) exec() {
	data := p.secret.Data[v1alpha1.SecretKeyExec]
	switch {
	case !p.given(v1alpha1.SecretKeyExec):
		p.fault(v1alpha1.SecretKeyExec, "is missing; it must select a credential plugin, in JSON")
		return
	case len(data) > maxExec:
		p.fault(v1alpha1.SecretKeyExec, "is %d bytes long; at most %d are allowed", len(data), maxExec)
		return
	case p.opts.ExecPlugins == nil && p.opts.ExecCredentialDir == "":
		p.fault(v1alpha1.SecretKeyExec, "is not allowed: credential plugins are disabled in this gateway (neither --exec-credential-plugins nor --exec-credential-dir is set)")
		return
	}
	var config execConfig
	if err := json.Unmarshal(data, &config); err != nil {
		p.fault(v1alpha1.SecretKeyExec, "is not the exec configuration of a client-go credential plugin, in JSON")
		return
	}
	var command *execplugin.Command
	var problems []string
	if config.Plugin != nil {
		command, problems = p.definedPlugin(data)
	} else {
		command, problems = p.directoryPlugin(&config)
	}
	for _, problem := range problems {
		p.fault(v1alpha1.SecretKeyExec, "%s", problem)
	}
	if len(problems) == 0 {
		p.cluster.Credential.setSecrets(&secrets{plugin: command})
	}
}

// definedPlugin returns the command for a configuration that selects a plugin by its name. Other
// fields than those of the form are faults: nobody may believe that the gateway follows them.
func (p *parser) definedPlugin(data []byte) (*execplugin.Command, []string) {
	var config struct {
		Plugin     string            `json:"plugin"`
		Parameters map[string]string `json:"parameters"`
		APIVersion string            `json:"apiVersion"`
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&config); err != nil {
		return nil, []string{"with plugin, only parameters and apiVersion can be set; command, args and env are part of the plugin's definition"}
	}
	if p.opts.ExecPlugins == nil {
		return nil, []string{"plugin cannot be set, because the operator of the gateway has defined no plugins (--exec-credential-plugins is not set)"}
	}
	command, problems := p.opts.ExecPlugins.Resolve(config.Plugin, config.Parameters)
	if command != nil && config.APIVersion != "" && config.APIVersion != command.APIVersion {
		problems = append(problems, "apiVersion must be "+command.APIVersion+", as in the definition of the plugin, or absent")
	}
	return command, problems
}

// directoryPlugin returns the command for a configuration that names a program in the operator's
// directory. The Secret can choose its arguments. It cannot choose its environment, because
// variables such as LD_PRELOAD or BASH_ENV make any program run something else.
func (p *parser) directoryPlugin(config *execConfig) (*execplugin.Command, []string) {
	var problems []string
	problem := func(text string) { problems = append(problems, text) }
	if p.opts.ExecCredentialDir == "" {
		return nil, []string{"must select one of the operator's plugins with plugin, because --exec-credential-dir is not set"}
	}
	if config.Parameters != nil {
		problem("parameters can be set only with plugin")
	}
	if config.APIVersion != execplugin.APIVersionV1 && config.APIVersion != execplugin.APIVersionV1beta1 {
		problem("apiVersion must be " + execplugin.APIVersionV1 + " or " + execplugin.APIVersionV1beta1)
	}
	if config.InteractiveMode == string(clientcmdapi.AlwaysExecInteractiveMode) {
		problem("interactiveMode must not be Always, because the plugin has no terminal")
	}
	if len(config.Env) > 0 {
		problem("env is not allowed, because it could make the program run anything; remove it, or ask the operator of the gateway to " +
			"define a plugin with these variables in --exec-credential-plugins and select it with plugin")
	}
	command := &execplugin.Command{
		Name: config.Command, Path: config.Command, Dir: p.opts.ExecCredentialDir,
		Args: config.Args, InheritEnv: p.opts.ExecCredentialEnv,
		APIVersion: config.APIVersion, ProvideClusterInfo: config.ProvideClusterInfo,
	}
	if _, err := command.Locate(); err != nil {
		problem(err.Error())
	}
	return command, problems
}
