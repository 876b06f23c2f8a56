// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strings"
	"time"

	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/oam-dev/cluster-gateway/benchmark/report"
)

// Pod is the Pod for exec and port-forward. It must contain cat and true, and an echo server on
// port 7.
type Pod struct {
	Namespace, Name string
}

func (p Pod) url(r *Route, subresource, query string) (*url.URL, error) {
	return url.Parse(strings.TrimSuffix(r.Config.Host, "/") + "/api/v1/namespaces/" + p.Namespace + "/pods/" + p.Name + "/" + subresource + "?" + query)
}

func (p Pod) exec(r *Route, query string, command ...string) (remotecommand.Executor, error) {
	u, err := p.url(r, "exec", url.Values{"command": command}.Encode()+"&"+query)
	if err != nil {
		return nil, err
	}
	return remotecommand.NewWebSocketExecutor(r.Config, http.MethodGet, u.String())
}

// ExecRunWorkload runs a program that does nothing. It measures the time from before the connection
// is opened until the exit code is known.
func ExecRunWorkload(rounds int, pod Pod) Workload {
	return Workload{
		Name: ExecRun, Title: "exec true: connect, run, exit", Unit: report.Seconds, Rounds: rounds, Warmup: 2,
		Prepare: func(_ context.Context, r *Route) (*Work, error) {
			return &Work{Do: func(ctx context.Context) Outcome {
				began := time.Now()
				executor, err := pod.exec(r, "stdout=true&stderr=true", "true")
				if err == nil {
					err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: io.Discard, Stderr: io.Discard})
				}
				return Timed(began, err)
			}}, nil
		},
	}
}

// ExecEchoWorkload sends a line to an open exec and waits for the echo, which is what a user feels
// when typing.
func ExecEchoWorkload(rounds int, pod Pod) Workload {
	return Workload{
		Name: ExecEcho, Title: "exec cat: one line there and back", Unit: report.Seconds, Rounds: rounds, Warmup: 5,
		Prepare: func(_ context.Context, r *Route) (*Work, error) {
			executor, err := pod.exec(r, "stdin=true&stdout=true", "cat")
			if err != nil {
				return nil, err
			}
			return echoSession(executor), nil
		},
	}
}

func echoSession(executor remotecommand.Executor) *Work {
	stdin, typed := io.Pipe()
	shown, stdout := io.Pipe()
	streamCtx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err := executor.StreamWithContext(streamCtx, remotecommand.StreamOptions{Stdin: stdin, Stdout: stdout})
		if err == nil {
			err = errors.New("the session has ended")
		}
		_ = stdout.CloseWithError(err) // pipes close without errors
		_ = stdin.CloseWithError(err)
	}()
	line := []byte("a typed line\n")
	back := make([]byte, len(line))
	return &Work{
		Do: func(ctx context.Context) Outcome {
			stop := context.AfterFunc(ctx, cancel) // makes an exec that does not respond end here
			defer stop()
			began := time.Now()
			_, err := typed.Write(line)
			if err == nil {
				_, err = io.ReadFull(shown, back)
			}
			return Timed(began, err)
		},
		Close: func() {
			_ = typed.Close()
			cancel()
			_ = shown.Close()
			<-ended
		},
	}
}

// forwarded is how many bytes are sent through a forwarded port in one round, in each direction.
const forwarded = 16 << 20

// ForwardWorkload sends 16 MiB through a forwarded port to an echo server. Its figure is the number
// of sent bytes divided by the time until the last byte has come back, so data flows in both
// directions at the same time. The connection is opened before.
func ForwardWorkload(rounds int, pod Pod) Workload {
	content := make([]byte, forwarded)
	_, _ = rand.Read(content) // never fails
	return Workload{
		Name: Forward, Title: "port-forward, 16 MiB there and back", Unit: report.BytesPerSecond, Rounds: rounds, Warmup: 1, Timeout: 20 * time.Second,
		Prepare: func(_ context.Context, r *Route) (*Work, error) {
			u, err := pod.url(r, "portforward", "ports=7")
			if err != nil {
				return nil, err
			}
			return &Work{Do: func(ctx context.Context) Outcome {
				took, err := forward(ctx, r, u, content)
				if err != nil {
					return Outcome{Value: math.NaN(), Attempts: 1, Failures: 1, Err: err}
				}
				return Outcome{Value: forwarded / took.Seconds(), Attempts: 1}
			}}, nil
		},
	}
}

func forward(ctx context.Context, r *Route, u *url.URL, content []byte) (time.Duration, error) {
	dialer, err := portforward.NewSPDYOverWebsocketDialer(u, r.Config)
	if err != nil {
		return 0, err
	}
	conn, _, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // makes the port-forward return
	defer stop()
	headers := http.Header{}
	headers.Set("port", "7")
	headers.Set("requestID", "0")
	headers.Set("streamType", "error")
	faults, err := conn.CreateStream(headers)
	if err != nil {
		return 0, err
	}
	defer conn.RemoveStreams(faults)
	headers.Set("streamType", "data")
	data, err := conn.CreateStream(headers)
	if err != nil {
		return 0, err
	}
	defer conn.RemoveStreams(data)
	return echo(data, content)
}

// resetter is a stream that this side can reset.
type resetter interface {
	io.ReadWriter
	Reset() error
}

// echo sends data and compares the echo at the same time: neither side buffers all of it.
func echo(stream resetter, content []byte) (time.Duration, error) {
	began := time.Now()
	sent := make(chan error, 1)
	go func() {
		// In pieces, as kubectl does: one SPDY frame holds less than 16 MiB, and the reader's own WriteTo
		// would write everything at once.
		_, err := io.Copy(stream, struct{ io.Reader }{bytes.NewReader(content)})
		if err != nil {
			_ = stream.Reset() // makes the read return
		}
		sent <- err
	}()
	buffer := make([]byte, 64<<10)
	for got := 0; got < len(content); {
		n, err := stream.Read(buffer)
		if !bytes.Equal(buffer[:n], content[got:min(got+n, len(content))]) {
			return 0, errors.New("the received data differs from the sent data")
		}
		got += n
		if err != nil && got < len(content) {
			return 0, fmt.Errorf("after %d of %d bytes: %w", got, len(content), err)
		}
	}
	took := time.Since(began)
	return took, <-sent
}
