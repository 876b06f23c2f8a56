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

// WatchWorkload takes the time from before a ConfigMap is written, straight at the cluster, until each of a number of watchers on the
// route has read the event. A round's figure is the median over the watchers.
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
			audience := &audience{writer: site.admin, namespace: namespace, name: fmt.Sprintf("watched-%s-%d", objectName(r.Name), watchers)}
			if err := audience.gather(ctx, r, watchers); err != nil {
				audience.leave()
				return nil, err
			}
			return &Work{Do: audience.round, Close: audience.leave}, nil
		},
	}
}

// audience is a number of watchers of one ConfigMap.
type audience struct {
	writer          *Route
	namespace, name string
	serial          int

	cancel context.CancelFunc
	group  sync.WaitGroup
	// seen has the moment at which a watcher read the current serial, for each.
	seen chan sighting
	size int
}

type sighting struct {
	serial string
	at     time.Time
	err    error
}

func (a *audience) object() string { return configMaps(a.namespace) + "/" + a.name }

// gather creates the ConfigMap, opens the watches, and waits until each has seen it.
func (a *audience) gather(ctx context.Context, r *Route, watchers int) error {
	a.size, a.seen = watchers, make(chan sighting, watchers)
	life, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	if _, _, err := a.writer.Do(ctx, http.MethodPost, configMaps(a.namespace), configMap(a.name, 16, a.mark())); err != nil {
		return err
	}
	path := configMaps(a.namespace) + "?watch=true&timeoutSeconds=3600&fieldSelector=metadata.name%3D" + a.name
	for range watchers {
		a.group.Go(func() { a.watch(life, r, path) })
	}
	_, err := a.collect(ctx)
	return err
}

func (a *audience) mark() string { return fmt.Sprintf("serial-%09d", a.serial) }

// watch reports each serial that it sees, and its end unless it was asked to end.
func (a *audience) watch(ctx context.Context, r *Route, path string) {
	err := a.follow(ctx, r, path)
	// As client-go does: many that begin at once may be told to come again.
	for status := (&StatusError{}); ctx.Err() == nil && errors.As(err, &status) && status.Code == http.StatusTooManyRequests; {
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
		err = a.follow(ctx, r, path)
	}
	if ctx.Err() != nil {
		return
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = errors.New("the watch ended")
	}
	select {
	case a.seen <- sighting{err: err, at: time.Now()}:
	case <-ctx.Done():
	}
}

func (a *audience) follow(ctx context.Context, r *Route, path string) error {
	resp, err := r.open(ctx, http.MethodGet, path, nil, identity)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // the code alone says enough
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
		case a.seen <- sighting{serial: string(line[at : at+len("serial-000000000")]), at: now}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// round writes once and waits for all.
func (a *audience) round(ctx context.Context) Outcome {
	a.serial++
	began := time.Now()
	_, _, err := a.writer.Do(ctx, http.MethodPut, a.object(), configMap(a.name, 16, a.mark()))
	if err != nil {
		return Outcome{Value: math.NaN(), Attempts: a.size, Failures: a.size, Err: err}
	}
	arrivals, err := a.collect(ctx)
	o := Outcome{Value: math.NaN(), Attempts: a.size, Failures: a.size - len(arrivals), Err: err}
	for _, at := range arrivals {
		o.Pool = append(o.Pool, at.Sub(began).Seconds())
	}
	if len(o.Pool) > 0 {
		o.Value = stats.Median(o.Pool)
	}
	return o
}

// collect waits until every watcher has seen the current serial, or one has ended.
func (a *audience) collect(ctx context.Context) ([]time.Time, error) {
	arrivals := make([]time.Time, 0, a.size)
	var failure error
	ended := 0
	for len(arrivals)+ended < a.size {
		select {
		case s := <-a.seen:
			switch {
			case s.err != nil:
				failure = s.err
				ended++
			case s.serial == a.mark():
				arrivals = append(arrivals, s.at)
			}
		case <-ctx.Done():
			return arrivals, fmt.Errorf("%d of %d watchers saw the event: %w", len(arrivals), a.size, ctx.Err())
		}
	}
	a.size -= ended // they are gone for the rounds to come, and were counted
	return arrivals, failure
}

func (a *audience) leave() {
	a.cancel()
	a.group.Wait()
}

// WatchEvents watches until n events have come.
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
