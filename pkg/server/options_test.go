// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/component-base/logs"

	"github.com/oam-dev/cluster-gateway/pkg/internal/buildversion"
)

// Serving, delegated authentication and authorization, and readiness need a hub. test/e2e tests
// them with a real one.

// parsed returns the options of a command line.
func parsed(t *testing.T, args ...string) *Options {
	t.Helper()
	o := NewOptions()
	fs := pflag.NewFlagSet("gateway", pflag.ContinueOnError)
	o.AddFlags(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return o
}

func messages(errs []error) []string {
	var out []string
	for _, err := range errs {
		out = append(out, err.Error())
	}
	return out
}

// executable returns the path of a program.
func executable(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Every fault is reported at once, each by its flag's name.
func TestValidate(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	embedded := []string{"--tunnel-cert-file=" + file, "--tunnel-private-key-file=" + file, "--tunnel-client-ca-file=" + file}
	konnectivity := []string{"--konnectivity-ca-file=" + file, "--konnectivity-cert-file=" + file, "--konnectivity-key-file=" + file}
	missing := filepath.Join(dir, "missing")
	plugins, wrongPlugins := filepath.Join(dir, "plugins"), filepath.Join(dir, "wrong-plugins")
	tooMany := filepath.Join(dir, "too-many")
	for path, text := range map[string]string{tooMany: "apiVersion: apiserver.config.k8s.io/v1\nkind: TracingConfiguration\nsamplingRatePerMillion: 1000001", plugins: "plugins: [{name: a, command: " + executable(t) + "}]", wrongPlugins: "plugins: [{name: a, command: b, environment: []}]"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range map[string]struct {
		args []string
		want []string
	}{
		"off":               {args: []string{"--tunnel-mode=off"}},
		"embedded":          {args: embedded},
		"external by unix":  {args: []string{"--tunnel-mode=external", "--konnectivity-server=unix:///run/s", "--konnectivity-server=unix:///run/t"}},
		"external by tcp":   {args: append([]string{"--tunnel-mode=external", "--konnectivity-server=s:8090"}, konnectivity...)},
		"an exec directory": {args: []string{"--tunnel-mode=off", "--exec-credential-dir=" + dir, "--exec-credential-env=HOME", "--exec-credential-env=PATH"}},
		"exec plugins":      {args: []string{"--tunnel-mode=off", "--exec-credential-plugins=" + plugins}},
		"faults in the exec plugins": {args: []string{"--tunnel-mode=off", "--exec-credential-plugins=" + wrongPlugins, "--exec-credential-env=A=B", "--exec-credential-env=HOME"}, want: []string{
			`invalid --exec-credential-env "A=B": must be the name of an environment variable`, `invalid --exec-credential-env "HOME": must not be set without --exec-credential-dir`,
			`invalid --exec-credential-plugins "` + wrongPlugins + `": unknown field "plugins[0].environment"`,
			`invalid --exec-credential-plugins "` + wrongPlugins + `": plugins[a].command: Invalid value: "b": must be an absolute path`,
		}},
		"no file of exec plugins": {args: []string{"--tunnel-mode=off", "--exec-credential-plugins=" + missing}, want: []string{
			`invalid --exec-credential-plugins "` + missing + `": open ` + missing + ": no such file or directory",
		}},
		"no request limit": {args: []string{"--tunnel-mode=off", "--proxy-max-requests-inflight=-1", "--proxy-max-streams=-1"}},
		"created certificates": {args: []string{"--tunnel-advertise-address=tunnel.example.com:8132", "--tunnel-advertise-address=192.0.2.7", "--tunnel-advertise-address=2001:db8::1",
			"--tunnel-cert-lifetime=1m"}},
		"created certificates without an address": {},
		"old TLS for agents":                      {args: []string{"--tunnel-tls-min-version=1.2"}, want: []string{`invalid --tunnel-tls-min-version "1.2": must be VersionTLS12 or VersionTLS13`}},
		"embedded, one of three files": {args: embedded[:1], want: []string{
			`invalid --tunnel-private-key-file "": must be set if one of --tunnel-cert-file`, `invalid --tunnel-client-ca-file "": must be set if one of --tunnel-cert-file`,
		}},
		"odd addresses and lifetimes": {args: []string{"--tunnel-advertise-address=tunnel", "--tunnel-advertise-address=a b", "--tunnel-advertise-address=t:0", "--tunnel-ca-lifetime=1s", "--tunnel-cert-lifetime=-1s"}, want: []string{
			`invalid --tunnel-advertise-address "tunnel": must be host:port`, `invalid --tunnel-advertise-address "a b"`, `invalid --tunnel-advertise-address "t:0"`,
			`invalid --tunnel-ca-lifetime "1s": must be 0 or at least 10s`, `invalid --tunnel-cert-lifetime "-1s": must be 0 or at least 10s`,
		}},
		"odd names and lifetimes of the serving certificate": {args: []string{"--serving-host=gateway.example.com", "--serving-host=192.0.2.7", "--serving-host=a b", "--serving-ca-lifetime=-1s", "--serving-cert-lifetime=9s"}, want: []string{
			`invalid --serving-host "a b": must be a DNS name or an IP address`, `invalid --serving-ca-lifetime "-1s": must be 0 or at least 10s`, `invalid --serving-cert-lifetime "9s": must be 0 or at least 10s`,
		}},
		"cluster profiles": {args: []string{"--cluster-profiles-namespace=fleet", "--cluster-profiles-selector=env in (prod),!test", "--cluster-profiles-server=https://gateway.example.com/"}},
		"odd cluster profiles": {args: []string{"--cluster-profiles-namespace=a.b", "--cluster-profiles-selector=a==b=c", "--cluster-profiles-manager=a b", "--cluster-profiles-server=https://joe:secret@a", "--cluster-profiles-ca-file=" + file}, want: []string{
			`invalid --cluster-profiles-namespace "a.b": must be a namespace`, `invalid --cluster-profiles-selector "a==b=c": `, `invalid --cluster-profiles-manager "a b": must be the value of a label`,
			`invalid --cluster-profiles-server "https://joe:secret@a": must be an https URL without a user and a query`,
			`invalid --cluster-profiles-ca-file "` + file + `": the file has no usable CA certificate`,
		}},
		"cluster profiles without a namespace": {args: []string{"--cluster-profiles-selector=a=b", "--cluster-profiles-server=https://a", "--cluster-profiles-ca-file=" + missing}, want: []string{
			`invalid --cluster-profiles-selector "a=b": must not be set without --cluster-profiles-namespace`, `invalid --cluster-profiles-server "https://a": must not be set without`,
			`invalid --cluster-profiles-ca-file "` + missing + `": must not be set without`,
		}},
		"clusters of Cluster API": {args: []string{"--cluster-api-namespaces=prod,test", "--cluster-api-selector=gateway=register"}},
		"odd clusters of Cluster API": {args: []string{"--cluster-api-namespaces=a.b", "--cluster-api-selector=a==b=c"}, want: []string{
			`invalid --cluster-api-namespaces "a.b": must be a namespace`, `invalid --cluster-api-selector "a==b=c": `,
		}},
		"clusters of Cluster API without a namespace": {args: []string{"--cluster-api-selector=a=b"}, want: []string{
			`invalid --cluster-api-selector "a=b": must not be set without --cluster-api-namespaces`,
		}},
		"embedded, missing files": {args: []string{"--tunnel-cert-file=" + missing, "--tunnel-private-key-file=" + missing, "--tunnel-client-ca-file=" + missing}, want: []string{
			`invalid --tunnel-cert-file "` + missing + `": stat ` + missing + ": no such file or directory",
			`invalid --tunnel-private-key-file "` + missing + `": stat ` + missing + ": no such file or directory",
			`invalid --tunnel-client-ca-file "` + missing + `": stat ` + missing + ": no such file or directory",
		}},
		"embedded with an external server": {args: append([]string{"--konnectivity-server=s:1"}, embedded...), want: []string{
			`invalid --konnectivity-server "s:1": must not be set unless --tunnel-mode is external`,
		}},
		"embedded, out of range": {args: append([]string{"--tunnel-port=70000", "--tunnel-server-count=-1", "--tunnel-max-agents=0", "--tunnel-connection-buffer=1"}, embedded...), want: []string{
			`invalid --tunnel-connection-buffer "1": must be at least 65536`, `invalid --tunnel-port "70000": must be between 0 and 65535`,
			`invalid --tunnel-server-count "-1": must not be negative`, `invalid --tunnel-max-agents "0": must be at least 1`,
		}},
		"replicas":           {args: append([]string{"--peer-advertise-address=10.0.0.7", "--peer-port=0"}, embedded...)},
		"replicas with IPv6": {args: append([]string{"--peer-advertise-address=fd00::7", "--peer-bind-address=::"}, embedded...)},
		"replicas, out of range": {args: append([]string{"--peer-advertise-address=10.0.0.7:8133", "--peer-port=-1"}, embedded...), want: []string{
			`invalid --peer-port "-1": must be between 0 and 65535`, `invalid --peer-advertise-address "10.0.0.7:8133": must be an IP address or a host name, without a port`,
		}},
		"replicas without a tunnel": {args: []string{"--tunnel-mode=off", "--peer-advertise-address=10.0.0.7"}, want: []string{
			`invalid --peer-advertise-address "10.0.0.7": must not be set unless --tunnel-mode is embedded`,
		}},
		"external, nothing": {args: []string{"--tunnel-mode=external"}, want: []string{`invalid --konnectivity-server "": must be set at least once with --tunnel-mode=external`}},
		"external, odd servers": {args: append([]string{"--tunnel-mode=external", "--konnectivity-server=s", "--konnectivity-server=:1", "--konnectivity-server=unix://run/s"}, konnectivity...), want: []string{
			`invalid --konnectivity-server "s": must be host:port or unix:///path`, `invalid --konnectivity-server ":1": must be host:port or unix:///path`,
			`invalid --konnectivity-server "unix://run/s": must be unix:///path, with an absolute path`,
		}},
		"external by tcp without files": {args: []string{"--tunnel-mode=external", "--konnectivity-server=s:1"}, want: []string{
			`invalid --konnectivity-ca-file "": must be set with a --konnectivity-server as host:port`,
			`invalid --konnectivity-cert-file "": must be set with a --konnectivity-server as host:port`,
			`invalid --konnectivity-key-file "": must be set with a --konnectivity-server as host:port`,
		}},
		"serving without a port": {args: []string{"--tunnel-mode=off", "--secure-port=0"}, want: []string{"--secure-port 0 must be between 1 and 65535, inclusive. It cannot be turned off with 0"}},
		"half a serving pair":    {args: []string{"--tunnel-mode=off", "--tls-cert-file=" + file}, want: []string{`invalid --tls-private-key-file "": must be set with --tls-cert-file`}},
		"files that hold nothing": {
			args: []string{"--tunnel-mode=off", "--tls-cert-file=" + file, "--tls-private-key-file=" + file, "--client-ca-file=" + file, "--requestheader-client-ca-file=" + missing},
			want: []string{
				`invalid --tls-cert-file "` + file + `" or --tls-private-key-file "` + file + `": tls: failed to find any PEM data`,
				`invalid --client-ca-file "` + file + `": must contain a CA certificate in PEM`,
				`invalid --requestheader-client-ca-file "` + missing + `": open ` + missing + ": no such file or directory",
			},
		},
		"no configuration of traces": {args: []string{"--tunnel-mode=off", "--tracing-config-file=" + missing}, want: []string{
			`invalid --tracing-config-file "` + missing + `": open ` + missing + ": no such file or directory",
		}},
		"an odd configuration of traces": {args: []string{"--tunnel-mode=off", "--tracing-config-file=" + wrongPlugins}, want: []string{
			`invalid --tracing-config-file "` + wrongPlugins + `": must contain a TracingConfiguration of apiserver.config.k8s.io/v1: `,
		}},
		"too many traces": {args: []string{"--tunnel-mode=off", "--tracing-config-file=" + tooMany}, want: []string{
			`invalid --tracing-config-file "` + tooMany + `": samplingRatePerMillion: Invalid value: 1000001`,
		}},
		"all groups at once": {
			args: []string{"--tunnel-mode=magic", "--secret-namespace=No Such", "--exec-credential-dir=" + file, "--proxy-request-timeout=0s",
				"--proxy-dial-timeout=-1s", "--proxy-max-requests-inflight=0", "--proxy-max-streams=0", "--proxy-shutdown-grace-period=-1s", "--secure-port=-1",
				"--health-probe-interval=1ms", "--health-probe-timeout=0s", "--health-probe-concurrency=0", "--health-override-duration=-1s",
				"--goaway-chance=0.5", "--shutdown-delay-duration=-1s"},
			want: []string{
				`invalid --secret-namespace "No Such": must be a namespace: a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character`,
				`invalid --exec-credential-dir "` + file + `": must be a directory`,
				`invalid --tunnel-mode "magic": must be embedded, external or off`,
				`invalid --proxy-request-timeout "0s": must be greater than 0`, `invalid --proxy-dial-timeout "-1s": must be greater than 0`,
				`invalid --proxy-max-requests-inflight "0": must not be 0; a negative value means no limit`,
				`invalid --proxy-max-streams "0": must not be 0; a negative value means no limit`,
				`invalid --proxy-shutdown-grace-period "-1s": must not be negative`,
				`invalid --health-probe-interval "1ms": must be at least 100ms`, `invalid --health-probe-timeout "0s": must be at least 100ms`,
				`invalid --health-probe-concurrency "0": must be at least 1`, `invalid --health-override-duration "-1s": must not be negative`,
				"--secure-port",
				`invalid --goaway-chance "0.5": must be between 0 and 0.02`, `invalid --shutdown-delay-duration "-1s": must not be negative`,
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := messages(parsed(t, test.args...).Validate())
			if len(got) != len(test.want) {
				t.Fatalf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(test.want, "\n"))
			}
			for i := range got {
				if !strings.HasPrefix(got[i], test.want[i]) {
					t.Errorf("%d: got %q, want %q", i, got[i], test.want[i])
				}
			}
		})
	}
}

// TestFlags checks the names and the defaults of flags that users rely on.
func TestFlags(t *testing.T) {
	o := NewOptions()
	flags := map[string]*pflag.Flag{}
	groups := o.Flags()
	for _, set := range groups.FlagSets {
		set.VisitAll(func(f *pflag.Flag) {
			if flags[f.Name] != nil {
				t.Errorf("--%s is defined twice", f.Name)
			}
			flags[f.Name] = f
		})
	}
	for name, value := range map[string]string{
		"kubeconfig": "", "authentication-kubeconfig": "", "authorization-kubeconfig": "", "secret-namespace": "cluster-gateway-system",
		"tunnel-mode": "embedded", "tunnel-bind-address": "0.0.0.0", "tunnel-port": "8132", "tunnel-cert-file": "", "tunnel-private-key-file": "",
		"tunnel-client-ca-file": "", "konnectivity-server": "[]", "konnectivity-ca-file": "", "konnectivity-cert-file": "", "konnectivity-key-file": "",
		"tunnel-max-agents": "32", "exec-credential-dir": "", "exec-credential-plugins": "", "exec-credential-env": "[]", "tls-cert-file": "", "audit-policy-file": "", "tracing-config-file": "", "v": "0",
		"goaway-chance": "0", "shutdown-delay-duration": "0s",
	} {
		switch f := flags[name]; {
		case f == nil:
			t.Errorf("--%s is missing", name)
		case f.DefValue != value:
			t.Errorf("--%s is %q by default, want %q", name, f.DefValue, value)
		case f.Usage == "":
			t.Errorf("--%s is not explained", name)
		}
	}
	if flags["enable-priority-and-fairness"] != nil {
		t.Error("a feature that cannot be switched on is offered")
	}
}

func TestRepeatedServers(t *testing.T) {
	o := parsed(t, "--konnectivity-server=a:1", "--konnectivity-server=unix:///b,c")
	if want := []string{"a:1", "unix:///b,c"}; !slices.Equal(o.Tunnel.KonnectivityServers, want) {
		t.Errorf("%q, want %q", o.Tunnel.KonnectivityServers, want)
	}
}

// Above maxVerbosity client-go writes credentials to the log.
func TestClampVerbosity(t *testing.T) {
	for _, test := range []struct {
		args    []string
		v       uint32
		modules string
		clamped bool
	}{
		{nil, 0, "", false},
		{[]string{"-v=7"}, 7, "", false},
		{[]string{"-v=8"}, 7, "", true},
		{[]string{"--v=100"}, 7, "", true},
		{[]string{"--vmodule=request=10,proxy=3"}, 0, "request=7,proxy=3", true},
		{[]string{"--v=9", "--vmodule=*=9"}, 7, "*=7", true},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			o := parsed(t, test.args...)
			if clamped := o.clampVerbosity(); clamped != test.clamped || uint32(o.Logs.Verbosity) != test.v {
				t.Errorf("clamped %v to %d, want %v, %d", clamped, o.Logs.Verbosity, test.clamped, test.v)
			}
			var modules []string
			for _, m := range o.Logs.VModule {
				modules = append(modules, m.FilePattern+"="+string('0'+rune(m.Verbosity)))
			}
			if got := strings.Join(modules, ","); got != test.modules {
				t.Errorf("modules %q, want %q", got, test.modules)
			}
			if o.clampVerbosity() {
				t.Error("clamped twice")
			}
		})
	}
}

