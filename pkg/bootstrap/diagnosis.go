// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"fmt"
	"io"
	"strings"
)

// Stage is a stage of the path from the caller to a managed cluster.
type Stage string

// The stages, in the order in which a request passes them.
const (
	StageHub         Stage = "hub"         // the hub and its gateway answer, and the caller may use the cluster
	StageSecret      Stage = "secret"      // the cluster's Secret exists and is valid
	StageCertificate Stage = "certificate" // the gateway accepts the agent's certificate
	StageAgent       Stage = "agent"       // an agent is connected
	StageDial        Stage = "dial"        // the API server accepts connections
	StageTLS         Stage = "tls"         // the API server's certificate is the expected one
	StageCredential  Stage = "credential"  // the API server accepts the gateway's credential
	StageRBAC        Stage = "rbac"        // the gateway has the rights of --access in the cluster
)

// stagesOf returns the stages of a route. An unknown route has all of them.
func stagesOf(route string) []Stage {
	if route == routeDirect {
		return []Stage{StageHub, StageSecret, StageDial, StageTLS, StageCredential, StageRBAC}
	}
	return []Stage{StageHub, StageSecret, StageCertificate, StageAgent, StageDial, StageTLS, StageCredential, StageRBAC}
}

// State is the state of a stage.
type State string

// The states. A stage after a broken one is often unknown.
const (
	OK      State = "ok"
	Broken  State = "broken"
	Unknown State = "unknown"
)

// Finding is what doctor found out about a stage.
type Finding struct {
	Stage Stage `json:"stage"`
	State State `json:"state"`
	// Message says what is wrong, or what was found.
	Message string `json:"message,omitempty"`
	// Advice says what to do next. Only a broken stage has it.
	Advice string `json:"advice,omitempty"`
}

// Diagnosis is what doctor found out about a cluster.
type Diagnosis struct {
	Cluster string `json:"cluster"`
	// Broken is the first broken stage. It is empty if no stage is broken.
	Broken Stage `json:"broken,omitempty"`
	// Findings has one finding for each stage, in the order of the path.
	Findings []Finding `json:"findings"`
}

// newDiagnosis puts findings into the order of the path, and adds the stages that were not checked.
// Of several findings about a stage, the last one counts.
func newDiagnosis(cluster, route string, findings []Finding) Diagnosis {
	d := Diagnosis{Cluster: cluster}
	for _, stage := range stagesOf(route) {
		found := Finding{Stage: stage, State: Unknown}
		for _, f := range findings {
			if f.Stage == stage {
				found = f
			}
		}
		if found.State == Broken && d.Broken == "" {
			d.Broken = stage
		}
		if found.State == Unknown && found.Message == "" {
			found.Message = "not checked"
		}
		d.Findings = append(d.Findings, found)
	}
	return d
}

// print writes the diagnosis as a table. The advice for a stage follows below its message.
func (d Diagnosis) print(w io.Writer) {
	state := map[State]string{OK: "ok", Broken: "BROKEN", Unknown: "?"}
	for _, f := range d.Findings {
		printFinding(w, string(f.Stage), state[f.State], f.Message)
		if f.Advice != "" {
			printFinding(w, "", "", "Next: "+f.Advice)
		}
	}
}

func printFinding(w io.Writer, stage, state, text string) {
	for _, line := range strings.Split(text, "\n") {
		fmt.Fprintf(w, "%-12s %-7s %s\n", stage, state, line)
		stage, state = "", ""
	}
}
