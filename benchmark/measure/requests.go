// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oam-dev/cluster-gateway/benchmark/report"
	"github.com/oam-dev/cluster-gateway/benchmark/stats"
)

// The names of the workloads.
const (
	Get       = "get"
	Flow      = "configmap-flow"
	List100   = "list-100"
	List10000 = "list-10000"
	Download  = "download"
	Text      = "download-gzip"
	Steady    = "get-steady"
	Upload    = "upload"
	Load      = "load"
	Watch     = "watch"
	ExecRun   = "exec-run"
	ExecEcho  = "exec-echo"
	Forward   = "port-forward"
)

// namespacePath exists in every cluster, and the API server answers it from memory.
const namespacePath = "/api/v1/namespaces/default"

// Sites returns the site that a route leads to.
type Sites func(*Route) *Site

// GetWorkload gets a Namespace once.
func GetWorkload(rounds int) Workload {
	return Workload{
		Name: Get, Title: "GET a Namespace", Unit: report.Seconds, Rounds: rounds, Warmup: 20,
		Prepare: func(_ context.Context, r *Route) (*Work, error) {
			return &Work{Do: func(ctx context.Context) Outcome {
				began := time.Now()
				_, _, err := r.Do(ctx, http.MethodGet, namespacePath, nil)
				return Timed(began, err)
			}}, nil
		},
	}
}

// FlowWorkload is the predecessor's workload: create, update and delete a ConfigMap. Its figure is
// the time of all three.
func FlowWorkload(rounds int, sites Sites) Workload {
	return Workload{
		Name: Flow, Title: "Create, update, delete a ConfigMap", Unit: report.Seconds, Rounds: rounds, Warmup: 5,
		Prepare: func(ctx context.Context, r *Route) (*Work, error) {
			namespace, err := sites(r).Namespace(ctx, "work")
			if err != nil {
				return nil, err
			}
			name := "flow-" + objectName(r.Name)
			return &Work{Do: func(ctx context.Context) Outcome {
				began := time.Now()
				return Timed(began, flow(ctx, r, namespace, name))
			}}, nil
		},
	}
}

func flow(ctx context.Context, r *Route, namespace, name string) error {
	object := configMaps(namespace) + "/" + name
	steps := []struct {
		method, path, state string
	}{
		{http.MethodPost, configMaps(namespace), "created"},
		{http.MethodPut, object, "updated"},
		{http.MethodDelete, object, ""},
	}
	for i, step := range steps {
		var body []byte
		if step.state != "" {
			body = configMap(name, 32, step.state)
		}
		if _, _, err := r.Do(ctx, step.method, step.path, body); err != nil {
			if i > 0 { // so that the next round can create it again
				_, _, _ = r.Do(ctx, http.MethodDelete, object, nil) // an earlier error is returned instead
			}
			return err
		}
	}
	return nil
}

// ListWorkload lists count ConfigMaps of about 100 bytes.
func ListWorkload(name string, count, rounds int, sites Sites) Workload {
	return Workload{
		Name: name, Title: fmt.Sprintf("LIST %d ConfigMaps", count), Unit: report.Seconds, Rounds: rounds, Warmup: 1,
		Prepare: func(ctx context.Context, r *Route) (*Work, error) {
			namespace, err := sites(r).Fill(ctx, name, count, 64)
			if err != nil {
				return nil, err
			}
			return &Work{Do: func(ctx context.Context) Outcome {
				began := time.Now()
				_, _, err := r.Do(ctx, http.MethodGet, configMaps(namespace), nil)
				return Timed(began, err)
			}}, nil
		},
	}
}

// SteadyWorkload sends one GET after another for some time. Its figure is their median. In rounds
// of one GET, everything that the route needs was idle before the request; here nothing was.
func SteadyWorkload(rounds int, window time.Duration) Workload {
	return Workload{
		Name: Steady, Title: "GET a Namespace repeatedly", Unit: report.Seconds, Rounds: rounds, Warmup: 1, Timeout: window + time.Minute,
		Prepare: func(_ context.Context, r *Route) (*Work, error) {
			return &Work{Do: func(ctx context.Context) Outcome {
				var o Outcome
				var took []float64
				for end := time.Now().Add(window); time.Now().Before(end) && ctx.Err() == nil; o.Attempts++ {
					began := time.Now()
					if _, _, err := r.Do(ctx, http.MethodGet, namespacePath, nil); err != nil {
						o.Failures, o.Err = o.Failures+1, err
						continue
					}
					took = append(took, time.Since(began).Seconds())
				}
				o.Value = math.NaN()
				if len(took) > 0 {
					o.Value = stats.Median(took)
				}
				return o
			}}, nil
		},
	}
}

// minListSize is the minimum size of a list of 20 ConfigMaps of a million bytes.
const minListSize = 19 << 20