func TestHelp(t *testing.T) {
	cmd := NewCommand()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs([]string{"--help"})
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		"clustergateways/NAME/proxy/PATH", "--tunnel-mode", "Hub flags", "Tunnel flags", "Proxy flags",
		"gateway --kubeconfig hub.kubeconfig", "--konnectivity-server=unix:///run/konnectivity/server.sock",
	} {
		if !strings.Contains(out.String(), text) {
			t.Errorf("the help does not say %q", text)
		}
	}
}

func TestCommandFaults(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	for name, test := range map[string]struct {
		args []string
		want []string
	}{
		"arguments":    {[]string{"serve"}, []string{"takes only flags"}},
		"unknown flag": {[]string{"--nonsense"}, []string{"unknown flag: --nonsense"}},
		"log format":   {[]string{"--logging-format=xml"}, []string{"--logging-format", `"xml"`, "gateway --help"}},
		"log modules":  {[]string{"--logging-format=json", "--vmodule=proxy=4"}, []string{"--vmodule", "text"}},
		"all faults":   {[]string{"--tunnel-mode=x", "--proxy-dial-timeout=0s"}, []string{"--tunnel-mode", "--proxy-dial-timeout", "gateway --help"}},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := NewCommand()
			cmd.SetOut(&bytes.Buffer{})
			cmd.SetErr(&bytes.Buffer{})
			cmd.SetArgs(test.args)
			err := cmd.ExecuteContext(t.Context())
			if err == nil {
				t.Fatal("no error")
			}
			for _, text := range test.want {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("%q does not say %q", err, text)
				}
			}
		})
	}
}

