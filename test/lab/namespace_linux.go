// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// labNetwork is the range for the point-to-point networks of firewalled clusters. It is reserved
// for benchmarks (RFC 2544), so nothing else uses it.
var labNetwork = netip.MustParsePrefix("198.18.0.0/15")

const (
	linkPrefix    = "cgl"
	linkAttempts  = 256
	insideLink    = "eth0"
	subnetBits    = 30
	firewallTable = "cluster-gateway-lab"
)

func onMainThread() bool { return unix.Gettid() == unix.Getpid() }

// childAttributes makes a child die with the thread that starts it. It also protects it from the
// terminal's Ctrl-C, because the lab stops its children in order.
func childAttributes(ownPIDs bool) *syscall.SysProcAttr {
	attributes := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if ownPIDs && missingCapability() == nil {
		attributes.Cloneflags = syscall.CLONE_NEWPID
	}
	return attributes
}

// missingCapability returns why namespaces cannot be created, or nil.
func missingCapability() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	for _, needed := range []struct {
		name string
		bit  uint
	}{{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN}, {"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN}} {
		if data[needed.bit/32].Effective&(1<<(needed.bit%32)) == 0 {
			return fmt.Errorf("needs root (%s)", needed.name)
		}
	}
	return nil
}

// namespace is a network namespace that can dial the host, but cannot be dialed. It has no name in
// the file system: it ends with the last process in it, and its veth pair ends with it.
type namespace struct {
	spawner *spawner
	link    string
	inside  netip.Addr
	outside netip.Addr

	mu     sync.Mutex     // guards the handles once the namespace exists
	handle netns.NsHandle // closed: netns.None()
	host   netns.NsHandle
}

func newNamespace(dir string) (_ *namespace, err error) {
	if err := missingCapability(); err != nil {
		return nil, err
	}
	ns := &namespace{handle: netns.None(), host: netns.None()}
	defer func() {
		if err != nil {
			err = errors.Join(err, ns.close())
		}
	}()
	ns.host, err = netns.Get()
	if err != nil {
		return nil, fmt.Errorf("open the host's network namespace: %w", err)
	}
	ns.spawner, err = newSpawner(func() error {
		handle, err := netns.New()
		ns.handle = handle
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("create a network namespace: %w", err)
	}
	if err := ns.connect(dir); err != nil {
		return nil, fmt.Errorf("connect the network namespace: %w", err)
	}
	if err := ns.raiseFirewall(); err != nil {
		return nil, fmt.Errorf("set up the firewall: %w", err)
	}
	return ns, nil
}

// connect creates the veth pair and gives both ends their addresses. It holds a lock, because other
// labs may choose addresses at the same time.
func (ns *namespace) connect(dir string) error {
	lock, err := lockFile(context.Background(), filepath.Join(dir, "cluster-gateway-lab-network.lock"), nil)
	if err != nil {
		return err
	}
	defer lock.Close()
	subnet, err := freeSubnet(os.Getpid())
	if err != nil {
		return err
	}
	ns.outside = subnet.Addr().Next()
	ns.inside = ns.outside.Next()
	if err := ns.addLink(); err != nil {
		return err
	}
	if err := ns.configureOutside(); err != nil {
		return err
	}
	return ns.configureInside()
}

func (ns *namespace) addLink() error {
	for n := range linkAttempts {
		attributes := netlink.NewLinkAttrs()
		attributes.Name = fmt.Sprintf("%s%d-%d", linkPrefix, os.Getpid(), n)
		err := netlink.LinkAdd(&netlink.Veth{
			LinkAttrs:     attributes,
			PeerName:      insideLink,
			PeerNamespace: netlink.NsFd(ns.handle),
		})
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err == nil {
			ns.link = attributes.Name
		}
		return err
	}
	return fmt.Errorf("%d links of this process exist already", linkAttempts)
}

func (ns *namespace) configureOutside() error {
	link, err := netlink.LinkByName(ns.link)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetAlias(link, pidNamespace()); err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, address(ns.outside)); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func (ns *namespace) configureInside() error {
	handle, err := netlink.NewHandleAt(ns.handle)
	if err != nil {
		return err
	}
	defer handle.Close()
	for name, ip := range map[string]netip.Addr{"lo": {}, insideLink: ns.inside} {
		link, err := handle.LinkByName(name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if ip.IsValid() {
			if err := handle.AddrAdd(link, address(ip)); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		if err := handle.LinkSetUp(link); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// raiseFirewall drops all incoming packets except loopback and replies.
func (ns *namespace) raiseFirewall() error {
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns.handle)))
	if err != nil {
		return err
	}
	drop := nftables.ChainPolicyDrop
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: firewallTable})
	input := conn.AddChain(&nftables.Chain{
		Name:     "input",
		Table:    table,
		Type:     nftables.ChainTypeFilter,
		Hooknum:  nftables.ChainHookInput,
		Priority: nftables.ChainPriorityFilter,
		Policy:   &drop,
	})
	loopback := make([]byte, unix.IFNAMSIZ)
	copy(loopback, "lo")
	conn.AddRule(&nftables.Rule{Table: table, Chain: input, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: loopback},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}})
	replies := binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	none := make([]byte, len(replies))
	conn.AddRule(&nftables.Rule{Table: table, Chain: input, Exprs: []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(replies)), Mask: replies, Xor: none},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: none},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}})
	return conn.Flush()
}

