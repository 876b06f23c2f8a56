// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	goproto "google.golang.org/protobuf/proto"
	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"
)

// inbound is a packet that was received. Its zero value is empty. release returns its memory.
type inbound struct {
	// packet is nil for DATA. Most packets are DATA, and they cost no allocation.
	packet *client.Packet
	// connectID and data are the fields of DATA. data is part of message.
	connectID int64
	data      []byte

	message mem.Buffer
}

func (in *inbound) release() {
	if in.message != nil {
		in.message.Free()
	}
	*in = inbound{}
}

// packetStream is the part of a gRPC stream that a session uses.
type packetStream interface {
	Send(p *client.Packet) error
	// Recv releases in and fills it with the next packet.
	Recv(in *inbound) error
}

// packets is the packetStream of a gRPC stream. The server must use packetCodec.
type packets struct{ grpc.ServerStream }

func (p packets) Send(packet *client.Packet) error { return p.SendMsg(packet) }

func (p packets) Recv(in *inbound) error {
	in.release()
	return p.RecvMsg(in)
}

// packetCodec is gRPC's codec for protocol buffers. It can also decode into an *inbound.
type packetCodec struct{ encoding.CodecV2 }

func newPacketCodec() packetCodec { return packetCodec{encoding.GetCodecV2(proto.Name)} }

// Unmarshal implements encoding.CodecV2.
func (c packetCodec) Unmarshal(message mem.BufferSlice, v any) error {
	in, ok := v.(*inbound)
	if !ok {
		return c.CodecV2.Unmarshal(message, v)
	}
	in.message = message.MaterializeToBuffer(mem.DefaultBufferPool())
	raw := in.message.ReadOnlyData()
	if in.connectID, in.data, ok = decodeData(raw); ok {
		return nil
	}
	packet := &client.Packet{}
	err := goproto.Unmarshal(raw, packet)
	in.release()
	in.packet = packet
	return err
}

// Field numbers from konnectivity-client's client.proto.
const (
	fieldType      protowire.Number = 1 // Packet.type
	fieldData      protowire.Number = 4 // Packet.data
	fieldConnectID protowire.Number = 1 // Data.connectID
	fieldBytes     protowire.Number = 3 // Data.data
)

// decodeData decodes a DATA packet in the form in which every known agent sends it: with its fields
// in order, each once, and no others. data is part of raw. If ok is false, the packet may still be
// valid in another form.
func decodeData(raw []byte) (connectID int64, data []byte, ok bool) {
	packetType, raw, ok := takeVarint(raw, fieldType)
	if !ok || packetType != uint64(client.PacketType_DATA) {
		return 0, nil, false
	}
	raw, rest, ok := takeBytes(raw, fieldData)
	if !ok || len(rest) > 0 {
		return 0, nil, false
	}
	id, raw, ok := takeVarint(raw, fieldConnectID)
	if !ok {
		return 0, nil, false
	}
	data, rest, ok = takeBytes(raw, fieldBytes)
	return int64(id), data, ok && len(rest) == 0 //nolint:gosec // this is how protocol buffers encode an int64
}

// takeVarint decodes a varint field at the start of b.
func takeVarint(b []byte, field protowire.Number) (value uint64, rest []byte, ok bool) {
	number, wireType, n := protowire.ConsumeTag(b)
	if n < 0 || number != field || wireType != protowire.VarintType {
		return 0, nil, false
	}
	value, m := protowire.ConsumeVarint(b[n:])
	if m < 0 {
		return 0, nil, false
	}
	return value, b[n+m:], true
}

// takeBytes decodes a field of bytes at the start of b.
func takeBytes(b []byte, field protowire.Number) (value, rest []byte, ok bool) {
	number, wireType, n := protowire.ConsumeTag(b)
	if n < 0 || number != field || wireType != protowire.BytesType {
		return nil, nil, false
	}
	value, m := protowire.ConsumeBytes(b[n:])
	if m < 0 {
		return nil, nil, false
	}
	return value, b[n+m:], true
}
