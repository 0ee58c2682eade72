// What services are told in common: how requests may leave, from the settings to the addresses that are dialled.
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { parseConfig } from "#libs/config.ts";
import { openEgress } from "#libs/egress.ts";
import { egressOptions, egressSettings } from "#libs/service-settings.ts";

const settings = { ...egressSettings, DEPUTY_DEVELOPMENT: { kind: "boolean", default: "false", help: "" } } as const;

function options(environment: Record<string, string>) {
  const result = parseConfig(settings, environment);
  if (result.kind === "faults") throw new Error(result.faults.join());
  // The cast: of the settings that all services have, this one alone is read.
  return egressOptions(result.config as Parameters<typeof egressOptions>[0]);
}

/** Which address a request is refused for. Loopback is the name's last one and never allowed, so nothing is dialled. */
async function refusedClass(address: string, environment: Record<string, string>): Promise<unknown> {
  const egress = openEgress({ ...options(environment), resolve: async () => [address, "127.0.0.1"] });
  const url = new URL("https://api.acme.example/");
  const sent = egress.send({ url, method: "GET", headers: [], totalTimeoutMs: 5000, maxBodyBytes: 1000 });
  const refusal = await sent.catch((error) => error);
  await egress.close();
  return /not public \((.*)\)/.exec(refusal.message)?.[1];
}

test("opens the private ranges that the operator names, and no other", async () => {
  const opened = { DEPUTY_EGRESS_PRIVATE_CIDRS: "192.168.7.0/24, 127.0.0.0/8" };
  expect(await refusedClass("192.168.7.1", {})).toBe("private");
  expect(await refusedClass("192.168.7.1", opened)).toBe("loopback");
  expect(await refusedClass("192.168.8.1", opened)).toBe("private");
});

test.each(["10.0.0.0", "10.0.0.0/33", "10.1/16", "private"])("names the setting and the faulty range %j", (range) => {
  const faulty = () => options({ DEPUTY_EGRESS_PRIVATE_CIDRS: `fd12::/32,${range}` });
  expect(faulty).toThrow(`DEPUTY_EGRESS_PRIVATE_CIDRS: "${range}" is not a CIDR range`);
});

test("refuses test targets in production", () => {
  const targets = { DEPUTY_EGRESS_TEST_ALLOW: "localhost:7480" };
  expect(() => options(targets)).toThrow("DEPUTY_EGRESS_TEST_ALLOW is for development");
  expect(options({ ...targets, DEPUTY_DEVELOPMENT: "true" }).exemptTargets).toEqual(["localhost:7480"]);
});

test("names the egress proxy only when it is set, and takes its credentials from a file", async () => {
  const directory = await mkdtemp(join(tmpdir(), "deputy-settings-"));
  const file = join(directory, "credentials");
  try {
    await writeFile(file, "deputy:pass:word\n");
    const url = { DEPUTY_EGRESS_PROXY_URL: "https://egress.acme.com:3128" };
    expect(options({}).proxy).toBeUndefined();
    expect(options(url).proxy).toEqual({ url: new URL("https://egress.acme.com:3128") });
    const { proxy } = options({ ...url, DEPUTY_EGRESS_PROXY_CREDENTIALS_FILE: file });
    expect(proxy?.credentials?.reveal()).toBe("deputy:pass:word");
    expect(() => options({ DEPUTY_EGRESS_PROXY_CREDENTIALS_FILE: file })).toThrow("is for DEPUTY_EGRESS_PROXY_URL");
    await writeFile(file, "s3cret");
    const faulty = () => options({ ...url, DEPUTY_EGRESS_PROXY_CREDENTIALS_FILE: file });
    expect(faulty).toThrow(/^DEPUTY_EGRESS_PROXY_CREDENTIALS_FILE must hold user:password on one line\.$/);
  } finally {
    await rm(directory, { recursive: true });
  }
});

test.each([
  ["socks5://10.0.0.1:1080", "must be http://host:port or https://host:port"],
  ["http://10.0.0.1:3128/path", "must be http://host:port or https://host:port"],
  ["http://deputy:s3cret@10.0.0.1:3128", "holds credentials"],
])("refuses the egress proxy %s", (url, message) => {
  const faulty = () => options({ DEPUTY_EGRESS_PROXY_URL: url });
  expect(faulty).toThrow(`DEPUTY_EGRESS_PROXY_URL ${message}`);
  expect(faulty).not.toThrow("s3cret");
});
