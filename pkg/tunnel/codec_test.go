// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"bytes"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"
)

// The codec decodes every message to the same packet, or error, as the decoder of protocol buffers
// does.
func FuzzCodec(f *testing.F) {
	for _, p := range []*client.Packet{
		{}, data(1, []byte("x")), data(-1, nil), data(0, []byte("y")), closeResponse(1, "no"), dialResponse(1, 1, ""),
		{Type: client.PacketType_DATA, Payload: &client.Packet_Data{Data: &client.Data{ConnectID: 1, Error: "no", Data: []byte("x")}}},
		{Type: client.PacketType_DRAIN}, {Type: 99},
	} {
		raw, err := proto.Marshal(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
		f.Add(append(raw, raw...)) // fields may be repeated
		f.Add(raw[:max(len(raw)-1, 0)])
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var want client.Packet
		wantErr := proto.Unmarshal(raw, &want)
		half := len(raw) / 2
		for _, message := range []mem.BufferSlice{
			{mem.SliceBuffer(raw)},
			{mem.SliceBuffer(raw[:half]), mem.SliceBuffer(raw[half:])},
		} {
			var in inbound
			if err := newPacketCodec().Unmarshal(message, &in); (err == nil) != (wantErr == nil) {
				t.Fatalf("%v, want %v", err, wantErr)
			}
			switch {
			case wantErr != nil:
			case in.packet != nil:
				if !proto.Equal(in.packet, &want) {
					t.Errorf("%v, want %v", in.packet, &want)
				}
			case want.GetType() != client.PacketType_DATA || want.GetData().GetConnectID() != in.connectID || !bytes.Equal(want.GetData().GetData(), in.data):
				t.Errorf("DATA %d %q, want %v", in.connectID, in.data, &want)
			}
			in.release()
		}
	})
}

// A DATA packet, which is every packet of a download, is decoded without a copy.
func TestDataIsDecodedInPlace(t *testing.T) {
	t.Parallel()
	raw, err := proto.Marshal(data(7, make([]byte, 4096)))
	if err != nil {
		t.Fatal(err)
	}
	if id, bytes, ok := decodeData(raw); !ok || id != 7 || len(bytes) != 4096 || &bytes[4095] != &raw[len(raw)-1] {
		t.Fatalf("%d, %d bytes, %t", id, len(bytes), ok)
	}
}
