// The hand-made messages of ForwardStream against the generated code, byte for byte, both ways.
import fc from "fast-check";
import { expect, it } from "vitest";
import { streamingProxyDefinition } from "#libs/chunk-codec.ts";
import { ForwardStreamRequest, ForwardStreamResponse } from "#proto/deputy/proxy/v1/proxy_service.ts";

const { requestType, responseType } = streamingProxyDefinition.methods.forwardStream;
const chunks = fc
  .oneof(fc.nat(200), fc.constantFrom(127, 128, 16_383, 16_384, 65_536, 2_097_152))
  .chain((length) => fc.tuple(fc.uint8Array({ maxLength: 4 }), fc.constant(length)))
  .map(([begin, length]) => Buffer.concat([begin, Buffer.alloc(length, 7)]));

it("writes a chunk as the generated code does, and reads it back", () => {
  fc.assert(
    fc.property(chunks, (value) => {
      const message = { piece: { $case: "chunk" as const, value } };
      for (const [ours, generated] of [
        [requestType, ForwardStreamRequest],
        [responseType, ForwardStreamResponse],
      ] as const) {
        const bytes = Buffer.from(ours.encode(message).finish());
        expect(bytes.equals(generated.encode(message).finish())).toBe(true);
        const read = ours.decode(bytes);
        expect(read.piece?.$case === "chunk" && read.piece.value.equals(value)).toBe(true);
      }
    }),
    { numRuns: 300 },
  );
});

it("does all else like the generated code", () => {
  const answer = { status: 200, headers: [{ name: "a", value: "b" }], body: Buffer.alloc(0), attempts: 1 };
  for (const piece of [
    undefined,
    { $case: "head" as const, value: { ...answer, refreshed: true, upstreamDurationMs: 1.5 } },
    { $case: "end" as const, value: { trailers: [{ name: "x", value: "y" }] } },
  ]) {
    const bytes = responseType.encode({ piece }).finish();
    expect(Buffer.from(bytes)).toEqual(Buffer.from(ForwardStreamResponse.encode({ piece }).finish()));
    expect(responseType.decode(bytes)).toEqual({ piece });
  }
});

it("reads any bytes as the generated code does", () => {
  const start = fc.constantFrom(
    [0x12],
    [0x12, 0x02],
    [0x12, 0x80, 0x00],
    [0x12, 0x01, 0x61, 0x12, 0x00],
    [0x1a, 0x00],
    [],
  );
  const outcome = (read: () => unknown) => {
    try {
      return read();
    } catch {
      return "refused";
    }
  };
  fc.assert(
    fc.property(start, fc.uint8Array({ maxLength: 12 }), (begin, rest) => {
      const bytes = Buffer.concat([Buffer.from(begin), rest]);
      expect(outcome(() => requestType.decode(bytes))).toEqual(outcome(() => ForwardStreamRequest.decode(bytes)));
    }),
    { numRuns: 2000 },
  );
});
