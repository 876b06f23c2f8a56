// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"runtime/metrics"
	"slices"
	"time"
)

// schedulingDelays reads the times that the goroutines of this process wait until they run although
// they could. The Go runtime counts them in buckets. The zero value is ready for use.
type schedulingDelays struct{ counts []uint64 }

// next returns the delay that at least a tenth of the goroutines had since the last call, or 0 if
// there was none or if this is the first call.
func (s *schedulingDelays) next() time.Duration {
	sample := []metrics.Sample{{Name: "/sched/latencies:seconds"}}
	metrics.Read(sample)
	histogram := sample[0].Value.Float64Histogram()
	before := s.counts
	s.counts = slices.Clone(histogram.Counts)
	if before == nil {
		return 0
	}
	var all, longer uint64
	for i, n := range s.counts {
		all += n - before[i]
	}
	for i := len(s.counts) - 1; all > 0 && i > 0; i-- {
		if longer += s.counts[i] - before[i]; longer*10 >= all {
			return time.Duration(histogram.Buckets[i] * float64(time.Second))
		}
	}
	return 0
}
