// The border of a gRPC server: TLS and certificates, bearer tokens, the callers table, the binding to the token, size limits,
// health, reflection and the end of the process.
import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { connect as connectTls } from "node:tls";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import * as grpc from "@grpc/grpc-js";
import { describe, expect, test } from "vitest";
import type { CallersTable } from "#libs/callers.ts";
import type { TlsIdentity } from "#libs/rpc.ts";
import { createClient } from "#libs/rpc-client.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { ForwardResponse, ProxyServiceDefinition } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { ensureCertificates } from "../../dev/certificates.ts";
import { atEnd, failure, identity, startTestServer, within } from "../support/rpc.ts";
import { testTls } from "../support/tls.ts";

const definition = ProxyServiceDefinition;
const bound = { projectId: "proj_1", environment: Environment.DEVELOPMENT, externalUserId: "ann" };
const forward = async ({ body }: { body: Buffer }) => ForwardResponse.fromPartial({ body });

function dial(port: number, tls: TlsIdentity, service = "proxy") {
  const client = createClient(definition, { address: `127.0.0.1:${port}`, tls, service });
  atEnd(() => client.close());
  return client;
}

/** A certificate for the gateway, with the same names, from an authority that nobody here trusts. */
async function strangersTls(): Promise<TlsIdentity> {
  const directory = mkdtempSync(join(tmpdir(), "deputy-stranger-"));
  const { trustDomain } = await testTls("gateway");
  const { caFile, services } = await ensureCertificates({ directory, trustDomain, services: ["gateway"] });
  const read = (file = "") => readFileSync(file, "utf8");
  const { certificateFile, keyFile } = services.gateway ?? {};
  const made = { ca: read(caFile), certificate: read(certificateFile), key: read(keyFile), trustDomain };
  rmSync(directory, { recursive: true });
  return made;
}

function rawClient(port: number, credentials: grpc.ChannelCredentials): grpc.Client {
  const client = new grpc.Client(`127.0.0.1:${port}`, credentials, { "grpc.ssl_target_name_override": "localhost" });
  atEnd(() => client.close());
  return client;
}

async function healthOf(client: grpc.Client, service: string): Promise<string> {
  const name = Buffer.from(service);
  const same = (bytes: Buffer) => bytes;
  const request = Buffer.concat([Buffer.from([0x0a, name.length]), name]);
  const path = "/grpc.health.v1.Health/Check";
  const options = { deadline: Date.now() + 5000 };
  const answer = await new Promise<Buffer | undefined>((resolve, reject) => {
    client.makeUnaryRequest(path, same, same, request, new grpc.Metadata(), options, (error, bytes) =>
      error ? reject(error) : resolve(bytes),
    );
  });
  return ["UNKNOWN", "SERVING", "NOT_SERVING"][answer?.[1] ?? 0] ?? "?";
}

