// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/pflag"

	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// agentValuesFlag is the flag with the values of an agent that runs as Pods.
type agentValuesFlag struct{ flag *pflag.Flag }

func (f *agentValuesFlag) addFlag(fs *pflag.FlagSet, defaults string) {
	const name = "agent-values"
	fs.String(name, "", "YAML file that adapts the agent's Pods to the cluster: image, imagePullPolicy, imagePullSecrets, env, replicas, resources, nodeSelector, "+
		"tolerations, affinity, topologySpread, priorityClassName, labels, annotations, omitUser. "+defaults)
	f.flag = fs.Lookup(name)
}

// read returns the values in the file. Nil means that the flag is not set, and zero values that it
// is empty.
func (f *agentValuesFlag) read() (*registration.AgentValues, error) {
	if !f.flag.Changed {
		return nil, nil
	}
	path := f.flag.Value.String()
	if path == "" {
		return &registration.AgentValues{}, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("--agent-values: %w", err)
	}
	values, err := registration.ParseAgentValues(data)
	if err != nil {
		return nil, fmt.Errorf("invalid --agent-values %q: %w", path, err)
	}
	return &values, nil
}

// validate returns an error if the flag has no meaning. pods is whether the agent runs as Pods.
func (f *agentValuesFlag) validate(pods bool) error {
	if f.flag.Changed && !pods {
		return errors.New("--agent-values cannot be used with --out-dir or --route=direct: it is for an agent that runs as Pods")
	}
	return nil
}
