// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"encoding/json"
	"net/http"

	"github.com/oam-dev/cluster-gateway/pkg/internal/untrusted"
	"github.com/oam-dev/cluster-gateway/pkg/tunnel"
)

// tunnelsPath is where a replica shows the agents that are connected to it. Like every path that is
// not a resource, RBAC on the hub decides who may read it.
const tunnelsPath = "/debug/tunnels"

// tunnelsReport is the answer.
type tunnelsReport struct {
	// Replica is the host name of this replica. Others have other agents.
	Replica  string                `json:"replica"`
	Clusters []tunnel.ClusterState `json:"clusters"`
}

// tunnelsHandler serves the state of the tunnels as JSON.
func tunnelsHandler(replica string, snapshot func() []tunnel.ClusterState) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "only GET is allowed", http.StatusMethodNotAllowed)
			return
		}
		clusters := snapshot()
		for _, c := range clusters {
			for i := range c.Agents {
				c.Agents[i].LastError = untrusted.Text(c.Agents[i].LastError)
			}
		}
		text, err := json.MarshalIndent(tunnelsReport{replica, clusters}, "", "  ")
		if err != nil { // impossible: the types have only texts, numbers and times
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(append(text, '\n')) // the client has gone
	})
}