describe("the internal address", () => {
  test("refuses a caller without a certificate", async () => {
    const { server } = await startTestServer({ definition });
    const { ca } = await testTls("gateway");
    const client = rawClient(server.internalPort, grpc.credentials.createSsl(Buffer.from(ca)));
    await expect(healthOf(client, "")).rejects.toMatchObject({ code: grpc.status.UNAVAILABLE });
  });

  test("refuses a certificate of another authority, and its client refuses the server's", async () => {
    const { server } = await startTestServer({ definition, handlers: { forward } });
    const ours = await testTls("gateway");
    const theirs = await strangersTls();
    for (const tls of [
      { ...theirs, ca: ours.ca },
      { ...ours, ca: theirs.ca },
    ]) {
      const error = await failure(dial(server.internalPort, tls).forward(bound, within(2000)));
      expect(error.code).toBe("UNAVAILABLE");
    }
  });

  test("is not taken for that of another service", async () => {
    const { server } = await startTestServer({ definition, handlers: { forward } });
    const client = dial(server.internalPort, await testTls("gateway"), "vault");
    const error = await failure(client.forward(bound, within(2000)));
    expect(error.code).toBe("UNAVAILABLE");
    expect(String((error.cause as Error).message)).toContain("is not vault");
  });

  test.each(["internalPort", "publicPort"] as const)("speaks TLS 1.3 and no older (%s)", async (which) => {
    const { server } = await startTestServer({ definition });
    const { ca, certificate: cert, key } = await testTls("gateway");
    const handshake = (version: "TLSv1.2" | "TLSv1.3") =>
      new Promise<string>((resolve) => {
        const versions = { minVersion: version, maxVersion: version };
        const options = {
          host: "127.0.0.1",
          servername: "localhost",
          ca,
          cert,
          key,
          ALPNProtocols: ["h2"],
          ...versions,
        };
        const socket = connectTls({ ...options, port: server[which] }, () => {
          resolve(socket.getProtocol() ?? "none");
          socket.destroy();
        });
        socket.on("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
      });
    expect(await handshake("TLSv1.3")).toBe("TLSv1.3");
    expect(await handshake("TLSv1.2")).toBe("ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION");
  });

  test("that is taken stops the start with its name", async () => {
    const { server } = await startTestServer({ definition });
    const internalAddress = `127.0.0.1:${server.internalPort}`;
    await expect(startTestServer({ definition, internalAddress })).rejects.toThrow(internalAddress);
  });
});

describe("the callers table", () => {
  test("refuses the certificate of a service that has no row", async () => {
    const { account, gateway } = await startTestServer({ definition, handlers: { forward } });
    await gateway.forward(bound, within(5000));
    const error = await failure(account.forward(bound, within(5000)));
    expect(error).toMatchObject({ code: "PERMISSION_DENIED", reason: "CALLER_NOT_ALLOWED" });
  });

  test("stops the start when a method has no row", async () => {
    const callers = { explainForward: undefined } as unknown as CallersTable<"explainForward">;
    await expect(startTestServer({ definition, callers })).rejects.toThrow("no row for explainForward");
  });

  test("lets a bearer in through the public address without a certificate, by scope", async () => {
    const { outsider } = await startTestServer({
      definition,
      handlers: { forward },
      callers: { forward: [{ scope: "connect:proxy" }] },
      tokens: { good: identity(), narrow: identity({ scopes: ["connect:accounts:read"] }) },
    });
    await outsider.forward(bound, { ...within(5000), token: "good" });
    const refused = async (token?: string) =>
      failure(outsider.forward(bound, { ...within(5000), ...(token && { token }) }));
    expect(await refused("narrow")).toMatchObject({ code: "PERMISSION_DENIED", reason: "SCOPE_MISSING" });
    expect(await refused("forged")).toMatchObject({ code: "UNAUTHENTICATED", reason: "TOKEN_INVALID" });
    expect(await refused()).toMatchObject({ code: "UNAUTHENTICATED", reason: "TOKEN_REQUIRED" });
  });

  test("does not take a token for a certificate, nor a certificate shown to the public address for one", async () => {
    const { outsider } = await startTestServer({
      definition,
      handlers: { forward },
      callers: { forward: [{ service: "gateway" }, { service: "gateway", scope: "*" }] },
      tokens: { good: identity() },
    });
    const error = await failure(outsider.forward(bound, { ...within(5000), token: "good" }));
    expect(error).toMatchObject({ code: "PERMISSION_DENIED", reason: "CALLER_NOT_ALLOWED" });
  });
});

describe("a request is bound to its token", () => {
  const asked: unknown[] = [];
  const start = () => {
    asked.length = 0;
    return startTestServer({
      definition,
      handlers: {
        forward: async (request) => {
          asked.push(request);
          return ForwardResponse.fromPartial({});
        },
        async *forwardStream(pieces) {
          for await (const { piece } of pieces) asked.push(piece?.value);
          yield* [];
        },
      },
      callers: {
        forward: [{ scope: "connect:proxy", connectToken: true }],
        forwardStream: [{ scope: "connect:proxy", connectToken: true }],
        explainForward: [{ scope: "connect:proxy" }],
      },
      tokens: {
        client: identity(),
        user: identity({ scopes: ["connect:*"], environment: Environment.DEVELOPMENT, externalUserId: "ann" }),
      },
    });
  };

  test("whose project it gets; another project looks like an absent one", async () => {
    const { outsider } = await start();
    await outsider.forward({ ...bound, projectId: "" }, { ...within(5000), token: "client" });
    expect(asked).toMatchObject([{ projectId: "proj_1" }]);
    const error = await failure(
      outsider.forward({ ...bound, projectId: "proj_2" }, { ...within(5000), token: "client" }),
    );
    expect(error).toMatchObject({ code: "NOT_FOUND", message: "No such project." });
  });

  test("whose environment and user are forced when it is a connect token", async () => {
    const { outsider } = await start();
    const options = () => ({ ...within(5000), token: "user" });
    await outsider.forward({}, options());
    expect(asked).toMatchObject([bound]);
    const as = (more: object) => failure(outsider.forward({ ...bound, ...more }, options()));
    expect(await as({ externalUserId: "bob" })).toMatchObject({ code: "NOT_FOUND" });
    expect(await as({ environment: Environment.PRODUCTION })).toMatchObject({ code: "NOT_FOUND" });
    expect(await failure(outsider.explainForward(bound, options()))).toMatchObject({
      reason: "CONNECT_TOKEN_NOT_ALLOWED",
    });
  });

  test("when it comes in the head of a stream, too", async () => {
    const { outsider } = await start();
    async function* pieces(head: object) {
      yield { piece: { $case: "head" as const, value: head } };
    }
    const send = async (head: object) => {
      for await (const _ of outsider.forwardStream(pieces(head) as never, { ...within(5000), token: "user" }));
    };
    await send({});
    expect(asked).toMatchObject([bound]);
    expect(await failure(send({ externalUserId: "bob" }))).toMatchObject({ code: "NOT_FOUND" });
    expect(await failure(send({ projectId: "proj_2" }))).toMatchObject({ code: "NOT_FOUND" });
  });

  test("or names its environment itself when the token does not", async () => {
    const { outsider } = await start();
    const error = await failure(outsider.forward({ ...bound, environment: 0 }, { ...within(5000), token: "client" }));
    expect(error).toMatchObject({ code: "INVALID_ARGUMENT", violations: [{ field: "environment" }] });
  });
});

describe("limits", () => {
  test("let a body of 8 MiB pass either way, refuse 9 MiB either way, and the server goes on", async () => {
    const answered = async ({ body, timeoutMs }: { body: Buffer; timeoutMs: number }) =>
      ForwardResponse.fromPartial({ status: body.length, body: Buffer.alloc(timeoutMs) });
    const { gateway } = await startTestServer({
      definition,
      unvalidated: ["forward"],
      handlers: { forward: answered },
    });
    const megabyte = 1_048_576;
    const send = (there: number, back: number) =>
      gateway.forward({ ...bound, body: Buffer.alloc(there * megabyte), timeoutMs: back * megabyte }, within(9000));
    expect(await send(8, 0)).toMatchObject({ status: 8 * megabyte });
    expect((await send(0, 8)).body.length).toBe(8 * megabyte);
    expect(await failure(send(9, 0))).toMatchObject({ code: "RESOURCE_EXHAUSTED" });
    expect(await failure(send(0, 9))).toMatchObject({ code: "RESOURCE_EXHAUSTED" });
    expect(await send(0, 0)).toMatchObject({ status: 0 });
  });

  test("refuse a token that is too long or is none, and metadata that is far too large", async () => {
    const { outsider, server } = await startTestServer({
      definition,
      handlers: { forward },
      callers: { forward: [{ scope: "*" }] },
      tokens: { [`t${"x".repeat(8191)}`]: identity() },
    });
    await outsider.forward(bound, { ...within(5000), token: `t${"x".repeat(8191)}` });
    for (const token of [`t${"x".repeat(8192)}`, "a b"]) {
      const error = await failure(outsider.forward(bound, { ...within(5000), token }));
      expect(error).toMatchObject({ code: "UNAUTHENTICATED", reason: "TOKEN_INVALID" });
      expect(error.message).toBe("The authorization metadata is not `Bearer <token>`.");
    }
    const { ca } = await testTls("gateway");
    const client = rawClient(server.publicPort, grpc.credentials.createSsl(Buffer.from(ca)));
    expect((await failure(outsider.forward(bound, { ...within(5000), token: "x".repeat(100_000) }))).code).not.toBe(
      "OK",
    );
    expect(await healthOf(client, "")).toBe("SERVING");
  });
});

describe("health", () => {
  test("is told of the process and of the service, and changes", async () => {
    const { server } = await startTestServer({ definition });
    const { ca } = await testTls("gateway");
    const client = rawClient(server.publicPort, grpc.credentials.createSsl(Buffer.from(ca)));
    expect(await healthOf(client, "")).toBe("SERVING");
    expect(await healthOf(client, definition.fullName)).toBe("SERVING");
    server.setServing(false);
    expect(await healthOf(client, definition.fullName)).toBe("NOT_SERVING");
    server.setServing(true);
    expect(await healthOf(client, "")).toBe("SERVING");
  });
});

describe("a drain", () => {
  async function atWork() {
    let release = () => {};
    const released = new Promise<void>((resolve) => {
      release = resolve;
    });
    let started = () => {};
    const running = new Promise<void>((resolve) => {
      started = resolve;
    });
    const { server, gateway } = await startTestServer({
      definition,
      handlers: {
        forward: async () => {
          started();
          await released;
          return ForwardResponse.fromPartial({ status: 204 });
        },
      },
    });
    const result = gateway.forward(bound, within(10_000));
    result.catch(() => undefined);
    await running;
    return { server, result, release };
  }

  test("lets the call at work end, takes no new one, and says NOT_SERVING meanwhile", async () => {
    const { server, result, release } = await atWork();
    const { ca } = await testTls("gateway");
    const watcher = rawClient(server.publicPort, grpc.credentials.createSsl(Buffer.from(ca)));
    expect(await healthOf(watcher, "")).toBe("SERVING");
    const same = (bytes: Buffer) => bytes;
    const states: number[] = [];
    const watch = watcher.makeServerStreamRequest("/grpc.health.v1.Health/Watch", same, same, Buffer.alloc(0), {
      deadline: Date.now() + 5000,
    });
    watch.on("data", (bytes: Buffer) => states.push(bytes[1] ?? 0)).on("error", () => undefined);
    await sleep(200);
    const drained = server.drain(3000);
    await sleep(200);
    expect(states).toEqual([1, 2]);
    watch.cancel();
    const late = dial(server.internalPort, await testTls("operator"));
    expect((await failure(late.forward(bound, within(1000)))).code).toMatch(/^(UNAVAILABLE|DEADLINE_EXCEEDED)$/);
    release();
    expect(await result).toMatchObject({ status: 204 });
    await drained;
  });

  test("ends in its time when a call does not", async () => {
    const { server, result, release } = await atWork();
    const startMs = performance.now();
    await server.drain(200);
    expect(performance.now() - startMs).toBeLessThan(2000);
    expect(["UNAVAILABLE", "CANCELLED", "INTERNAL"]).toContain((await failure(result)).code);
    release();
  });
});

describe("reflection", () => {
  const buf = fileURLToPath(new URL("../../node_modules/.bin/buf", import.meta.url));
  const getTokenKeys = async () => ({ keys: [{ keyId: "k1", x: "eA" }] }) as never;

  async function curl(reflection: boolean, ...args: string[]) {
    const { server } = await startTestServer({
      definition: AccountServiceDefinition,
      reflection,
      handlers: { getTokenKeys },
      callers: { getTokenKeys: [{}] },
    });
    const directory = mkdtempSync(join(tmpdir(), "deputy-curl-"));
    atEnd(() => rmSync(directory, { recursive: true }));
    const ca = join(directory, "ca.pem");
    writeFileSync(ca, (await testTls("gateway")).ca);
    const url = `https://localhost:${server.publicPort}`;
    const run = promisify(execFile);
    return run(buf, ["curl", "--protocol", "grpc", "--cacert", ca, ...args.map((arg) => arg.replace("URL", url))], {
      timeout: 20_000,
    });
  }

  test("lists the service for a client that has no contract", async () => {
    expect((await curl(true, "--list-services", "URL")).stdout).toContain(
      definition.fullName.replace("proxy.v1.Proxy", "account.v1.Account"),
    );
  });

  test("lets such a client call it", async () => {
    const method = "URL/deputy.account.v1.AccountService/GetTokenKeys";
    const { stdout } = await curl(true, "--timeout", "5s", "-d", "{}", method);
    expect(JSON.parse(stdout)).toMatchObject({ keys: [{ keyId: "k1" }] });
  });

  test("is off unless asked for", async () => {
    await expect(curl(false, "--list-services", "URL")).rejects.toThrow(/reflection/);
  });
});