// TestJSONLogs runs the command in a process of its own, because a process sets its logging once.
func TestJSONLogs(t *testing.T) {
	const child = "CLUSTER_GATEWAY_TEST_JSON_LOGS"
	if os.Getenv(child) != "" {
		cmd := NewCommand()
		cmd.SetArgs([]string{"--logging-format=json", "--kubeconfig=/nowhere", "--tunnel-mode=off"})
		if err := cmd.ExecuteContext(t.Context()); err == nil {
			t.Error("no error")
		}
		logs.FlushLogs()
		return
	}
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), path, "-test.run=^TestJSONLogs$")
	cmd.Env = append(os.Environ(), child+"=1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if out, err := cmd.Output(); err != nil {
		t.Fatalf("%v\n%s%s", err, out, stderr.String())
	}
	first, _, _ := strings.Cut(stderr.String(), "\n")
	var entry struct {
		Message string `json:"msg"`
		Version string `json:"version"`
	}
	if err := json.Unmarshal([]byte(first), &entry); err != nil {
		t.Fatalf("the first line of the log is no JSON: %v\n%s", err, stderr.String())
	}
	if entry.Message != "Cluster Gateway" || entry.Version == "" {
		t.Errorf("got %s", first)
	}
}

func TestNoHub(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	for want, args := range map[string][]string{
		`invalid --kubeconfig "": must be set`:  {"--tunnel-mode=off"},
		`invalid --kubeconfig "/nowhere": stat`: {"--tunnel-mode=off", "--kubeconfig=/nowhere"},
	} {
		if _, err := parsed(t, args...).Config(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", args, err)
		}
	}
}

