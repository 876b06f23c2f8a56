// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// Stage is one on the way to a cluster.
type Stage string

// The stages, in the order of the way.
const (
	StageHub         Stage = "hub"         // the hub and its gateway answer, and the caller may use the cluster
	StageSecret      Stage = "secret"      // the Secret can be used
	StageCertificate Stage = "certificate" // the agent's certificate is what the gateway accepts
	StageAgent       Stage = "agent"       // an agent is connected
	StageDial        Stage = "dial"        // the API server can be connected to
	StageTLS         Stage = "tls"         // it is the right one
	StageCredential  Stage = "credential"  // it accepts the gateway's credential
	StageRBAC        Stage = "rbac"        // the gateway may do there what --access said
)

// State is how a stage is.
type State string

// The states. What lies after a stage that is broken is unknown.
const (
	OK      State = "ok"
	Broken  State = "broken"
	Unknown State = "unknown"
)

// Finding is what doctor found out about a stage.
type Finding struct {
	Stage   Stage  `json:"stage"`
	State   State  `json:"state"`
	Message string `json:"message,omitempty"`
	// Advice is what to do.
	Advice string `json:"advice,omitempty"`
}

// Diagnosis is what doctor found out about a cluster.
type Diagnosis struct {
	Cluster string `json:"cluster"`
	// Broken is the first stage that is; empty if none is.
	Broken   Stage     `json:"broken,omitempty"`
	Findings []Finding `json:"findings"`
}

type doctorOptions struct {
	cluster clusterOptions
	outDir  string
}

func (a *app) doctorCommand() *cobra.Command {
	o := &doctorOptions{}
	cmd := &cobra.Command{
		Use:   "doctor NAME",
		Short: "Find out at which stage the way to a cluster breaks, and what to do",
		Long: `doctor walks the way to a cluster: the hub, the Secret, the agent's certificate, the agent's connection, its dial to the API server,
TLS, the gateway's credential, and what the gateway may do there. It fails if a stage is broken. The agent's certificate can be looked at
through the gateway as long as the cluster is reached; when it is not, --cluster-kubeconfig or --out-dir show it.`,
		Example: `  agent-bootstrap doctor edge-1

  # Look at the agent too, in the cluster or in its folder.
  agent-bootstrap doctor edge-1 --cluster-kubeconfig edge-1.kubeconfig
  agent-bootstrap doctor edge-1 --out-dir ./edge-1-agent`,
		Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error { return a.doctor(cmd.Context(), args[0], o) },
	}
	o.cluster.addFlags(cmd.Flags(), ", to look at its agent")
	cmd.Flags().StringVar(&o.outDir, "out-dir", o.outDir, "Folder of an agent that runs as a process, to look at its certificate.")
	a.addOutput(cmd.Flags(), "the diagnosis")
	return cmd
}

func (a *app) doctor(ctx context.Context, name string, o *doctorOptions) error {
	if err := errors.Join(checkName(name), a.checkOutput()); err != nil {
		return err
	}
	e := &examination{app: a, o: o, name: name}
	e.examine(ctx)
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	d := e.diagnosis()
	if a.output != "" {
		if err := a.print(d); err != nil {
			return err
		}
	} else {
		a.printDiagnosis(d)
	}
	if d.Broken != "" {
		return fmt.Errorf("cluster %q: the stage %q is broken", name, d.Broken)
	}
	return nil
}

func (a *app) printDiagnosis(d Diagnosis) {
	mark := map[State]string{OK: "ok", Broken: "BROKEN", Unknown: "?"}
	for _, f := range d.Findings {
		fmt.Fprintf(a.Out, "%-12s %-7s %s\n", f.Stage, mark[f.State], f.Message)
		if f.Advice != "" {
			fmt.Fprintf(a.Out, "%-20s -> %s\n", "", strings.ReplaceAll(f.Advice, "\n", "\n                        "))
		}
	}
}

// examination is one run of doctor.
type examination struct {
	*app
	o    *doctorOptions
	name string

	hub *clusterClient
	// inside is the managed cluster by its own kubeconfig; nil without one. insideErr is why it cannot be asked.
	inside    *clusterClient
	insideErr error
	gateway   *v1alpha1.ClusterGateway
	findings  []Finding
}

