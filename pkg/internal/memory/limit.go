// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"io/fs"
	"math"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
)

// ProcessLimit returns how much memory the process can use: the lower one of GOMEMLIMIT and the
// limit of its cgroup (v2). 0 means that there is no limit.
func ProcessLimit() int64 {
	limit := CgroupLimit(os.DirFS("/"))
	if soft := debug.SetMemoryLimit(-1); soft != math.MaxInt64 && (limit == 0 || soft < limit) {
		limit = soft
	}
	return limit
}

// CgroupLimit returns the memory limit of the process's cgroup (v2) and of those above it. root is
// the root of the file system. 0 means that there is no limit.
func CgroupLimit(root fs.FS) int64 {
	const mount = "sys/fs/cgroup"
	limit := int64(0)
	for dir := path.Join(mount, cgroup(root)); ; dir = path.Dir(dir) {
		content, err := fs.ReadFile(root, path.Join(dir, "memory.max"))
		if err == nil {
			n, err := strconv.ParseInt(strings.TrimSpace(string(content)), 10, 64) // or "max"
			if err == nil && n > 0 && (limit == 0 || n < limit) {
				limit = n
			}
		}
		if dir == mount {
			return limit
		}
	}
}

// cgroup returns the path of the process's cgroup below the mount point. A container usually sees
// its own as the root.
func cgroup(root fs.FS) string {
	content, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(content)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return path.Clean("/" + name) // never above the mount point
		}
	}
	return ""
}

// DefaultBudget returns the size of a budget for a process with a memory limit: half of it. The
// rest is for the gateway's own data and for garbage that has not been collected yet. Without a
// limit (0), it is 1 GiB.
func DefaultBudget(limit int64) int64 {
	if limit <= 0 {
		return 1 << 30
	}
	return limit / 2
}

// CollectBefore makes the garbage collector keep the process below 90 % of limit, unless GOMEMLIMIT
// is set. By default, it lets the heap grow to twice what is in use, whatever the cgroup's limit
// is.
func CollectBefore(limit int64) {
	if limit > 0 && debug.SetMemoryLimit(-1) == math.MaxInt64 {
		debug.SetMemoryLimit(limit / 10 * 9)
	}
}
