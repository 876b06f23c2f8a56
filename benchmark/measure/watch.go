// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"sync"
	"time"

	"github.com/oam-dev/cluster-gateway/benchmark/report"
	"github.com/oam-dev/cluster-gateway/benchmark/stats"
)

// WatchWorkload measures the time from just before a ConfigMap is written, directly on the cluster,
// until each watcher on the route has read the event. The figure of a round is the median over the
// watchers.
func WatchWorkload(watchers, rounds int, sites Sites) Workload {
	return Workload{
		Name: Watch, Title: "From a write to the watch event", X: float64(watchers), XLabel: "watchers",
		Unit: report.Seconds, Rounds: rounds, Warmup: 2, Timeout: time.Minute,
		Prepare: func(ctx context.Context, r *Route) (*Work, error) {
			site := sites(r)
			namespace, err := site.Namespace(ctx, "watched")
			if err != nil {
				return nil, err
			}
			group := &watchGroup{writer: site.admin, namespace: namespace, name: fmt.Sprintf("watched-%s-%d", objectName(r.Name), watchers)}
			if err := group.start(ctx, r, watchers); err != nil {
				group.stop()
				return nil, err
			}
			return &Work{Do: group.round, Close: group.stop}, nil
		},
	}
}

// watchGroup is a number of watchers of one ConfigMap.
type watchGroup struct {
	writer          *Route
	namespace, name string
	serial          int

	cancel context.CancelFunc
	group  sync.WaitGroup
	// seen contains, for each watcher, when it read the current serial.
	seen chan sighting
	size int
}

type sighting struct {
	serial string
	at     time.Time
	err    error
}

func (g *watchGroup) object() string { return configMaps(g.namespace) + "/" + g.name }

// start creates the ConfigMap, opens the watches, and waits until each has received it.
func (g *watchGroup) start(ctx context.Context, r *Route, watchers int) error {
	g.size, g.seen = watchers, make(chan sighting, watchers)
	watchCtx, cancel := context.WithCancel(context.Background())
	g.cancel = cancel
	if _, _, err := g.writer.Do(ctx, http.MethodPost, configMaps(g.namespace), configMap(g.name, 16, g.serialText())); err != nil {
		return err
	}
	path := configMaps(g.namespace) + "?watch=true&timeoutSeconds=3600&fieldSelector=metadata.name%3D" + g.name
	for range watchers {
		g.group.Go(func() { g.watch(watchCtx, r, path) })
	}
	_, err := g.collect(ctx)
	return err
}

func (g *watchGroup) serialText() string { return fmt.Sprintf("serial-%09d", g.serial) }

// watch reports each serial that it reads. It also reports its end, unless it was stopped on
// purpose.
func (g *watchGroup) watch(ctx context.Context, r *Route, path string) {
	err := g.follow(ctx, r, path)
	// As client-go does: the server may ask clients to retry if many start at the same time.
	for status := (&StatusError{}); ctx.Err() == nil && errors.As(err, &status) && status.Code == http.StatusTooManyRequests; {
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
		err = g.follow(ctx, r, path)
	}
	if ctx.Err() != nil {
		return
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = errors.New("the watch ended")
	}
	select {
	case g.seen <- sighting{err: err, at: time.Now()}:
	case <-ctx.Done():
	}
}

func (g *watchGroup) follow(ctx context.Context, r *Route, path string) error {
	resp, err := r.open(ctx, http.MethodGet, path, nil, identity)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // the code is enough
		return &StatusError{resp.StatusCode, string(body)}
	}
	lines := bufio.NewReader(resp.Body)
	for {
		line, err := lines.ReadBytes('\n')
		now := time.Now()
		if err != nil {
			return err
		}
		at := bytes.Index(line, []byte("serial-"))
		if at < 0 || len(line) < at+len("serial-000000000") {
			continue
		}
		select {
		case g.seen <- sighting{serial: string(line[at : at+len("serial-000000000")]), at: now}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// round writes once and waits for all watchers.
func (g *watchGroup) round(ctx context.Context) Outcome {
	g.serial++
	began := time.Now()
	_, _, err := g.writer.Do(ctx, http.MethodPut, g.object(), configMap(g.name, 16, g.serialText()))
	if err != nil {
		return Outcome{Value: math.NaN(), Attempts: g.size, Failures: g.size, Err: err}
	}
	arrivals, err := g.collect(ctx)
	o := Outcome{Value: math.NaN(), Attempts: g.size, Failures: g.size - len(arrivals), Err: err}
	for _, at := range arrivals {
		o.Pool = append(o.Pool, at.Sub(began).Seconds())
	}
	if len(o.Pool) > 0 {
		o.Value = stats.Median(o.Pool)
	}
	return o
}

// collect waits until every watcher has seen the current serial, or one has ended.
func (g *watchGroup) collect(ctx context.Context) ([]time.Time, error) {
	arrivals := make([]time.Time, 0, g.size)
	var failure error
	ended := 0
	for len(arrivals)+ended < g.size {
		select {
		case s := <-g.seen:
			switch {
			case s.err != nil:
				failure = s.err
				ended++
			case s.serial == g.serialText():
				arrivals = append(arrivals, s.at)
			}
		case <-ctx.Done():
			return arrivals, fmt.Errorf("%d of %d watchers received the event: %w", len(arrivals), g.size, ctx.Err())
		}
	}
	g.size -= ended // they do not exist in later rounds, and were counted
	return arrivals, failure
}

func (g *watchGroup) stop() {
	g.cancel()
	g.group.Wait()
}

// WatchEvents watches until n events have been received.
func (r *Route) WatchEvents(ctx context.Context, path string, n int) error {
	resp, err := r.open(ctx, http.MethodGet, path, nil, identity)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return &StatusError{Code: resp.StatusCode}
	}
	lines := bufio.NewReader(resp.Body)
	for seen := range n {
		if _, err := lines.ReadSlice('\n'); errors.Is(err, bufio.ErrBufferFull) {
			if _, err = lines.ReadBytes('\n'); err != nil {
				return err
			}
		} else if err != nil {
			return fmt.Errorf("after %d of %d events: %w", seen, n, err)
		}
	}
	return nil
}
