// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"fmt"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/oam-dev/cluster-gateway/pkg/internal/memory"
)

// minMemoryBudget is the smallest --memory-budget. A few requests at a time fit into it.
const minMemoryBudget = 32 << 20

// MemoryOptions limit the memory of the process.
type MemoryOptions struct {
	// Budget is the memory that clients and clusters can make the gateway hold. 0 means that it
	// follows from the limit of the process.
	Budget resource.QuantityValue
}

// NewMemoryOptions returns the defaults.
func NewMemoryOptions() *MemoryOptions { return &MemoryOptions{} }

// AddFlags adds the flags of the group.
func (o *MemoryOptions) AddFlags(fs *pflag.FlagSet) {
	fs.Var((*quantityFlag)(&o.Budget), "memory-budget",
		"Maximum memory for what clients and clusters make the gateway hold, such as answers that nobody reads. Requests that do not fit are answered with 429 (Too Many Requests). Long-running requests can use three quarters of it. One cluster can use at most half of what is available to it, two clusters a third each, and so on. Default (0): half of the memory limit of the process (GOMEMLIMIT or its cgroup), or 1Gi if there is none.")
}

// quantityFlag is a quantity as the value of a flag. Its error has examples in place of a regular
// expression.
type quantityFlag resource.QuantityValue

func (q *quantityFlag) String() string { return (*resource.QuantityValue)(q).String() }
func (*quantityFlag) Type() string     { return "quantity" }

// Set implements pflag.Value.
func (q *quantityFlag) Set(text string) error {
	if err := (*resource.QuantityValue)(q).Set(text); err != nil {
		return errors.New("must be a quantity, such as 512Mi or 2Gi")
	}
	return nil
}

// Validate returns every fault.
func (o *MemoryOptions) Validate() []error {
	if n := o.Budget.Value(); n != 0 && n < minMemoryBudget {
		return []error{invalid("memory-budget", o.Budget.String(), fmt.Sprintf("must be 0 or at least %s", resource.NewQuantity(minMemoryBudget, resource.BinarySI)))}
	}
	return nil
}

// config returns the budget in bytes.
func (o *MemoryOptions) config() int64 {
	if n := o.Budget.Value(); n > 0 {
		return n
	}
	return memory.DefaultBudget(memory.ProcessLimit())
}
