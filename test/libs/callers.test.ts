// The callers table as data, by table: who gets in by which row, and with which words others are refused. Ids beside it.
import { describe, expect, test } from "vitest";
import { type Admission, admit, bindToToken, type Caller, checkCallersTable, scopesInclude } from "#libs/callers.ts";
import { newId, randomText } from "#libs/ids.ts";

const token = { subject: "cli_1", projectId: "proj_1", scopes: ["connect:accounts:*"], expireMs: 0 };
const connectToken = { ...token, externalUserId: "ann", environment: 1 };
const read = "connect:accounts:read";

describe("a row", () => {
  test.each<[string, readonly Admission[], Caller, string | undefined]>([
    ["without ways in admits nobody", [], { service: "operator", token }, "CALLER_NOT_ALLOWED"],
    ["for anybody admits a stranger", [{}], {}, undefined],
    ["for anybody is for callers without a certificate", [{}], { service: "gateway" }, "CALLER_NOT_ALLOWED"],
    ["for a service admits it", [{ service: "proxy" }], { service: "proxy" }, undefined],
    ["for a service refuses another", [{ service: "proxy" }], { service: "gateway" }, "CALLER_NOT_ALLOWED"],
    [
      "for a service refuses an unnamed certificate",
      [{ service: "proxy" }],
      { service: "unknown" },
      "CALLER_NOT_ALLOWED",
    ],
    ["for a service refuses a bare token", [{ service: "proxy" }], { token }, "CALLER_NOT_ALLOWED"],
    ["for a scope asks for a token", [{ scope: read }], {}, "TOKEN_REQUIRED"],
    ["for a scope admits it", [{ scope: read }], { token }, undefined],
    ["for a scope refuses others", [{ scope: "connect:proxy" }], { token }, "SCOPE_MISSING"],
    [
      "for a scope refuses a service with a token",
      [{ scope: read }],
      { service: "proxy", token },
      "CALLER_NOT_ALLOWED",
    ],
    ["for a scope refuses a connect token", [{ scope: read }], { token: connectToken }, "CONNECT_TOKEN_NOT_ALLOWED"],
    ["may admit connect tokens", [{ scope: read, connectToken: true }], { token: connectToken }, undefined],
    ["with two ways in admits by the second", [{ scope: "x" }, { scope: read }], { token }, undefined],
    [
      "for a service and a scope needs both",
      [{ service: "gateway", scope: read }],
      { service: "gateway" },
      "TOKEN_REQUIRED",
    ],
  ])("%s", (_name, row, caller, reason) => {
    if (reason === undefined) admit(row, caller);
    else expect(() => admit(row, caller)).toThrow(expect.objectContaining({ reason }));
  });

  test("must be there for each method, an inherited name not counting", () => {
    checkCallersTable(["a"], { a: [] });
    expect(() => checkCallersTable(["a", "b", "toString"], { a: [] })).toThrow("no row for b, toString");
  });
});

test.each([
  ["*", "connect:proxy", true],
  ["connect:*", "connect:proxy", true],
  ["connect:*", "credentials:reveal", false],
  ["connect:accounts:*", "connect:proxy", false],
  ["connect:accounts:*", "connect:accounts", false],
  ["connect:proxy", "connect:proxy", true],
  ["connect:prox", "connect:proxy", false],
  ["", "connect:proxy", false],
])("the scope %j includes %s: %s", (granted, needed, included) => {
  expect(scopesInclude([granted], needed)).toBe(included);
});

describe("binding", () => {
  test("without a token takes what the request names, and asks for it", () => {
    const request = { projectId: "proj_9", environment: 2, externalUserId: "" };
    bindToToken(request, undefined);
    expect(request).toEqual({ projectId: "proj_9", environment: 2, externalUserId: "" });
    expect(() => bindToToken({ projectId: "" }, undefined)).toThrow("project_id");
    expect(() => bindToToken({ environment: 0 }, token)).toThrow("environment");
  });

  test("leaves alone what has no such fields, chunks of a stream included", () => {
    const chunk = { piece: { $case: "chunk", value: Buffer.from("x") } };
    bindToToken(chunk, connectToken);
    expect(chunk).toEqual({ piece: { $case: "chunk", value: Buffer.from("x") } });
  });
});

describe("an id", () => {
  test("is its prefix and 22 letters and digits, each time others", () => {
    const ids = Array.from({ length: 1000 }, () => newId("apn"));
    for (const id of ids) expect(id).toMatch(/^apn_[0-9A-Za-z]{22}$/);
    expect(new Set(ids).size).toBe(1000);
    // All 62 appear, none much more often than another: 22,000 letters, 355 of each expected.
    const counts = new Map<string, number>();
    for (const letter of ids.join("").replaceAll("apn_", "")) counts.set(letter, (counts.get(letter) ?? 0) + 1);
    expect(counts.size).toBe(62);
    expect(Math.max(...counts.values())).toBeLessThan(500);
  });

  test("is not a random text, which has 256 bits", () => {
    expect(randomText()).toMatch(/^[\w-]{43}$/);
  });
});