// drop drops connections from inside to a TCP port.
func (ns *namespace) drop(port int) error {
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns.handle)))
	if err != nil {
		return err
	}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: firewallTable})
	output := conn.AddChain(&nftables.Chain{
		Name:     "output",
		Table:    table,
		Type:     nftables.ChainTypeFilter,
		Hooknum:  nftables.ChainHookOutput,
		Priority: nftables.ChainPriorityFilter,
	})
	conn.AddRule(&nftables.Rule{Table: table, Chain: output, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(uint16(port))},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}})
	return conn.Flush()
}

// enter runs f on a thread inside the namespace. Only f itself runs there: goroutines that it
// starts do not.
func (ns *namespace) enter(f func() error) error {
	inside, host, err := ns.handles()
	if err != nil {
		return fmt.Errorf("enter the network namespace: %w", err)
	}
	defer inside.Close()
	defer host.Close()
	runtime.LockOSThread()
	if err := netns.Set(inside); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the network namespace: %w", err)
	}
	err = f()
	if back := netns.Set(host); back != nil {
		// The thread stays locked, so the runtime ends it with this goroutine and no other goroutine runs
		// on it.
		return errors.Join(err, fmt.Errorf("leave the network namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}

// handles returns copies of the handles, because a dial may outlast the namespace.
func (ns *namespace) handles() (inside, host netns.NsHandle, err error) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	if !ns.handle.IsOpen() || !ns.host.IsOpen() {
		return netns.None(), netns.None(), net.ErrClosed
	}
	if inside, err = duplicate(ns.handle); err != nil {
		return netns.None(), netns.None(), err
	}
	if host, err = duplicate(ns.host); err != nil {
		return netns.None(), netns.None(), errors.Join(err, inside.Close())
	}
	return inside, host, nil
}

func duplicate(handle netns.NsHandle) (netns.NsHandle, error) {
	fd, err := unix.FcntlInt(uintptr(handle), unix.F_DUPFD_CLOEXEC, 0)
	return netns.NsHandle(fd), err
}

// dial opens a connection from inside. The address must be numeric: for such an address, the dialer
// opens the socket in the calling goroutine.
func (ns *namespace) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("dial %q from a network namespace: %w", address, err)
	}
	err = ns.enter(func() error {
		var dialer net.Dialer
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

func (ns *namespace) listen(network, address string) (listener net.Listener, err error) {
	err = ns.enter(func() error {
		listener, err = net.Listen(network, address)
		return err
	})
	return listener, err
}

// close ends the namespace. Everything that was started in it must have ended.
func (ns *namespace) close() error {
	var errs []error
	if ns.link != "" {
		// The kernel would do it, but some time later.
		if link, err := netlink.LinkByName(ns.link); err == nil {
			errs = append(errs, netlink.LinkDel(link))
		}
	}
	if ns.spawner != nil {
		ns.spawner.close()
	}
	ns.mu.Lock()
	defer ns.mu.Unlock()
	for _, handle := range []*netns.NsHandle{&ns.handle, &ns.host} {
		if handle.IsOpen() {
			errs = append(errs, handle.Close())
		}
	}
	return errors.Join(errs...)
}

// newHostsSpawner returns a spawner whose children see the given file as /etc/hosts. The mount is
// in a mount namespace that ends with them.
func newHostsSpawner(ns *namespace, file string) (*spawner, error) {
	if err := missingCapability(); err != nil {
		return nil, err
	}
	return newSpawner(func() error {
		if ns != nil {
			if err := netns.Set(ns.handle); err != nil {
				return fmt.Errorf("enter the network namespace: %w", err)
			}
		}
		if err := ownMounts(); err != nil {
			return err
		}
		if err := unix.Mount(file, "/etc/hosts", "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount a hosts file: %w", err)
		}
		return nil
	})
}

// ownMounts moves the thread to a mount namespace of its own.
func ownMounts() error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return fmt.Errorf("create a mount namespace: %w", err)
	}
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	return nil
}

