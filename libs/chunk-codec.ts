// The messages of ForwardStream on the wire. Nearly all of them are chunks, and the generated code copies a chunk three times
// on its way out and once more on its way in; here it is copied once out, into the message, and not at all in. The bytes are
// those of the generated code, which does all other messages.
import {
  ForwardStreamRequest,
  ForwardStreamResponse,
  ProxyServiceDefinition,
} from "#proto/deputy/proxy/v1/proxy_service.ts";
import type { ServiceDefinition } from "./rpc.ts";

interface Piece {
  readonly piece?: { readonly $case: string; readonly value: unknown } | undefined;
}

interface PieceType<Message extends Piece> {
  encode(message: Message): { finish(): Uint8Array };
  decode(bytes: Uint8Array): Message;
}

// Field 2, length-delimited: `chunk` of both messages.
const chunkTag = 0x12;

/** The proxy's service with these messages. Servers and clients that stream use it in the place of the generated one. */
export const streamingProxyDefinition = {
  ...ProxyServiceDefinition,
  methods: {
    ...ProxyServiceDefinition.methods,
    forwardStream: {
      ...ProxyServiceDefinition.methods.forwardStream,
      requestType: { ...ForwardStreamRequest, ...pieceCodec(ForwardStreamRequest) },
      responseType: { ...ForwardStreamResponse, ...pieceCodec(ForwardStreamResponse) },
    },
  },
} satisfies ServiceDefinition;

function pieceCodec<Message extends Piece>(type: PieceType<Message>) {
  return {
    encode(message: Message) {
      const { piece } = message;
      return piece?.$case === "chunk" ? { finish: () => writeChunk(piece.value as Buffer) } : type.encode(message);
    },
    decode(bytes: Uint8Array): Message {
      const value = readChunk(bytes);
      return value === undefined ? type.decode(bytes) : ({ piece: { $case: "chunk", value } } as unknown as Message);
    },
  };
}

function writeChunk(chunk: Buffer): Buffer {
  const lengthBytes: number[] = [];
  let left = chunk.length;
  for (; left > 127; left = Math.floor(left / 128)) lengthBytes.push((left % 128) + 128);
  const message = Buffer.allocUnsafe(2 + lengthBytes.length + chunk.length);
  message[0] = chunkTag;
  message.set([...lengthBytes, left], 1);
  message.set(chunk, 2 + lengthBytes.length);
  return message;
}

/** The chunk, as a view of the message; undefined when the message is anything else than exactly one. */
function readChunk(bytes: Uint8Array): Buffer | undefined {
  if (bytes[0] !== chunkTag) return undefined;
  let length = 0;
  for (let at = 1, unit = 1; at <= 5; at += 1, unit *= 128) {
    const byte = bytes[at] ?? 0;
    length += (byte % 128) * unit;
    if (byte > 127) continue;
    const start = at + 1;
    return start + length === bytes.length ? Buffer.from(bytes.buffer, bytes.byteOffset + start, length) : undefined;
  }
  return undefined;
}
