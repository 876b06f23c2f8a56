// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/dialer/dialertest"
)

// BenchmarkRoundTrips bounces a small message off an endpoint, through the embedded tunnel with the
// real agent, and straight over TCP in the same run: "x-tcp" is how many times longer the tunnel
// takes.
func BenchmarkRoundTrips(b *testing.B) {
	message := make([]byte, 256)
	measure := func(b *testing.B, c net.Conn) time.Duration {
		buf := make([]byte, len(message))
		begin := time.Now()
		for range b.N {
			if _, err := c.Write(message); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Fatal(err)
			}
		}
		return time.Since(begin)
	}
	endpoint := echoEndpoint(b)
	tcp, tunneled := bothWays(b, endpoint)
	b.ReportAllocs()
	b.ResetTimer()
	through := measure(b, tunneled)
	b.StopTimer()
	straight := measure(b, tcp)
	b.ReportMetric(float64(b.N)/through.Seconds(), "roundtrips/s")
	b.ReportMetric(through.Seconds()/straight.Seconds(), "x-tcp")
}

// BenchmarkUpload and BenchmarkDownload move bytes one way: "x-tcp" is how many times longer the
// tunnel takes than TCP.
func BenchmarkUpload(b *testing.B) {
	benchmarkBytes(b, func(near, far net.Conn) (io.Writer, io.Reader) { return near, far })
}

// BenchmarkDownload is BenchmarkUpload the other way.
func BenchmarkDownload(b *testing.B) {
	benchmarkBytes(b, func(near, far net.Conn) (io.Writer, io.Reader) { return far, near })
}

func benchmarkBytes(b *testing.B, ends func(near, far net.Conn) (io.Writer, io.Reader)) {
	const piece = 1 << 20
	lis := dialertest.Listen(b)
	measure := func(dial func() net.Conn) time.Duration {
		near := dial()
		far, err := lis.Accept()
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = near.Close(); _ = far.Close() }()
		w, r := ends(near, far)
		p := make([]byte, piece)
		begin := time.Now()
		go func() {
			for range b.N {
				if _, err := w.Write(p); err != nil {
					b.Errorf("write: %v", err)
					return
				}
			}
		}()
		if _, err := io.CopyN(io.Discard, r, int64(b.N)*piece); err != nil {
			b.Fatal(err)
		}
		return time.Since(begin)
	}
	g := startGateway(b, func(c *Config) { c.ReceiveBuffer = 1 << 30 }) // the reader is never far behind; see the allocations
	g.startStockAgent(b, "east", "a")
	b.SetBytes(piece)
	b.ReportAllocs()
	b.ResetTimer()
	through := measure(func() net.Conn { return mustDialAddress(b, g, lis.Addr().String(), dialer.ForRequests) })
	b.StopTimer()
	straight := measure(func() net.Conn { return mustTCP(b, lis.Addr().String()) })
	b.ReportMetric(through.Seconds()/straight.Seconds(), "x-tcp")
}

func bothWays(b *testing.B, endpoint string) (tcp, tunneled net.Conn) {
	b.Helper()
	g := startGateway(b, nil)
	g.startStockAgent(b, "east", "a")
	tunneled = mustDialAddress(b, g, endpoint, dialer.ForRequests)
	return mustTCP(b, endpoint), tunneled
}

func mustTCP(b *testing.B, address string) net.Conn {
	b.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close() })
	return c
}
