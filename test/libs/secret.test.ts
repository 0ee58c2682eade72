// Every way by which a value becomes text, tried on a secret.
import { format, inspect } from "node:util";
import { expect, test } from "vitest";
import { Secret, secretsEqual } from "#libs/secret.ts";

const value = "hunter2-hunter2";
const secret = new Secret(value);

test("gives its value to who asks for it by name", () => {
  expect(secret.reveal()).toBe(value);
});

test.each<[string, () => string]>([
  ["String()", () => String(secret)],
  ["a template literal", () => `${secret}`],
  ["valueOf", () => String(secret.valueOf())],
  ["join", () => [secret].join()],
  ["JSON", () => JSON.parse(JSON.stringify({ secret })).secret],
  ["inspect", () => inspect(secret, { showHidden: true, depth: null })],
  ["inspect of what holds it", () => inspect([{ secret }]).replace("[ { secret: ", "").replace(" } ]", "")],
  ["format", () => format("%s", secret)],
])("shows [secret] through %s", (_way, print) => {
  expect(print()).toBe("[secret]");
});

test("shows nothing through spread, clone, own properties and errors", () => {
  const shown = [
    JSON.stringify({ ...secret }),
    inspect(structuredClone(secret)),
    inspect(secret, { customInspect: false, showHidden: true }),
    String(Reflect.ownKeys(secret)),
    inspect(new Error(`failed with ${secret}`, { cause: secret })),
  ];
  for (const text of shown) expect(text).not.toContain("hunter2");
});

test("compares by value, whatever the lengths", () => {
  expect(secretsEqual(secret, new Secret(value))).toBe(true);
  expect(secretsEqual(secret, new Secret("hunter2-hunter3"))).toBe(false);
  expect(secretsEqual(secret, new Secret(""))).toBe(false);
});
