// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// Dialer returns a Dialer of one cluster. address, as host:port, is the cluster's registered API
// server, and the only one that it ever dials. It prefers streams for purpose. All Dialers of a
// cluster share one dialer.Budget.
//
// The connections end when Serve does.
func (s *Server) Dialer(cluster, address string, purpose dialer.Purpose) dialer.Dialer {
	return s.budgets.Dialer(cluster, func(ctx context.Context, _, requested string, budget *dialer.Budget) (net.Conn, error) {
		if requested != address {
			return nil, &dialer.Error{Cluster: cluster, Stage: dialer.StageTunnel, Address: requested, Err: dialer.ErrAddressNotAllowed}
		}
		d := &dial{
			server: s, cluster: cluster, address: address, purpose: purpose, budget: budget,
			waitUntil: time.Now().Add(s.cfg.ownStreamTimeout), tried: map[*session]bool{}, answered: map[*agentState]bool{},
		}
		return d.run(ctx)
	})
}

func (s *Server) noAgent(cluster string, lastSeen time.Time) error {
	err := &dialer.NoAgentError{LastSeen: lastSeen, Since: lastSeen}
	if lastSeen.IsZero() {
		err.Since = s.started
	}
	if s.cfg.ReplicaAway != nil {
		if err.ReplicaAway = s.cfg.ReplicaAway(cluster); err.ReplicaAway > 0 {
			err.Since = time.Now().Add(-err.ReplicaAway)
		}
	}
	return err
}

// dial is one call of a Dialer. It asks one agent after the other until one of them has connected.
// It asks each stream once, and no further stream of an agent that has answered that it cannot
// reach the address. An agent that turns out to be draining is asked again if no other agent
// connects.
type dial struct {
	server           *Server
	cluster, address string
	purpose          dialer.Purpose
	budget           *dialer.Budget
	// waitUntil is when the dial stops to wait for a stream of its own.
	waitUntil time.Time

	tried    map[*session]bool
	answered map[*agentState]bool // agents that have answered that they cannot reach the address
	draining []*session           // streams to ask again
	failures []error
}

func (d *dial) run(ctx context.Context) (net.Conn, error) {
	for {
		ch := d.choose(ctx)
		if ch.se == nil {
			if len(d.failures) == 0 {
				return nil, &dialer.Error{Cluster: d.cluster, Stage: dialer.StageTunnel, Address: d.address, Err: d.server.noAgent(d.cluster, ch.lastSeen)}
			}
			return nil, latestStage(d.failures)
		}
		conn, err := d.try(ctx, ch)
		ch.se.release()
		if conn != nil {
			if d.purpose == dialer.ForUpgrades {
				d.server.reportUpgrade(d.cluster, ch.se.isAlone())
			}
			dialer.SetCarrier(ctx, conn.judge, ch.otherAgents)
			dialer.SetHeard(ctx, ch.se.heard.Load)
			return conn, nil
		}
		if err == nil {
			continue
		}
		d.failures = append(d.failures, err)
		if ctx.Err() != nil {
			return nil, latestStage(d.failures)
		}
	}
}

// try asks one agent. It returns neither a connection nor an error if the agent is to be asked
// again only if there is no other one.
func (d *dial) try(ctx context.Context, ch choice) (*tunnelConn, error) {
	se := ch.se
	d.tried[se] = true
	dialer.SetAgent(ctx, se.agent.name())
	wasDraining := se.isDraining()
	attempt, cancel := ctx, context.CancelFunc(func() {})
	if ch.others > 0 {
		attempt, cancel = context.WithTimeout(ctx, d.server.cfg.attemptTimeout)
	}
	conn, err := se.dial(attempt, d.address, d.budget)
	cancel()
	if err != nil {
		if d.answered[se.agent] = atEndpoint(err); d.answered[se.agent] {
			se.agent.failed(err, 1)
		}
		return nil, err
	}
	if !wasDraining && se.isDraining() && ch.notDraining > 0 {
		_ = conn.Close() // it has not been used
		d.draining = append(d.draining, se)
		return nil, nil
	}
	return conn, nil
}

// atEndpoint reports whether an agent has answered that it cannot reach the API server.
func atEndpoint(err error) bool {
	var de *dialer.Error
	return errors.As(err, &de) && de.Stage == dialer.StageEndpoint
}

// latestStage returns the failure at the latest stage. If one agent cannot reach the API server and
// another one does not answer, the former helps the user more.
func latestStage(failures []error) error {
	for _, err := range failures {
		if atEndpoint(err) {
			return err
		}
	}
	return failures[len(failures)-1]
}
