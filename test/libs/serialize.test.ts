// Messages as bytes, which share one writer.
import type { BinaryWriter } from "@bufbuild/protobuf/wire";
import { expect, test } from "vitest";
import { serialize } from "#libs/message-bytes.ts";
import { ForwardResponse } from "#proto/deputy/proxy/v1/proxy_service.ts";

const answer = (body: string) => ForwardResponse.fromPartial({ status: 200, body: Buffer.from(body) });
const decoded = (bytes: Buffer) => ForwardResponse.decode(bytes).body.toString();

test("a message keeps its bytes when others are made after it", () => {
  const large = "l".repeat(200_000);
  const made = ["one", large, "three", "four"].map((body) => serialize(ForwardResponse, answer(body)));
  expect(made.map(decoded)).toEqual(["one", large, "three", "four"]);
});

test("a message that fails half way leaves nothing to the next", () => {
  const failing = {
    ...ForwardResponse,
    encode(_message: ForwardResponse, writer?: BinaryWriter): BinaryWriter {
      writer?.uint32(8).int32(1).fork();
      throw new Error("half way");
    },
  };
  expect(() => serialize(failing, answer("lost"))).toThrow("half way");
  const bytes = serialize(ForwardResponse, answer("whole"));
  expect(bytes).toEqual(Buffer.from(ForwardResponse.encode(answer("whole")).finish()));
});
