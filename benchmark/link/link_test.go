// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"crypto/rand"
	"io"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo starts a server that sends back what it receives.
func echo(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	return listener.Addr().String()
}

func connect(t *testing.T) (*Link, net.Conn) {
	t.Helper()
	l, err := New(echo(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	conn, err := net.Dial("tcp", l.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return l, conn
}

// trip sends data there and back, and returns how long it took.
func trip(t *testing.T, conn net.Conn, data []byte) time.Duration {
	t.Helper()
	began := time.Now()
	go func() { _, _ = conn.Write(data) }()
	back := make([]byte, len(data))
	if _, err := io.ReadFull(conn, back); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(back, data) {
		t.Fatal("the received data differs from the sent data")
	}
	return time.Since(began)
}

func TestRoundTripTime(t *testing.T) {
	l, conn := connect(t)
	trip(t, conn, []byte("warm"))
	l.Set(80*time.Millisecond, 0)
	if took := trip(t, conn, []byte("ping")); took < 80*time.Millisecond {
		t.Errorf("a round trip of 80 ms took %s", took)
	}
	// A larger amount of data waits for the delay once, not once for each chunk.
	bulk := make([]byte, 4<<20)
	_, _ = rand.Read(bulk)
	each := time.Duration(len(bulk)/chunk) * 40 * time.Millisecond
	if took := trip(t, conn, bulk); took < 80*time.Millisecond || took > each {
		t.Errorf("4 MiB over a round trip of 80 ms took %s", took)
	}
}

func TestBandwidth(t *testing.T) {
	l, conn := connect(t)
	trip(t, conn, []byte("warm"))
	const bandwidth = 4 << 20
	l.Set(0, bandwidth)
	data := make([]byte, 1<<20)
	_, _ = rand.Read(data)
	// Data flows in both directions at the same time, except for one chunk.
	if took := trip(t, conn, data); took < 240*time.Millisecond {
		t.Errorf("1 MiB at 4 MiB/s took %s", took)
	}
}

func TestEndIsPassedOn(t *testing.T) {
	_, conn := connect(t)
	if _, err := conn.Write([]byte("last words")); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != "last words" {
		t.Errorf("%q, %v", got, err)
	}
}
