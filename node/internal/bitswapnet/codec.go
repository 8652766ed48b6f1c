package bitswapnet

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/ipfs/boxo/bitswap/message"
	pb "github.com/ipfs/boxo/bitswap/message/pb"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-msgio"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// The numbers of the fields, from boxo's bitswap/message/pb/message.proto.
const (
	fieldPayload protowire.Number = 3 // Message.payload
	fieldPrefix  protowire.Number = 1 // Message.Block.prefix
	fieldData    protowire.Number = 2 // Message.Block.data
)

// encode writes m to w as boxo's ToNetV1 does, without copying a block.
func encode(w io.Writer, m message.BitSwapMessage) error {
	pbm := m.ToProtoV1()
	payload := pbm.Payload
	pbm.Payload = nil
	rest, err := proto.Marshal(pbm)
	if err != nil {
		return fmt.Errorf("encode Bitswap message: %w", err)
	}
	size := len(rest)
	for _, b := range payload {
		size += protowire.SizeTag(fieldPayload) + protowire.SizeBytes(blockSize(b))
	}
	head := append(binary.AppendUvarint(nil, uint64(size)), rest...)
	for _, b := range payload {
		head = protowire.AppendTag(head, fieldPayload, protowire.BytesType)
		head = protowire.AppendVarint(head, uint64(blockSize(b)))
		head = protowire.AppendTag(head, fieldPrefix, protowire.BytesType)
		head = protowire.AppendBytes(head, b.Prefix)
		head = protowire.AppendTag(head, fieldData, protowire.BytesType)
		head = protowire.AppendVarint(head, uint64(len(b.Data)))
		if _, err := w.Write(head); err != nil {
			return err
		}
		if _, err := w.Write(b.Data); err != nil {
			return err
		}
		head = head[:0]
	}
	if len(head) > 0 {
		_, err = w.Write(head)
	}
	return err
}

// Small entries take many times as much memory decoded as they do on the wire. maxRest is as much as boxo puts into one
// message of wants, maxBlocks more than it puts into one message of blocks.
const (
	maxRest   = 2 << 20
	maxBlocks = 4096
)

// blockSize is the size in bytes of b's encoding. Both fields are written even where they are empty, which proto3
// allows.
func blockSize(b *pb.Message_Block) int {
	return protowire.SizeTag(fieldPrefix) + protowire.SizeBytes(len(b.Prefix)) +
		protowire.SizeTag(fieldData) + protowire.SizeBytes(len(b.Data))
}

// decode is the message in a frame. The bytes of its blocks are those of the frame; everything else is its own. A
// block's CID is made from its bytes, so it is what it claims to be.
func decode(frame []byte) (message.BitSwapMessage, error) {
	rest, payload, err := split(frame)
	if err != nil {
		return nil, fmt.Errorf("decode Bitswap message: %w", err)
	}
	if len(rest) > maxRest || len(payload) > maxBlocks {
		return nil, fmt.Errorf("decode Bitswap message: %d blocks, of which %d are allowed, and %d bytes "+
			"besides them, of which %d are",
			len(payload), maxBlocks, len(rest), maxRest)
	}
	m, _, err := message.FromMsgReader(&single{msg: rest})
	if err != nil {
		return nil, fmt.Errorf("decode Bitswap message: %w", err)
	}
	for _, b := range payload {
		prefix, err := cid.PrefixFromBytes(b.Prefix)
		if err != nil {
			return nil, fmt.Errorf("decode Bitswap message: prefix of a block: %w", err)
		}
		block, err := message.NewWantlistBlock(b.Data, cid.Undef, prefix)
		if err != nil {
			return nil, fmt.Errorf("decode Bitswap message: block: %w", err)
		}
		m.AddBlock(block)
	}
	return m, nil
}

// split takes the blocks out of an encoded message.
func split(frame []byte) (rest []byte, payload []*pb.Message_Block, err error) {
	for len(frame) > 0 {
		number, kind, n := protowire.ConsumeField(frame)
		if n < 0 {
			return nil, nil, protowire.ParseError(n)
		}
		field := frame[:n]
		frame = frame[n:]
		if number != fieldPayload || kind != protowire.BytesType {
			rest = append(rest, field...)
			continue
		}
		_, _, tag := protowire.ConsumeTag(field)
		body, _ := protowire.ConsumeBytes(field[tag:])
		b, err := splitBlock(body)
		if err != nil {
			return nil, nil, err
		}
		payload = append(payload, b)
	}
	return rest, payload, nil
}

// splitBlock is the encoded block, whose bytes are those of body.
func splitBlock(body []byte) (*pb.Message_Block, error) {
	b := &pb.Message_Block{}
	for len(body) > 0 {
		number, kind, tag := protowire.ConsumeTag(body)
		if tag < 0 {
			return nil, protowire.ParseError(tag)
		}
		n := protowire.ConsumeFieldValue(number, kind, body[tag:])
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		if kind == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(body[tag:])
			switch number {
			case fieldPrefix:
				b.Prefix = value
			case fieldData:
				b.Data = value
			}
		}
		body = body[tag+n:]
	}
	return b, nil
}

// single is a msgio.Reader of one message.
type single struct {
	msgio.Reader // nil: nobody asks for more than the message
	msg          []byte
}

func (s *single) ReadMsg() ([]byte, error) { return s.msg, nil }
func (s *single) ReleaseMsg([]byte)        {}
