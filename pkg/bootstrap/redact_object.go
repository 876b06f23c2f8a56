// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"maps"
	"slices"
	"strings"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// object returns an object of an API without secrets.
func (r *redactor) object(o map[string]any) map[string]any {
	clean, _ := r.value("", o).(map[string]any)
	return clean
}

// value returns what remains of the value of a field.
func (r *redactor) value(field string, v any) any {
	switch v := v.(type) {
	case map[string]any:
		clean := map[string]any{}
		for key, item := range v {
			switch key {
			case "managedFields":
			case "annotations":
				clean[key] = r.annotations(item)
			case "containers", "initContainers", "ephemeralContainers":
				clean[key] = r.containers(item)
			default:
				clean[r.text(key)] = r.value(key, item)
			}
		}
		return clean
	case []any:
		clean := make([]any, len(v))
		for i, item := range v {
			clean[i] = r.value(field, item)
		}
		return clean
	case string:
		if v != "" && secretField.MatchString(field) {
			return redacted
		}
		return r.text(v)
	default:
		return v
	}
}

// annotations keeps the values of the gateway's own annotations. Any other one can hold a whole
// object, as kubectl.kubernetes.io/last-applied-configuration does.
func (r *redactor) annotations(v any) any {
	annotations, _ := v.(map[string]any)
	clean := map[string]any{}
	for key, item := range annotations {
		domain, _, _ := strings.Cut(key, "/")
		if domain == v1alpha1.GroupName || strings.HasSuffix(domain, "."+v1alpha1.GroupName) {
			clean[key] = r.value(key, item)
		} else {
			clean[r.text(key)] = redacted
		}
	}
	return clean
}

// ownContainers are the names of the containers whose arguments are kept. They have no secrets in
// their flags.
var ownContainers = []string{"cluster-gateway", registration.AgentName}

// publicVariables are environment variables whose values are kept.
var publicVariables = []string{"GOMEMLIMIT", "GOMAXPROCS", "GODEBUG", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "PROXY_SERVER_HOST", "PROXY_SERVER_PORT"}

func (r *redactor) containers(v any) any {
	list, _ := v.([]any)
	clean := make([]any, 0, len(list))
	for _, item := range list {
		container, _ := item.(map[string]any)
		container = maps.Clone(container)
		name, _ := container["name"].(string)
		if !slices.Contains(ownContainers, name) {
			for _, field := range []string{"args", "command"} {
				if container[field] != nil {
					container[field] = redacted
				}
			}
		}
		if args, ok := container["args"].([]any); ok {
			container["args"] = withoutFlagValues(args)
		}
		env, _ := container["env"].([]any)
		if len(env) > 0 {
			container["env"] = r.variables(env)
		}
		clean = append(clean, r.value("container", container))
	}
	return clean
}

// withoutFlagValues removes arguments that are the value of the flag before them.
func withoutFlagValues(args []any) []any {
	clean := slices.Clone(args)
	for i := 1; i < len(args); i++ {
		if flag, _ := args[i-1].(string); secretFlag.MatchString(flag) {
			clean[i] = redacted
		}
	}
	return clean
}

// variables removes values of environment variables. Where a value is from is kept.
func (r *redactor) variables(env []any) []any {
	clean := make([]any, len(env))
	for i, item := range env {
		variable, _ := item.(map[string]any)
		variable = maps.Clone(variable)
		name, _ := variable["name"].(string)
		if variable["value"] != nil && !slices.Contains(publicVariables, strings.ToUpper(name)) {
			variable["value"] = redacted
		}
		clean[i] = variable
	}
	return clean
}
