// Messages as bytes. The codec's writer grows its buffer from nothing by doubling, which for each message anew costs as much as all
// the rest of it.
import { BinaryWriter } from "@bufbuild/protobuf/wire";
import type { MessageType } from "./rpc.ts";

// One for all messages that are not large: it keeps the buffer that it has grown to their size, and in it what was written last, as
// memory that was let go would too. A chunk of a body, which comes from elsewhere, is small by this measure.
let writer = new BinaryWriter();
const keptBytes = 131_072;

/** A message as bytes: those that the codec made, not a copy of them. */
export function serialize(type: MessageType, message: unknown): Buffer {
  const own = writer;
  // Not kept when the codec throws half way.
  writer = new BinaryWriter();
  const { buffer, byteOffset, byteLength } = type.encode(message as never, own as never).finish();
  if (byteLength <= keptBytes) writer = own;
  return Buffer.from(buffer, byteOffset, byteLength);
}
