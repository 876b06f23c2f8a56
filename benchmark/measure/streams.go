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

// Pod is where exec and port-forward go. It has cat and true; port 7 sends back what it is sent.
type Pod struct {
	Namespace, Name string
}

func (p Pod) url(r *Route, subresource, query string) (*url.URL, error) {
	return url.Parse(strings.TrimSuffix(r.Config.Host, "/") + "/api/v1/namespaces/" + p.Namespace + "/pods/" + p.Name + "/" + subresource + "?" + query)
}

func (p Pod) exec(r *Route, command, query string) (remotecommand.Executor, error) {
	u, err := p.url(r, "exec", "command="+command+"&"+query)
	if err != nil {
		return nil, err
	}
	return remotecommand.NewWebSocketExecutor(r.Config, http.MethodGet, u.String())
}

// ExecRunWorkload runs a program that does nothing, from before the connection is made until its exit code is known.
func ExecRunWorkload(rounds int, pod Pod) Workload {
	return Workload{
		Name: ExecRun, Title: "exec true: connect, run, exit", Unit: report.Seconds, Rounds: rounds, Warmup: 2,
		Prepare: func(_ context.Context, r *Route) (*Work, error) {
			return &Work{Do: func(ctx context.Context) Outcome {
				began := time.Now()
				executor, err := pod.exec(r, "true", "stdout=true&stderr=true")
				if err == nil {
					err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: io.Discard, Stderr: io.Discard})
				}
				return Timed(began, err)
			}}, nil
		},
	}
}

// ExecEchoWorkload sends a line into an exec that is open, and waits until it comes back: what typing feels like.
func ExecEchoWorkload(rounds int, pod Pod) Workload {
	return Workload{
		Name: ExecEcho, Title: "exec cat: one line there and back", Unit: report.Seconds, Rounds: rounds, Warmup: 5,
		Prepare: func(_ context.Context, r *Route) (*Work, error) {
			executor, err := pod.exec(r, "cat", "stdin=true&stdout=true")
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
	life, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err := executor.StreamWithContext(life, remotecommand.StreamOptions{Stdin: stdin, Stdout: stdout})
		if err == nil {
			err = errors.New("the session ended")
		}
		_ = stdout.CloseWithError(err) // pipes close without errors
		_ = stdin.CloseWithError(err)
	}()
	line := []byte("what is typed\n")
	back := make([]byte, len(line))
	return &Work{
		Do: func(ctx context.Context) Outcome {
			stop := context.AfterFunc(ctx, cancel) // an exec that does not answer ends here
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

// forwarded is how much goes through a forwarded port in one round, in each direction.
const forwarded = 16 << 20

// ForwardWorkload sends 16 MiB through a forwarded port to a server that sends them back. The figure is what is sent by the time until
// the last byte is back; so it goes in both directions at once, and the connection is made before.
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
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // ends what waits for it
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

// resetter is a stream that can be ended from this side.
type resetter interface {
	io.ReadWriter
	Reset() error
}

// echo sends and compares what comes back, at the same time: neither side holds all of it.
func echo(stream resetter, content []byte) (time.Duration, error) {
	began := time.Now()
	sent := make(chan error, 1)
	go func() {
		// In pieces, as kubectl does: one frame of SPDY holds less than 16 MiB, which the reader's own WriteTo would not care about.
		_, err := io.Copy(stream, struct{ io.Reader }{bytes.NewReader(content)})
		if err != nil {
			_ = stream.Reset() // ends the reading
		}
		sent <- err
	}()
	buffer := make([]byte, 64<<10)
	for got := 0; got < len(content); {
		n, err := stream.Read(buffer)
		if !bytes.Equal(buffer[:n], content[got:min(got+n, len(content))]) {
			return 0, errors.New("what came back is not what was sent")
		}
		got += n
		if err != nil && got < len(content) {
			return 0, fmt.Errorf("after %d of %d bytes: %w", got, len(content), err)
		}
	}
	took := time.Since(began)
	return took, <-sent
}
