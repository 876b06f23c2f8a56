// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"strconv"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

// fill takes n bytes as often as possible, and returns how often that was.
func fill(p *Part, owner string, n int64) (times int64) {
	for p.Take(owner, n) {
		times++
	}
	return times
}

func TestOneOwnerLeavesHalf(t *testing.T) {
	t.Parallel()
	p := NewBudget(1000).Part(Requests)
	if got := fill(p, "a", 1); got != 500 {
		t.Errorf("the first owner has %d, want 500", got)
	}
	if got := fill(p, "b", 1); got != 250 {
		t.Errorf("the second one has %d, want 250", got)
	}
	p.Give("a", 500)
	if got := fill(p, "b", 1); got != 250 {
		t.Errorf("after the first has given all back, the second one gets %d more, want 250", got)
	}
}

// TestGreedyOwnersLeaveSome checks that there is always something left for another owner.
func TestGreedyOwnersLeaveSome(t *testing.T) {
	t.Parallel()
	p := NewBudget(1000).Part(Streams)
	for i := range 20 {
		if fill(p, strconv.Itoa(i), 1) == 0 && i < 9 {
			t.Errorf("nothing was left for owner %d", i)
		}
	}
	if used := p.used; used > p.limit {
		t.Errorf("%d of %d are used", used, p.limit)
	}
}

// TestOtherUsesLeaveAQuarterToRequests checks that ordinary requests find memory, whatever else
// there is.
func TestOtherUsesLeaveAQuarterToRequests(t *testing.T) {
	t.Parallel()
	b := NewBudget(1 << 20)
	for use := range uses() {
		if use == Requests {
			continue
		}
		for i := range 100 {
			fill(b.Part(use), strconv.Itoa(i), 16)
		}
	}
	if free := b.total - b.used; free < 1<<18 {
		t.Errorf("%d of %d are left for requests, want a quarter", free, b.total)
	}
	if got := fill(b.Part(Requests), "a", 1); got < 1<<17 {
		t.Errorf("a cluster has %d for its requests, want at least half of a quarter", got)
	}
}

func TestNoBudgetIsNoLimit(t *testing.T) {
	t.Parallel()
	var b *Budget
	if !b.Part(Requests).Take("a", 1<<62) {
		t.Error("a nil Budget refused")
	}
	b.Part(Requests).Give("a", 1<<62)
}

func TestEverythingIsGivenBack(t *testing.T) {
	t.Parallel()
	b := NewBudget(1 << 20)
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			for range 1000 {
				for use := range uses() {
					if p := b.Part(use); p.Take(strconv.Itoa(i%3), 64) {
						p.Give(strconv.Itoa(i%3), 64)
					}
				}
			}
		})
	}
	group.Wait()
	if b.used != 0 || b.others != 0 {
		t.Errorf("%d and %d bytes are still used", b.used, b.others)
	}
	for use, p := range b.parts {
		if p.used != 0 || len(p.owners) != 0 {
			t.Errorf("%s: %d bytes of %v are still used", use, p.used, p.owners)
		}
	}
	b.Part(Streams).Take("a", 100)
	b.Part(Streams).Take("a", 1<<30)
	registry := prometheus.NewRegistry()
	registry.MustRegister(b)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, metric := range f.GetMetric() {
			name := f.GetName()
			for _, l := range metric.GetLabel() {
				name += " " + l.GetValue()
			}
			got[name] = metric.GetGauge().GetValue() + metric.GetCounter().GetValue()
		}
	}
	for name, want := range map[string]float64{
		"cluster_gateway_memory_budget_bytes": 1 << 20, "cluster_gateway_memory_used_bytes streams": 100,
		"cluster_gateway_memory_used_bytes requests": 0, "cluster_gateway_memory_refusals_total streams": 1,
	} {
		if value, ok := got[name]; !ok || value != want {
			t.Errorf("%s is %v, want %v", name, value, want)
		}
	}
}

func TestCgroupLimit(t *testing.T) {
	t.Parallel()
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	for name, test := range map[string]struct {
		files fstest.MapFS
		want  int64
	}{
		"nothing":                 {fstest.MapFS{}, 0},
		"the root of a container": {fstest.MapFS{"proc/self/cgroup": file("0::/\n"), "sys/fs/cgroup/memory.max": file("1048576\n")}, 1 << 20},
		"no limit":                {fstest.MapFS{"proc/self/cgroup": file("0::/\n"), "sys/fs/cgroup/memory.max": file("max\n")}, 0},
		"the lowest of all above": {fstest.MapFS{
			"proc/self/cgroup": file("0::/kubepods/pod1/c1\n"), "sys/fs/cgroup/kubepods/memory.max": file("3000"),
			"sys/fs/cgroup/kubepods/pod1/memory.max": file("1000"), "sys/fs/cgroup/kubepods/pod1/c1/memory.max": file("2000"),
		}, 1000},
		"a path that leads away": {fstest.MapFS{"proc/self/cgroup": file("0::/../../x\n"), "sys/fs/cgroup/x/memory.max": file("5")}, 5},
		"no cgroup v2":           {fstest.MapFS{"proc/self/cgroup": file("4:memory:/x\n")}, 0},
	} {
		if got := CgroupLimit(test.files); got != test.want {
			t.Errorf("%s: got %d, want %d", name, got, test.want)
		}
	}
}

func TestDefaultBudget(t *testing.T) {
	t.Parallel()
	got := []int64{DefaultBudget(0), DefaultBudget(2 << 30)}
	if d := cmp.Diff([]int64{1 << 30, 1 << 30}, got); d != "" {
		t.Error(d)
	}
}
