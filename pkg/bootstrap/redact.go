// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"cmp"
	"encoding/base64"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"sigs.k8s.io/yaml"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// redacted replaces a secret. It is a plain string in YAML, and not a placeholder of a shell.
const redacted = "<redacted>"

// redactor removes secrets from texts. It knows the values of the Secrets that it has learned, in
// every usual encoding, and it recognizes other secrets by their form or by the name before them.
// In doubt it removes too much.
type redactor struct {
	known    map[string]bool
	replacer *strings.Replacer
}

// minSecret is the length of the shortest value that is removed wherever it appears. A shorter one
// would also match ordinary words.
const minSecret = 8

// learn makes text remove a value. The lines of a value are removed one by one, because a program
// may show them with other line breaks. learn must not be called after text.
func (r *redactor) learn(value string) {
	if r.known == nil {
		r.known = map[string]bool{}
	}
	for line := range strings.Lines(value) {
		line = strings.TrimSpace(line)
		if len(line) < minSecret || strings.HasPrefix(line, "-----") {
			continue
		}
		r.known[line], r.known[url.QueryEscape(line)], r.known[url.PathEscape(line)] = true, true, true
	}
	for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for shift := range 3 { // where the value begins in a group of three bytes
			if inner := base64Inside(encoding, strings.TrimSpace(value), shift); len(inner) >= minSecret {
				r.known[inner] = true
			}
		}
	}
}

// base64Inside returns the characters that encode value, and nothing of what is before or after it.
func base64Inside(encoding *base64.Encoding, value string, shift int) string {
	encoded := encoding.EncodeToString(append(make([]byte, shift), value...))
	first := []int{0, 2, 3}[shift]
	last := (shift + len(value)) / 3 * 4
	return encoded[min(first, last):last]
}

// publicKeys are the keys of Secrets whose values are not secret. What is secret in them is
// recognized by its form.
var publicKeys = []string{
	v1alpha1.SecretKeyEndpoint, v1alpha1.SecretKeyCA, v1alpha1.SecretKeyCAAlias, v1alpha1.SecretKeyServerName, v1alpha1.SecretKeyCert,
	v1alpha1.SecretKeyProxyURL, "namespace",
}

// learnData learns the value of a key of a Secret.
func (r *redactor) learnData(key string, value []byte) {
	var structured any
	switch {
	case slices.Contains(publicKeys, key):
		if u, err := url.Parse(strings.TrimSpace(string(value))); err == nil && u.User != nil {
			password, _ := u.User.Password()
			r.learn(cmp.Or(password, u.User.Username()))
		}
	case yaml.Unmarshal(value, &structured) == nil && r.learnTree("", structured):
	default:
		r.learn(string(value))
	}
}

// publicFields are fields of kubeconfigs and of configurations of exec plugins that are not secret.
var publicFields = []string{
	"apiVersion", "kind", "name", "server", "cluster", "user", "namespace", "current-context", "tls-server-name", "certificate-authority",
	"certificate-authority-data", "client-certificate", "client-certificate-data", "command", "installHint", "interactiveMode", "proxy-url",
}

// learnTree learns the values in a document. It returns false if there is only one value.
func (r *redactor) learnTree(key string, v any) bool {
	switch v := v.(type) {
	case map[string]any:
		for k, item := range v {
			r.learnTree(k, item)
		}
	case []any:
		for _, item := range v {
			r.learnTree(key, item)
		}
	case string:
		if key == "" {
			return false
		}
		if !slices.Contains(publicFields, key) {
			r.learn(v)
			if decoded, err := base64.StdEncoding.DecodeString(v); err == nil {
				r.learn(string(decoded))
			}
		}
	default:
		return false
	}
	return true
}

// secretName matches the end of a name whose value is a secret.
const secretName = `(?:token|password|passwd|passphrase|client[-_]?secret|secret[-_]?key|access[-_]?key|api[-_]?key|apikey|private[-_]?key|key-data|authorization)`

var (
	secretField = regexp.MustCompile(`(?i)` + secretName + `$`)
	secretFlag  = regexp.MustCompile(`(?i)^--?[\w-]*` + secretName + `$`)
	// secretForms are secrets that can be recognized by their form, with what is written in their
	// place.
	secretForms = []struct {
		form *regexp.Regexp
		with string
	}{
		{regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)`), redacted},
		{regexp.MustCompile(`eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?`), redacted}, // a JSON Web Token
		{regexp.MustCompile(`\b[a-z0-9]{6}\.[a-z0-9]{16}\b`), redacted},        // a bootstrap token
		{regexp.MustCompile(`(?i)\b(bearer|basic)((?:\s|%20|\+)+)[\w.~+/=%-]{6,}`), "${1}${2}" + redacted},
		{regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)[^\s"'<>?#]+@`), "${1}" + redacted + "@"},
		{regexp.MustCompile(`(?i)(` + secretName + `\\*["']?\s*[:=]\s*\\*")[^"\\]+`), "${1}" + redacted},
		{regexp.MustCompile(`(?i)(` + secretName + `\\*["']?\s*[:=]\s*')[^']+`), "${1}" + redacted},
		{regexp.MustCompile(`(?i)(` + secretName + `\\*["']?(?:\s*[:=][ \t]*|=|%3D|%3A))[^\s"'\\,;&<}\]]+`), "${1}" + redacted},
		{regexp.MustCompile(`(?i)(--[\w-]*` + secretName + `\s+)[^\s"'<-][^\s"'<]*`), "${1}" + redacted},
	}
	base64Text = regexp.MustCompile(`[A-Za-z0-9+/_-]{24,}`)
	urlText    = regexp.MustCompile(`[^\s"'<>]*%[0-9A-Fa-f]{2}[^\s"'<>]*`)
)

// maxNesting bounds how many encodings inside each other are removed.
const maxNesting = 3

// text returns a text without secrets.
func (r *redactor) text(s string) string { return r.nested(s, maxNesting) }

func (r *redactor) nested(s string, depth int) string {
	if r.replacer == nil {
		var pairs []string
		for value := range r.known {
			pairs = append(pairs, value, redacted)
		}
		r.replacer = strings.NewReplacer(pairs...)
	}
	s = r.replacer.Replace(s)
	if depth > 0 {
		// An encoded text with a secret in it is removed as a whole.
		hides := func(decoded string, err error) bool {
			return err == nil && isText(decoded) && r.nested(decoded, depth-1) != decoded
		}
		s = base64Text.ReplaceAllStringFunc(s, func(encoded string) string {
			standard := strings.NewReplacer("-", "+", "_", "/").Replace(encoded)
			for begin := range 4 { // what is before it may look like a part of it
				length := (len(standard) - begin) / 4 * 4
				if decoded, err := base64.RawStdEncoding.DecodeString(standard[begin : begin+length]); hides(string(decoded), err) {
					return redacted
				}
			}
			return encoded
		})
		s = urlText.ReplaceAllStringFunc(s, func(encoded string) string {
			if hides(url.QueryUnescape(encoded)) {
				return redacted
			}
			return encoded
		})
	}
	for _, f := range secretForms {
		s = f.form.ReplaceAllString(s, f.with)
	}
	return s
}

// isText reports whether decoded bytes are a text. Most words that look like base64 are none.
func isText(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(c rune) bool { return unicode.IsControl(c) && !unicode.IsSpace(c) })
}