// TextWorkload lists 20 ConfigMaps of text, 19 MiB together. They are sent compressed, as client-go
// requests it.
func TextWorkload(rounds int, sites Sites) Workload {
	return Workload{
		Name: Text, Title: "LIST 19 MiB of text, with gzip as client-go requests it", Unit: report.Seconds, Rounds: rounds, Warmup: 1, Timeout: time.Minute,
		Prepare: func(ctx context.Context, r *Route) (*Work, error) {
			namespace, err := sites(r).FillText(ctx, "text", 20, 1_000_000)
			if err != nil {
				return nil, err
			}
			return &Work{Do: func(ctx context.Context) Outcome {
				began := time.Now()
				size, err := r.GetCompressed(ctx, configMaps(namespace))
				if err == nil && size < minListSize {
					err = fmt.Errorf("the response has only %d bytes", size)
				}
				return Timed(began, err)
			}}, nil
		},
	}
}

// DownloadWorkload lists 20 ConfigMaps, 19 MiB together, whose data cannot be compressed.
func DownloadWorkload(rounds int, sites Sites) Workload {
	return Workload{
		Name: Download, Title: "LIST 19 MiB of data that cannot be compressed", Unit: report.Seconds, Rounds: rounds, Warmup: 1, Timeout: time.Minute,
		Prepare: func(ctx context.Context, r *Route) (*Work, error) {
			namespace, err := sites(r).Fill(ctx, "bulk", 20, 1_000_000)
			if err != nil {
				return nil, err
			}
			return &Work{Do: func(ctx context.Context) Outcome {
				began := time.Now()
				_, size, err := r.Do(ctx, http.MethodGet, configMaps(namespace), nil)
				if err == nil && size < minListSize {
					err = fmt.Errorf("the response has only %d bytes", size)
				}
				return Timed(began, err)
			}}, nil
		},
	}
}

// UploadWorkload replaces a ConfigMap with another of almost 1 MiB, which is the maximum size.
func UploadWorkload(rounds int, sites Sites) Workload {
	return Workload{
		Name: Upload, Title: "PUT 1 MB", Unit: report.Seconds, Rounds: rounds, Warmup: 1,
		Prepare: func(ctx context.Context, r *Route) (*Work, error) {
			namespace, err := sites(r).Namespace(ctx, "work")
			if err != nil {
				return nil, err
			}
			name := "upload-" + objectName(r.Name)
			bodies := [][]byte{configMap(name, 1_000_000, "a"), configMap(name, 1_000_000, "b")}
			if _, _, err := r.Do(ctx, http.MethodPost, configMaps(namespace), bodies[0]); err != nil {
				return nil, err
			}
			turn := 0
			return &Work{
				Do: func(ctx context.Context) Outcome {
					turn++
					began := time.Now()
					_, _, err := r.Do(ctx, http.MethodPut, configMaps(namespace)+"/"+name, bodies[turn%2])
					return Timed(began, err)
				},
			}, nil
		},
	}
}

// LoadWorkload sends GETs from several workers in parallel for some time. Its figure is the rate.
func LoadWorkload(workers, rounds int, window time.Duration) Workload {
	return Workload{
		Name: Load, Title: "GET a Namespace, from several workers", X: float64(workers), XLabel: "workers",
		Unit: report.PerSecond, Rounds: rounds, Warmup: 1, Timeout: window + time.Minute,
		Prepare: func(_ context.Context, r *Route) (*Work, error) {
			return &Work{Do: func(ctx context.Context) Outcome {
				return LoadOf(ctx, func() *Route { return r }, workers, window)
			}}, nil
		},
	}
}

// LoadOf has several workers GET a Namespace, each time by the route that pick returns. The value
// is the number of successful requests per second, until the last worker has its last response.
// pick is called concurrently.
func LoadOf(ctx context.Context, pick func() *Route, workers int, window time.Duration) Outcome {
	var succeeded, failed atomic.Int64
	var failure atomic.Pointer[error]
	began := time.Now()
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for time.Since(began) < window && ctx.Err() == nil {
				if _, _, err := pick().Do(ctx, http.MethodGet, namespacePath, nil); err != nil {
					failed.Add(1)
					failure.CompareAndSwap(nil, &err)
					continue
				}
				succeeded.Add(1)
			}
		})
	}
	group.Wait()
	o := Outcome{
		Value:    float64(succeeded.Load()) / time.Since(began).Seconds(),
		Attempts: int(succeeded.Load() + failed.Load()), Failures: int(failed.Load()),
	}
	if err := failure.Load(); err != nil {
		o.Err = *err
	}
	if succeeded.Load() == 0 {
		o.Value = math.NaN()
	}
	return o
}

// Requests sends a number of GETs from several workers. It is for what they leave behind, not for
// their time.
func Requests(ctx context.Context, r *Route, count, workers int) Outcome {
	var next, failed atomic.Int64
	var failure atomic.Pointer[error]
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for next.Add(1) <= int64(count) && ctx.Err() == nil {
				if _, _, err := r.Do(ctx, http.MethodGet, namespacePath, nil); err != nil {
					failed.Add(1)
					failure.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	group.Wait()
	o := Outcome{Attempts: count, Failures: int(failed.Load())}
	if err := failure.Load(); err != nil {
		o.Err = *err
	}
	return o
}