// sweepLinks removes the veth pairs of labs whose process has ended. The name of a link contains
// the ID of the process that created it. Its alias contains the PID namespace of that ID.
func sweepLinks() error {
	if missingCapability() != nil {
		return nil // without the capability, this process has created no links
	}
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list network links: %w", err)
	}
	var errs []error
	for _, link := range links {
		attributes := link.Attrs()
		owner, ok := strings.CutPrefix(attributes.Name, linkPrefix)
		if !ok || link.Type() != "veth" || attributes.Alias != pidNamespace() || !deadOwner(owner) {
			continue
		}
		if err := netlink.LinkDel(link); err != nil && !errors.As(err, &netlink.LinkNotFoundError{}) {
			errs = append(errs, fmt.Errorf("remove the leftover link %s: %w", attributes.Name, err))
		}
	}
	return errors.Join(errs...)
}

func pidNamespace() string {
	id, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return "unknown PID namespace"
	}
	return id
}

// freeSubnet finds a /30 that overlaps with no address and no route of the host.
func freeSubnet(seed int) (netip.Prefix, error) {
	used, err := usedPrefixes()
	if err != nil {
		return netip.Prefix{}, err
	}
	count := 1 << (subnetBits - labNetwork.Bits())
	base := labNetwork.Addr().As4()
	for i := range count {
		// A prime stride, so that labs that start at the same time, with neighboring process IDs, do not
		// try the same subnets in turn.
		n := uint32((seed*7919+i)%count) << (32 - subnetBits)
		candidate := netip.PrefixFrom(netip.AddrFrom4([4]byte{
			base[0], base[1] | byte(n>>16), base[2] | byte(n>>8), base[3] | byte(n),
		}), subnetBits)
		if !overlapsAny(candidate, used) {
			return candidate, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("every network in %s is in use", labNetwork)
}

func overlapsAny(candidate netip.Prefix, used []netip.Prefix) bool {
	for _, prefix := range used {
		if prefix.Overlaps(candidate) {
			return true
		}
	}
	return false
}

func usedPrefixes() ([]netip.Prefix, error) {
	addresses, err := netlink.AddrList(nil, unix.AF_INET)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	routes, err := netlink.RouteList(nil, unix.AF_INET)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var used []netip.Prefix
	add := func(network *net.IPNet) {
		if network == nil {
			return
		}
		ip, ok := netip.AddrFromSlice(network.IP.To4())
		if ones, _ := network.Mask.Size(); ok && ones > 0 { // 0: the default route
			used = append(used, netip.PrefixFrom(ip, ones).Masked())
		}
	}
	for _, a := range addresses {
		add(a.IPNet)
	}
	for _, r := range routes {
		add(r.Dst)
	}
	return used, nil
}

func address(ip netip.Addr) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(subnetBits, 32)}}
}
