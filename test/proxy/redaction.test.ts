// What an answer shows of the injected secret: nothing, wherever the chunks are cut, and everything else as it was.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { redactor } from "../../services/proxy/redaction.ts";

const token = "ya29.the-access-token";
const bearer = { headers: [{ value: `Bearer ${token}` }], query: [], echoAllowed: false };
const mebibyte = 1024 * 1024;

/** Pushes the chunks through and gives the whole. */
function through(injected: Parameters<typeof redactor>[0], ...chunks: readonly (string | Buffer)[]): string {
  const { push, end } = redactor(injected);
  return Buffer.concat([...chunks.map((chunk) => push(Buffer.from(chunk))), end()]).toString("latin1");
}

const stars = (text: string) => "*".repeat(text.length);

describe("a body", () => {
  it.each([
    ["the token in a bearer header", bearer, `{"a":"${token}"}`, `{"a":"${stars(token)}"}`],
    ["the whole header", bearer, `Bearer ${token}!`, `Bearer ${stars(token)}!`],
    ["every time", bearer, `${token} ${token}${token}`, `${stars(token)} ${stars(token + token)}`],
    [
      "the base64 of basic and the password in it, not the user name",
      { headers: [{ value: `Basic ${btoa("ann@example.com:s3cret-word")}` }], query: [], echoAllowed: false },
      `ann@example.com s3cret-word ${btoa("ann@example.com:s3cret-word")}`,
      `ann@example.com *********** ${stars(btoa("ann@example.com:s3cret-word"))}`,
    ],
    [
      "the user name of basic where there is no password",
      { headers: [{ value: `Basic ${btoa("sk_live_12345678:")}` }], query: [], echoAllowed: false },
      "key sk_live_12345678",
      "key ****************",
    ],
    [
      "a key in the query, plain and as it stands in a URL",
      { headers: [], query: [{ value: "k&y=12345" }], echoAllowed: false },
      "k&y=12345 ?key=k%26y%3D12345",
      "********* ?key=*************",
    ],
    [
      "no secret under 8 bytes",
      { headers: [{ value: "Bearer short" }], query: [], echoAllowed: false },
      "short",
      "short",
    ],
    ["nothing where the app lets it pass", { ...bearer, echoAllowed: true }, token, token],
    ["nothing in other letters", bearer, token.toUpperCase(), token.toUpperCase()],
  ])("loses %s", (_what, injected, text, expected) => {
    expect(through(injected, text)).toBe(expected);
  });

  it("loses the secret wherever it is cut into chunks, and keeps its length and all else", () => {
    const text = fc.array(fc.constantFrom(token, "ya29.", "y", "the-access", "Bearer ", "\n", "é", "token"), {
      maxLength: 12,
    });
    fc.assert(
      fc.property(text, fc.infiniteStream(fc.integer({ min: 0, max: 30 })), (parts, sizes) => {
        const whole = Buffer.from(parts.join(""));
        const chunks: Buffer[] = [];
        for (let at = 0; at < whole.length; ) {
          const size = sizes.next().value ?? 1;
          chunks.push(whole.subarray(at, at + size));
          at += size;
        }
        expect(through(bearer, ...chunks)).toBe(whole.toString("latin1").replaceAll(token, stars(token)));
      }),
      { numRuns: 1000 },
    );
  });

  it("is searched to the end of the first MiB, with a secret across that border, and not after", () => {
    const before = Buffer.alloc(mebibyte - 5, "x");
    const border = through(bearer, before, token.slice(0, 5), `${token.slice(5)} ${token}`);
    expect(border.slice(before.length)).toBe(`${stars(token)} ${token}`);
    const inOne = through(bearer, Buffer.concat([before, Buffer.from(`${token} ${token}`)]));
    expect(inOne).toBe(border);
    expect(through(bearer, Buffer.alloc(mebibyte), token).slice(mebibyte)).toBe(token);
  });

  it("is passed on at once as it is, not copied, where nothing is found", () => {
    const { push } = redactor(bearer);
    const event = Buffer.from("data: 1\n\n");
    const passed = push(event);
    expect([passed.buffer, passed.byteOffset, passed.length]).toEqual([event.buffer, event.byteOffset, event.length]);
    const { push: again, end } = redactor(bearer);
    expect([again(Buffer.from("my ya2")).toString(), end().toString()]).toEqual(["my ", "ya2"]);
  });
});

it("headers lose it too", () => {
  expect(
    redactor(bearer).headers([
      ["x-echo", `a ${token} b`],
      ["x-other", "c"],
    ]),
  ).toEqual([
    ["x-echo", `a ${stars(token)} b`],
    ["x-other", "c"],
  ]);
});
