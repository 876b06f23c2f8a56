// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"slices"
	"sync"

	"k8s.io/apiserver/pkg/server/dynamiccertificates"
)

// listeners are those who are told of a change. The zero value has none.
type listeners struct {
	mu  sync.Mutex
	all []dynamiccertificates.Listener
}

func (l *listeners) add(one dynamiccertificates.Listener) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, one)
}

func (l *listeners) tell() {
	l.mu.Lock()
	all := slices.Clone(l.all)
	l.mu.Unlock()
	for _, one := range all {
		one.Enqueue()
	}
}