// TestUnreachableHub: the error names the flag that the address is from, and the tunnel's port is
// free again.
func TestUnreachableHub(t *testing.T) {
	port := closedPort(t)
	kubeconfig := filepath.Join(t.TempDir(), "hub.kubeconfig")
	writeKubeconfig(t, kubeconfig, "https://127.0.0.1:"+closedPort(t))
	config, err := parsed(t, "--kubeconfig="+kubeconfig, "--tunnel-port="+port, "--tunnel-bind-address=127.0.0.1").Config()
	if err != nil {
		t.Fatal(err)
	}
	_, err = config.Complete().New(t.Context())
	if err == nil || !strings.HasPrefix(err.Error(), "--kubeconfig "+kubeconfig+": cannot reach the hub; check ") {
		t.Errorf("%v", err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatalf("the tunnel's port is still taken: %v", err)
	}
	_ = lis.Close()
}

// writeKubeconfig writes a kubeconfig for the server without a credential.
func writeKubeconfig(t *testing.T, path, server string) {
	t.Helper()
	config := clientcmdapi.NewConfig()
	config.Clusters["hub"] = &clientcmdapi.Cluster{Server: server}
	config.Contexts["hub"] = &clientcmdapi.Context{Cluster: "hub"}
	config.CurrentContext = "hub"
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		t.Fatal(err)
	}
}