func (e *examination) add(stage Stage, state State, advice, format string, args ...any) {
	e.findings = append(e.findings, Finding{Stage: stage, State: state, Message: fmt.Sprintf(format, args...), Advice: advice})
}

func (e *examination) ok(stage Stage, format string, args ...any) {
	e.add(stage, OK, "", format, args...)
}

func (e *examination) broken(stage Stage, advice, format string, args ...any) {
	e.add(stage, Broken, advice, format, args...)
}

// diagnosis puts the findings in the order of the way, and adds what was not found out.
func (e *examination) diagnosis() Diagnosis {
	d := Diagnosis{Cluster: e.name}
	stages := []Stage{StageHub, StageSecret, StageCertificate, StageAgent, StageDial, StageTLS, StageCredential, StageRBAC}
	if e.gateway != nil && e.gateway.Status.Route == routeDirect {
		stages = []Stage{StageHub, StageSecret, StageDial, StageTLS, StageCredential, StageRBAC}
	}
	for _, stage := range stages {
		found := Finding{Stage: stage, State: Unknown}
		for _, f := range e.findings {
			if f.Stage == stage {
				found = f
			}
		}
		if found.State == Broken && d.Broken == "" {
			d.Broken = stage
		}
		if found.State == Unknown && found.Message == "" && d.Broken != "" {
			found.Message = "not looked at"
		}
		d.Findings = append(d.Findings, found)
	}
	return d
}

func (e *examination) examine(ctx context.Context) {
	if !e.examineHub(ctx) || !e.examineSecret(ctx) {
		return
	}
	if e.o.cluster.kubeconfig != "" {
		e.inside, e.insideErr = e.connectCluster(ctx, e.name, e.o.cluster)
	}
	reached := e.examineWay(ctx)
	if e.gateway.Status.Route != routeDirect {
		e.examineCertificate(ctx, reached)
	}
	if reached {
		e.examineRights(ctx)
	}
}

func (e *examination) examineHub(ctx context.Context) bool {
	var err error
	if e.hub, err = e.connectHub(ctx); err == nil {
		err = e.requireGateway(ctx, e.hub)
	}
	if err != nil {
		e.broken(StageHub, "", "%v", err)
		return false
	}
	right := authorizationv1.ResourceAttributes{Verb: "get", Group: v1alpha1.GroupName, Resource: v1alpha1.ResourceName, Subresource: v1alpha1.ProxySubresource, Name: e.name}
	allowed, err := e.hub.may(ctx, right)
	switch {
	case err != nil:
		e.broken(StageHub, "", "%v", err)
		return false
	case !allowed:
		e.broken(StageHub, "ask for a ClusterRole on the hub with clustergateways/proxy, resourceNames "+e.name,
			"your account %q may not use this cluster on the hub", e.hub.whoami(ctx))
		return false
	}
	e.ok(StageHub, "%s (%s)", e.hub.config.Host, e.hub.version)
	return true
}

func (e *examination) examineSecret(ctx context.Context) bool {
	var err error
	e.gateway, err = e.hub.clusterGateway(ctx, e.name)
	switch {
	case apierrors.IsNotFound(err):
		if record, err := e.hub.readInvitation(ctx, e.app.hub.namespace, e.name); err == nil && record != nil {
			e.broken(StageSecret, "apply the invitation to the cluster; see the log of its Job "+registration.EnrollName+"-... there, or invite again: agent-bootstrap invite "+e.name,
				"the cluster is invited, and not registered yet. The invitation: %s", e.invitationText(record))
			return false
		}
		e.broken(StageSecret, "agent-bootstrap register "+e.name, "there is no cluster Secret %s/%s on the hub", e.app.hub.namespace, e.name)
		return false
	case err != nil:
		e.add(StageSecret, Unknown, "", "%v", e.hub.explain(err))
		e.gateway = &v1alpha1.ClusterGateway{ObjectMeta: metav1.ObjectMeta{Name: e.name}}
		return true
	}
	ready := meta.FindStatusCondition(e.gateway.Status.Conditions, v1alpha1.ConditionReady)
	if ready != nil && ready.Reason == v1alpha1.ReasonInvalidSecret {
		e.brokenSecret(ready.Message)
		return false
	}
	e.ok(StageSecret, "%s/%s, route %s", e.app.hub.namespace, e.name, e.gateway.Status.Route)
	return true
}

