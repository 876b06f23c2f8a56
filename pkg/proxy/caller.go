// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"maps"
	"slices"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/utils/lru"
)

// caller is what the second replica has to know about the caller of a request. The order of the
// fields is that of the text.
type caller struct {
	Name       string              `json:"name"`
	UID        string              `json:"uid,omitempty"`
	Groups     []string            `json:"groups,omitempty"`
	Extra      map[string][]string `json:"extra,omitempty"`
	ThroughHub bool                `json:"throughHub,omitempty"`
	AuditID    string              `json:"auditID,omitempty"`
}

// auditIDField begins the end of the text of a caller. It is in no string: a quotation mark in a
// string has a backslash before it.
const auditIDField = `,"auditID":"`

// encodeCaller returns a caller as the value of a header: what encoding/json writes, in base64,
// without the time that reflection takes for each request.
func encodeCaller(c caller) string {
	b := make([]byte, 0, 512)
	b = appendString(append(b, `{"name":`...), c.Name)
	if c.UID != "" {
		b = appendString(append(b, `,"uid":`...), c.UID)
	}
	if len(c.Groups) > 0 {
		b = appendStrings(append(b, `,"groups":`...), c.Groups)
	}
	if len(c.Extra) > 0 {
		b = append(b, `,"extra":{`...)
		for i, name := range slices.Sorted(maps.Keys(c.Extra)) {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendStrings(append(appendString(b, name), ':'), c.Extra[name])
		}
		b = append(b, '}')
	}
	if c.ThroughHub {
		b = append(b, `,"throughHub":true`...)
	}
	if c.AuditID != "" {
		b = appendString(append(b, `,"auditID":`...), c.AuditID)
	}
	return base64.RawStdEncoding.EncodeToString(append(b, '}'))
}

// encodePairs returns strings as the value of a header.
func encodePairs(pairs []string) string {
	return base64.RawStdEncoding.EncodeToString(appendStrings(make([]byte, 0, 512), pairs))
}

func appendStrings(b []byte, values []string) []byte {
	b = append(b, '[')
	for i, value := range values {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, value)
	}
	return append(b, ']')
}

// appendString appends a string as JSON.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			text, err := json.Marshal(s)
			if err != nil { // impossible for a string
				return append(b, `""`...)
			}
			return append(b, text...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}

func decodeHeader(value string, v any) error {
	text, err := base64.RawStdEncoding.DecodeString(value)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, v)
}

// knownCaller is a caller whose text has been decoded. It must not be changed: requests share it.
type knownCaller struct {
	user       *user.DefaultInfo
	throughHub bool
}

const (
	// maxKnownCallers and maxKnownCaller bound how many callers are kept, and the text of each.
	maxKnownCallers = 512
	maxKnownCaller  = 4 << 10
)

// callers are the callers of forwarded requests that were seen lately, by their text without the
// audit ID. The same caller has the same text, and to decode it takes longer than all else that is
// done for a forwarded request.
type callers struct{ known *lru.Cache }

func newCallers() *callers { return &callers{lru.New(maxKnownCallers)} }

// decode returns the caller in the value of a header, or nil if it is invalid.
func (c *callers) decode(value string) (_ *knownCaller, auditID string) {
	text, err := base64.RawStdEncoding.DecodeString(value)
	if err != nil {
		return nil, ""
	}
	i := bytes.LastIndex(text, []byte(auditIDField))
	if i < 0 || !isAuditID(text[i+len(auditIDField):]) {
		return decodeCaller(text)
	}
	auditID = string(text[i+len(auditIDField) : len(text)-len(`"}`)])
	key := string(text[:i])
	if found, ok := c.known.Get(key); ok {
		return found.(*knownCaller), auditID //nolint:forcetypeassert // there are no others
	}
	found, _ := decodeCaller([]byte(key + "}"))
	if found != nil && len(key) <= maxKnownCaller {
		c.known.Add(key, found)
	}
	return found, auditID
}

// isAuditID reports whether the rest of the text is an audit ID and the end.
func isAuditID(rest []byte) bool {
	id, ok := bytes.CutSuffix(rest, []byte(`"}`))
	return ok && len(id) > 0 && !bytes.ContainsAny(id, `"\`)
}

// decodeCaller returns the caller in a text, or nil if it is invalid.
func decodeCaller(text []byte) (_ *knownCaller, auditID string) {
	var c caller
	if json.Unmarshal(text, &c) != nil {
		return nil, ""
	}
	for name, values := range c.Extra {
		c.Extra[name] = slices.Clip(values)
	}
	return &knownCaller{
		user:       &user.DefaultInfo{Name: c.Name, UID: c.UID, Groups: slices.Clip(c.Groups), Extra: c.Extra},
		throughHub: c.ThroughHub,
	}, c.AuditID
}