// closedPort is a port that nothing listens on.
func closedPort(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	_, port, err := net.SplitHostPort(lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// Only the proxy subresource of ClusterGateways goes past the API machinery.
func TestWithProxy(t *testing.T) {
	handler := func(name string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(name)) })
	}
	proxied := withProxy(handler("api"), handler("proxy"))
	for _, test := range []struct {
		info *request.RequestInfo
		want string
	}{
		{&request.RequestInfo{IsResourceRequest: true, APIGroup: "cluster.core.oam.dev", Resource: "clustergateways", Subresource: "proxy"}, "proxy"},
		{&request.RequestInfo{IsResourceRequest: true, APIGroup: "cluster.core.oam.dev", Resource: "clustergateways", Subresource: "health"}, "api"},
		{&request.RequestInfo{IsResourceRequest: true, APIGroup: "cluster.core.oam.dev", Resource: "others", Subresource: "proxy"}, "api"},
		{&request.RequestInfo{IsResourceRequest: true, APIGroup: "", Resource: "clustergateways", Subresource: "proxy"}, "api"},
		{&request.RequestInfo{Path: "/proxy"}, "api"},
		{nil, "api"},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		if test.info != nil {
			r = r.WithContext(request.WithRequestInfo(r.Context(), test.info))
		}
		w := httptest.NewRecorder()
		proxied.ServeHTTP(w, r)
		if got := w.Body.String(); got != test.want {
			t.Errorf("%+v went to %s", test.info, got)
		}
	}
}

// TestVersion checks that --version prints the version of the gateway, and needs no other flag.
func TestVersion(t *testing.T) {
	t.Parallel()
	cmd := NewCommand()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"--version"})
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := "gateway version " + buildversion.String() + "\n"; out.String() != want {
		t.Errorf("it prints %q, want %q", &out, want)
	}
}