func (e *examination) brokenSecret(message string) {
	e.broken(StageSecret, "run agent-bootstrap register "+e.name+" again, or correct the key that is named", "%s", message)
}

// examineWay asks the cluster something through the gateway, which says how far that came.
func (e *examination) examineWay(ctx context.Context) (reached bool) {
	got, err := e.hub.reach(ctx, e.name)
	if err == nil {
		e.passed(StageCredential)
		e.ok(StageCredential, "accepted; the cluster is %s", got)
		return true
	}
	switch causeOf(err) {
	case v1alpha1.CauseInvalidSecret:
		e.brokenSecret(err.Error())
	case v1alpha1.CauseTunnel:
		e.brokenAgent(ctx, err)
	case v1alpha1.CauseAgent, v1alpha1.CauseEndpoint:
		e.passed(StageAgent)
		e.broken(StageDial, e.dialAdvice(ctx, err), "%v", err)
	case v1alpha1.CauseTLS:
		e.passed(StageDial)
		e.broken(StageTLS, "the Secret's ca.crt or tls-server-name is not that of the API server: run agent-bootstrap register "+e.name+" again", "%v", err)
	case v1alpha1.CauseCredential:
		e.passed(StageTLS)
		e.broken(StageCredential, "give it a new one: agent-bootstrap rotate "+e.name+" --cluster-kubeconfig FILE", "%v", err)
	case v1alpha1.CauseResponse, v1alpha1.CauseRequest:
		e.passed(StageAgent)
		e.broken(StageDial, "the connection came about, and no answer: look at the API server of the cluster", "%v", err)
	default:
		if apierrors.IsForbidden(err) { // by the cluster: anybody may ask for its version
			e.passed(StageCredential)
			e.broken(StageRBAC, e.rightsAdvice(), "%v", err)
			return false
		}
		if apierrors.IsNotFound(err) && e.routeUnknown() {
			e.broken(StageSecret, "agent-bootstrap register "+e.name, "%v", err)
			return false
		}
		e.broken(StageHub, "look at the gateway's log", "%v", err)
	}
	return false
}

// passed says that all stages up to one are all right, if nothing else is known of them.
func (e *examination) passed(last Stage) {
	agent := "connected"
	if e.routeUnknown() {
		agent = "connected, if the cluster has one: its route could not be looked at"
	}
	messages := map[Stage]string{StageAgent: agent, StageDial: "the API server is there", StageTLS: "it is the right one", StageCredential: "accepted"}
	for _, stage := range []Stage{StageAgent, StageDial, StageTLS, StageCredential} {
		e.ok(stage, "%s", messages[stage])
		if stage == last {
			return
		}
	}
}

// routeUnknown is that the caller may not look at the ClusterGateway.
func (e *examination) routeUnknown() bool { return e.gateway.Status.Route == "" }

// brokenAgent says that none is connected; if that is for its certificate, examineCertificate finds out.
func (e *examination) brokenAgent(ctx context.Context, err error) {
	advice := "see whether it runs: kubectl -n " + registration.AgentNamespace + " get pods, and its log. It must reach the tunnel's address from there.\n" +
		"With --cluster-kubeconfig FILE, or --out-dir DIR for one that runs as a process, more can be found out"
	switch {
	case e.insideErr != nil:
		advice = "its cluster cannot be asked either: " + e.insideErr.Error()
	case e.inside != nil:
		advice = e.agentPods(ctx)
	case e.o.outDir != "":
		advice = "see whether the process runs, and its log. It must reach the tunnel's address from where it runs"
	}
	e.broken(StageAgent, advice, "%v", err)
}

