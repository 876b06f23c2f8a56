// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientauthv1 "k8s.io/client-go/pkg/apis/clientauthentication/v1"
	clientauthv1beta1 "k8s.io/client-go/pkg/apis/clientauthentication/v1beta1"
)

func (a *app) credentialCommand() *cobra.Command {
	tokenFile := podTokenFile
	cmd := &cobra.Command{
		Use:   "credential",
		Short: "Print the token in a file as a credential plugin of client-go",
		Long: `credential is a credential plugin for programs that cannot read a token from a file, such as Argo CD. It
prints the token in --token-file as an ExecCredential. When the token expires, the program runs the plugin
again. The command only reads the file: it does not request a token.`,
		Example: "  agent-bootstrap credential --token-file /var/run/secrets/kubernetes.io/serviceaccount/token",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.credential(tokenFile, os.Getenv("KUBERNETES_EXEC_INFO"))
		},
	}
	cmd.Flags().StringVar(&tokenFile, "token-file", tokenFile, "File with the token.")
	return cmd
}

// credential prints the token in a file. info is what client-go tells a plugin: it has the version
// of the API that client-go expects.
func (a *app) credential(tokenFile, info string) error {
	version := clientauthv1.SchemeGroupVersion.String()
	if info != "" {
		var asked metav1.TypeMeta
		if err := json.Unmarshal([]byte(info), &asked); err != nil {
			return fmt.Errorf("invalid KUBERNETES_EXEC_INFO: %w", err)
		}
		version = asked.APIVersion
	}
	if version != clientauthv1.SchemeGroupVersion.String() && version != clientauthv1beta1.SchemeGroupVersion.String() {
		return fmt.Errorf("invalid KUBERNETES_EXEC_INFO: the version %q is not known", version)
	}
	text, err := os.ReadFile(tokenFile)
	if err != nil {
		return fmt.Errorf("--token-file: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if token == "" {
		return errors.New("--token-file: the file is empty")
	}
	credential := &clientauthv1.ExecCredential{
		TypeMeta: metav1.TypeMeta{APIVersion: version, Kind: "ExecCredential"}, // both versions have the same fields
		Status:   &clientauthv1.ExecCredentialStatus{Token: token},
	}
	if expires, ok := tokenExpiry(token); ok {
		credential.Status.ExpirationTimestamp = &metav1.Time{Time: expires}
	}
	return json.NewEncoder(a.Out).Encode(credential)
}

// tokenExpiry returns when a JSON Web Token expires. It does not verify the token: the server does.
func tokenExpiry(token string) (time.Time, bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}, false
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}, false
	}
	var claims struct {
		Expires int64 `json:"exp"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil || claims.Expires == 0 {
		return time.Time{}, false
	}
	return time.Unix(claims.Expires, 0), true
}
