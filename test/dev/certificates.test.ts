// The development certificates in true TLS 1.3 handshakes with mutual authentication, and what a second run keeps.
import { once } from "node:events";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect, createServer, type TLSSocket } from "node:tls";
import { afterEach, expect, test } from "vitest";
import { ensureCertificates } from "../../dev/certificates.ts";

const dayMs = 86_400_000;
const directories: string[] = [];

function newDirectory(): string {
  const directory = mkdtempSync(join(tmpdir(), "deputy-certificates-"));
  directories.push(directory);
  return directory;
}

afterEach(() => {
  for (const directory of directories.splice(0)) rmSync(directory, { recursive: true });
});

function ensure(directory: string, more: { hosts?: readonly string[]; now?: () => number } = {}) {
  return ensureCertificates({ directory, trustDomain: "deputy.test", services: ["account", "vault"], ...more });
}

function credentials(directory: string, service: string) {
  return {
    cert: readFileSync(join(directory, `${service}.pem`)),
    key: readFileSync(join(directory, `${service}-key.pem`)),
    minVersion: "TLSv1.3",
  } as const;
}

function contents(directory: string): Record<string, string> {
  return Object.fromEntries(readdirSync(directory).map((name) => [name, readFileSync(join(directory, name), "utf8")]));
}

/** One handshake between a vault that trusts `serverTrusts` and an account service; gives what each saw of the other. */
async function handshake(at: { server: string; client: string; host?: string }) {
  const server = createServer({
    ...credentials(at.server, "vault"),
    ca: readFileSync(join(at.server, "ca.pem")),
    requestCert: true,
    rejectUnauthorized: true,
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const refused = once(server, "tlsClientError").then(([error]) => Promise.reject(error));
  refused.catch(() => undefined);
  const accepted = Promise.race([once(server, "secureConnection"), refused]) as Promise<[TLSSocket]>;
  accepted.catch(() => undefined);
  const client = connect({
    ...credentials(at.client, "account"),
    ca: readFileSync(join(at.client, "ca.pem")),
    host: "127.0.0.1",
    port: (server.address() as AddressInfo).port,
    servername: at.host ?? "localhost",
  });
  client.on("error", () => undefined);
  try {
    await once(client, "secureConnect");
    const [serverSide] = await accepted;
    return {
      protocol: client.getProtocol(),
      serverName: client.getPeerCertificate().subjectaltname,
      clientName: serverSide.getPeerCertificate().subjectaltname,
    };
  } finally {
    client.destroy();
    server.close();
  }
}

test("two services authenticate each other by TLS 1.3 and see each other's identity", async () => {
  const directory = newDirectory();
  await ensure(directory);
  const seen = await handshake({ server: directory, client: directory });
  expect(seen.protocol).toBe("TLSv1.3");
  expect(seen.serverName).toBe(
    "URI:spiffe://deputy.test/vault, DNS:localhost, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1",
  );
  expect(seen.clientName).toContain("URI:spiffe://deputy.test/account");
});

test("a certificate of another authority is refused by the server and by the client", async () => {
  const [ours, theirs, mixed] = [newDirectory(), newDirectory(), newDirectory()];
  await Promise.all([ensure(ours), ensure(theirs)]);
  await expect(handshake({ server: theirs, client: ours })).rejects.toThrow(
    /self-signed|unable to (get|verify)|issuer/,
  );
  // A client that trusts the server, but whose own certificate comes from elsewhere: the server hangs up on it, and takes
  // the same client with a certificate of its own authority.
  writeFileSync(join(mixed, "ca.pem"), contents(ours)["ca.pem"] ?? "");
  const present = (from: string) => {
    for (const name of ["account.pem", "account-key.pem"]) writeFileSync(join(mixed, name), contents(from)[name] ?? "");
  };
  present(theirs);
  await expect(handshake({ server: ours, client: mixed })).rejects.toThrow(/hang up|ECONNRESET/);
  present(ours);
  await handshake({ server: ours, client: mixed });
});

test("a host that the certificate does not name is refused, and served once it is asked for", async () => {
  const directory = newDirectory();
  await ensure(directory);
  await expect(handshake({ server: directory, client: directory, host: "vault.internal" })).rejects.toThrow(/altnames/);
  const authority = contents(directory)["ca.pem"];
  await ensure(directory, { hosts: ["vault.internal"] });
  expect(contents(directory)["ca.pem"]).toBe(authority);
  const seen = await handshake({ server: directory, client: directory, host: "vault.internal" });
  expect(seen.serverName).toContain("DNS:vault.internal");
});

test("a second run keeps every file", async () => {
  const directory = newDirectory();
  const files = await ensure(directory);
  const before = contents(directory);
  expect(await ensure(directory)).toEqual(files);
  expect(contents(directory)).toEqual(before);
  expect(Object.keys(before).sort()).toEqual(
    ["account-key.pem", "account.pem", "ca-key.pem", "ca.pem", "vault-key.pem", "vault.pem"].sort(),
  );
});

test("keys can be read by their owner alone", async () => {
  const directory = newDirectory();
  await ensure(directory);
  const keys = readdirSync(directory).filter((name) => name.endsWith("-key.pem"));
  expect(keys).toHaveLength(3);
  for (const name of keys) expect(statSync(join(directory, name)).mode & 0o777, name).toBe(0o600);
});

test("everything is made anew when less than 30 days remain, and kept when more do", async () => {
  const directory = newDirectory();
  const madeAtMs = Date.now();
  await ensure(directory);
  const before = contents(directory);
  await ensure(directory, { now: () => madeAtMs + 334 * dayMs });
  expect(contents(directory)).toEqual(before);
  await ensure(directory, { now: () => madeAtMs + 336 * dayMs });
  for (const [name, text] of Object.entries(contents(directory))) expect(text, name).not.toBe(before[name]);
});

test("a certificate beside another key, or of an authority that is gone, is replaced", async () => {
  const directory = newDirectory();
  await ensure(directory);
  const before = contents(directory);
  writeFileSync(join(directory, "vault-key.pem"), before["account-key.pem"] ?? "");
  await ensure(directory);
  expect(contents(directory)["vault.pem"]).not.toBe(before["vault.pem"]);
  expect(contents(directory)["account.pem"]).toBe(before["account.pem"]);
  rmSync(join(directory, "ca.pem"));
  await ensure(directory);
  await handshake({ server: directory, client: directory });
});

test("names that would leave the directory or the trust domain are refused by field", async () => {
  const directory = newDirectory();
  const make = (trustDomain: string, services: readonly string[]) =>
    ensureCertificates({ directory, trustDomain, services });
  await expect(make("deputy.test", ["../vault"])).rejects.toThrow(/^services: /);
  await expect(make("deputy.test", ["ca"])).rejects.toThrow(/^services: /);
  await expect(make("deputy.test/vault", ["vault"])).rejects.toThrow(/^trustDomain /);
});
