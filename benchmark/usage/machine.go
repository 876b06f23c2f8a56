// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

// Machine contains the CPU time that the whole machine has used so far, and the part of it that was
// ours.
type Machine struct {
	total, busy, stolen, ours float64
}

// Snapshot reads the current values. pids are our processes besides this one. Their finished
// children are included.
func Snapshot(pids []int) (Machine, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return Machine{}, err
	}
	line, _, _ := bytes.Cut(data, []byte("\n"))
	var m Machine
	for i, field := range strings.Fields(string(line))[1:9] { // user nice system idle iowait irq softirq steal
		v, err := strconv.ParseFloat(field, 64)
		if err != nil {
			return Machine{}, err
		}
		v /= ticks
		m.total += v
		switch i {
		case 3, 4:
		case 7:
			m.stolen += v
		default:
			m.busy += v
		}
	}
	// This process' account contains the finished children that it waited for. A running child has its
	// own account.
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var usage syscall.Rusage
		if err := syscall.Getrusage(who, &usage); err != nil {
			return Machine{}, err
		}
		m.ours += seconds(usage.Utime) + seconds(usage.Stime)
	}
	for _, pid := range pids {
		if v, err := cpuSeconds(filepath.Join("/proc", strconv.Itoa(pid)), true); err == nil {
			m.ours += v
		}
	}
	return m, nil
}

func seconds(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }

// Since returns the share of the machine's CPU time that was used since an earlier snapshot, and
// the share that others used, including stolen time.
func (m Machine) Since(earlier Machine) (busy, foreign float64) {
	total := m.total - earlier.total
	if total <= 0 {
		return 0, -1
	}
	used := m.busy - earlier.busy + m.stolen - earlier.stolen
	return used / total, max(0, used-(m.ours-earlier.ours)) / total
}

// Describe returns the processor, the memory and the kernel of the machine.
func Describe() (processor string, memory uint64, kernel string) {
	processor = runtime.GOARCH
	if data, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(data)) {
			if name, ok := strings.CutPrefix(line, "model name"); ok {
				processor = strings.Trim(name, " \t:\n")
				break
			}
		}
	}
	if data, err := os.ReadFile("/proc/meminfo"); err == nil {
		if fields := strings.Fields(string(data)); len(fields) > 1 {
			kib, _ := strconv.ParseUint(fields[1], 10, 64) // zero means unknown
			memory = kib << 10
		}
	}
	kernel = runtime.GOOS
	if data, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		kernel += " " + strings.TrimSpace(string(data))
	}
	return processor, memory, kernel
}