// agentPods is what the cluster itself says of its agent.
func (e *examination) agentPods(ctx context.Context) string {
	deployment, err := e.inside.kube.AppsV1().Deployments(registration.AgentNamespace).Get(ctx, registration.AgentName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Sprintf("the cluster has no Deployment %s/%s: agent-bootstrap register %s applies it; an agent that runs as a process has to be started", registration.AgentNamespace, registration.AgentName, e.name)
	case err != nil:
		return e.inside.explain(err).Error()
	}
	if deployment.Spec.Replicas != nil && *deployment.Spec.Replicas == 0 {
		return fmt.Sprintf("it is scaled to nothing: kubectl -n %s scale deployment %s --replicas 2", registration.AgentNamespace, registration.AgentName)
	}
	pods, err := e.inside.kube.CoreV1().Pods(registration.AgentNamespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + registration.AgentName})
	if err != nil {
		return e.inside.explain(err).Error()
	}
	if len(pods.Items) == 0 {
		return fmt.Sprintf("its Deployment has no Pods: kubectl -n %s describe replicasets", registration.AgentNamespace)
	}
	var lines []string
	for i := range pods.Items {
		lines = append(lines, podText(&pods.Items[i]))
	}
	lines = append(lines, "If they run: their log says why they do not connect; they must reach the tunnel's address")
	return strings.Join(lines, "\n")
}

func podText(pod *corev1.Pod) string {
	text := fmt.Sprintf("Pod %s is %s", pod.Name, pod.Status.Phase)
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			text += ": " + c.Message
		}
	}
	for _, c := range pod.Status.ContainerStatuses {
		if c.State.Waiting != nil {
			text += ": " + strings.TrimSpace(c.State.Waiting.Reason+" "+c.State.Waiting.Message)
		}
	}
	return text
}

// dialAdvice tells an API server that is down from a firewall, as far as that can be told.
func (e *examination) dialAdvice(ctx context.Context, err error) string {
	text := err.Error()
	where := "the agent"
	if e.gateway.Status.Route == routeDirect {
		where = "the gateway"
	}
	switch {
	case e.insideErr != nil:
		return "the API server cannot be reached by --cluster-kubeconfig either, so it is probably down: " + e.insideErr.Error()
	case e.inside != nil:
		return fmt.Sprintf("the API server answers by --cluster-kubeconfig: so it is the way from %s to it. Look for firewalls and NetworkPolicies, and at the Secret's endpoint", where)
	case strings.Contains(text, "refused"):
		return "nothing listens there: the API server is down, or the Secret's endpoint is another host's"
	default:
		return fmt.Sprintf("the API server is down, or a firewall or NetworkPolicy drops what %s sends to it, or the Secret's endpoint is wrong. --cluster-kubeconfig FILE tells these apart", where)
	}
}

// examineCertificate looks at the agent's certificate, wherever it can be seen. A foreign one is why the agent is not connected.
func (e *examination) examineCertificate(ctx context.Context, reached bool) {
	pair, where, err := e.findCertificate(ctx, reached)
	switch {
	case err != nil:
		e.add(StageCertificate, Unknown, "", "%v", err)
		return
	case pair == nil:
		e.add(StageCertificate, Unknown, "", "%s", where)
		return
	}
	info, unseen := e.hub.tunnel(ctx, e.app.hub.namespace, "-")
	bundle := info.bundle
	if unseen == nil && len(bundle) == 0 {
		if authority, err := pki.Load(ctx, e.hub.kube.CoreV1().Secrets(e.app.hub.namespace)); err == nil {
			bundle = authority.Bundle()
		}
	}
	cert, err := checkAgentPair(pair.Certificate, pair.Key, bundle, e.name, e.Now())
	if err != nil {
		e.broken(StageCertificate, "give the agent another: agent-bootstrap register "+e.name+" with the flags of before, and start it again", "%s: %v", where, err)
		return
	}
	if unseen != nil {
		e.add(StageCertificate, Unknown, "", "%s: for %q, until %s. What the gateway trusts could not be looked at: %v", where, e.name, day(cert.NotAfter), unseen)
		return
	}
	e.ok(StageCertificate, "%s: for %q, until %s", where, e.name, day(cert.NotAfter))
}

