// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
)

// checkReachable refuses an address of the kubeconfig that only this machine can reach. A flag that
// names the same address is not refused: the gateway may run on this machine.
func (p *Plan) checkReachable(server ServerInfo) error {
	endpoint := p.Spec.Endpoint == "" && p.Secret.Endpoint == server.URL && onlyLocal(server.URL)
	switch {
	case p.Spec.Form == FormProcess && endpoint:
		p.Notes = append(p.Notes, fmt.Sprintf("the agent has to run on this machine, because the API server's address is %s (--endpoint sets another one)", server.URL))
	case p.Spec.Form != FormDirect:
	case p.Spec.ProxyURL == nil && onlyLocal(server.ProxyURL):
		return errors.New("the kubeconfig has a proxy-url that only this machine can reach, and nothing was changed. " +
			"Set --proxy-url to the proxy that the gateway is to use, or --proxy-url '' if it needs none")
	case p.Secret.ProxyURL == "" && endpoint:
		return fmt.Errorf("the kubeconfig's server is %s, which only this machine can reach, and nothing was changed. "+
			"Set --endpoint to a URL by which the gateway can reach the API server, or use --route=tunnel. If the gateway runs on this machine: --endpoint %s",
			server.URL, server.URL)
	}
	return nil
}

// onlyLocal is whether a URL names this machine or its link: other machines cannot use it, or reach
// something else by it.
func onlyLocal(raw string) bool {
	u, err := url.Parse(raw)
	if err != nil || raw == "" {
		return false
	}
	host := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	address, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	address = address.Unmap()
	return address.IsLoopback() || address.IsUnspecified() || address.IsLinkLocalUnicast()
}