// findCertificate reads the agent's certificate. Without one, where says why.
func (e *examination) findCertificate(ctx context.Context, reached bool) (pair *registration.AgentPair, where string, err error) {
	target := e.inside
	switch {
	case e.o.outDir != "":
		pair, err = readAgentDir(e.o.outDir)
		if err == nil && pair == nil {
			err = fmt.Errorf("--out-dir %s has no agent's files", e.o.outDir)
		}
		return pair, filepath.Join(e.o.outDir, fileCert), err
	case target != nil:
	case e.insideErr != nil:
		return nil, "", e.insideErr
	case !reached:
		return nil, "cannot be seen while the cluster is not reached", nil
	default:
		if target, err = throughGateway(e.hub, e.name); err != nil {
			return nil, "", err
		}
	}
	pair, err = readAgentSecret(ctx, target)
	switch {
	case err != nil && target != e.inside:
		return nil, "accepted by the gateway; it could not be looked at more closely", nil
	case err == nil && pair == nil && e.routeUnknown():
		return nil, "no agent runs as Pods in the cluster; whether there is one could not be looked at", nil
	case err == nil && pair == nil:
		return nil, "the agent runs as a process: --out-dir DIR shows its certificate", nil
	}
	return pair, "Secret " + registration.AgentNamespace + "/" + registration.AgentName, err
}

// examineRights asks the cluster what the gateway's credential may do there.
func (e *examination) examineRights(ctx context.Context) {
	target, err := throughGateway(e.hub, e.name)
	if err != nil {
		e.add(StageRBAC, Unknown, "", "%v", err)
		return
	}
	who := target.whoami(ctx)
	name := e.gateway.Annotations[v1alpha1.AnnotationAccess]
	var rights []authorizationv1.ResourceAttributes
	switch name {
	case registration.AccessAdmin:
		rights = []authorizationv1.ResourceAttributes{{Verb: "*", Group: "*", Resource: "*"}}
	case registration.AccessView:
		rights = []authorizationv1.ResourceAttributes{{Verb: "list", Resource: "pods"}}
	case registration.AccessImpersonate:
		rights = []authorizationv1.ResourceAttributes{{Verb: "impersonate", Resource: "users"}}
	default:
		e.examineRules(ctx, target, who, name)
		return
	}
	for _, right := range rights {
		allowed, err := target.may(ctx, right)
		if err != nil {
			e.add(StageRBAC, Unknown, "", "%v", err)
			return
		}
		if !allowed {
			e.broken(StageRBAC, e.rightsAdvice(), "the cluster knows the gateway as %q, which may not %s, and was registered with --access=%s", who, rightText(right), name)
			return
		}
	}
	e.ok(StageRBAC, "%q has --access=%s", who, name)
}

func (e *examination) rightsAdvice() string {
	name := e.gateway.Annotations[v1alpha1.AnnotationAccess]
	if name == "" {
		name = "ROLE"
	}
	return fmt.Sprintf("agent-bootstrap register %s --access %s, with the flags of before, binds it again", e.name, name)
}

// examineRules is for rights that are not known here: any will do, beyond those that everybody has.
func (e *examination) examineRules(ctx context.Context, target *clusterClient, who, access string) {
	review := &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: metav1.NamespaceDefault}}
	answer, err := target.kube.AuthorizationV1().SelfSubjectRulesReviews().Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		e.add(StageRBAC, Unknown, "", "%v", target.explain(err))
		return
	}
	for _, rule := range answer.Status.ResourceRules {
		for _, resource := range rule.Resources {
			if !strings.HasPrefix(resource, "selfsubject") {
				e.ok(StageRBAC, "%q has rights there%s", who, map[bool]string{true: " (ClusterRole " + access + ")"}[access != ""])
				return
			}
		}
	}
	e.broken(StageRBAC, e.rightsAdvice(), "the cluster knows the gateway as %q, which has no right there at all", who)
}
