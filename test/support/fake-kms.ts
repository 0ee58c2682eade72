// A key service on loopback that truly encrypts (AES-256-GCM with associated data) and speaks three dialects on the wire:
// the transit engine's, AWS KMS's and Google Cloud KMS's. It has one key with versions, throttles, fails, breaks, stays silent
// or refuses by command, and counts what it was asked. The dialects are in fake-kms-dialects.ts.
import { createCipheriv, createDecipheriv, randomBytes } from "node:crypto";
import type { IncomingMessage } from "node:http";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import { testTls } from "./tls.ts";

/** What the service can be asked, whatever the dialect calls it. */
export type Operation = "list" | "encrypt" | "decrypt";

/** How a request fails: refused for now, broken down, cut off, never answered, not allowed. */
export type Misbehaviour = "throttle" | "fail" | "break" | "hang" | "deny" | undefined;

/** A request as a dialect reads it. */
export interface KmsRequest {
  readonly method: string;
  readonly path: string;
  readonly headers: IncomingMessage["headers"];
  readonly body: Readonly<Record<string, unknown>>;
}

/** An answer in a dialect's words. */
export interface KmsAnswer {
  readonly status: number;
  readonly body: unknown;
  readonly headers?: Readonly<Record<string, string>>;
}

/** Versions of the one key, the newest last; what was encrypted says which. */
export interface KmsKeys {
  /** Versions that still decrypt. */
  enabled(): readonly number[];
  newest(): number;
  encrypt(version: number, plaintext: Buffer, associated: Buffer): Buffer;
  /** Undefined when it does not hold. */
  decrypt(ciphertext: Buffer, associated: Buffer): Buffer | undefined;
}

/** One provider's wire format. */
export interface Dialect {
  /** What is asked, or the answer to a request that is none of this dialect, or not authenticated. */
  read(request: KmsRequest): Operation | KmsAnswer;
  answer(operation: Operation, request: KmsRequest, keys: KmsKeys): KmsAnswer;
  refuse(why: "throttle" | "fail" | "deny"): KmsAnswer;
}

/** A running service. */
export interface FakeKms {
  readonly url: URL;
  /** The authority of its certificate. */
  readonly ca: string;
  readonly keys: KmsKeys;
  /** What was asked since the start, in order. */
  readonly asked: Operation[];
  /** Judges each request from now on. */
  misbehave(judge: (operation: Operation) => Misbehaviour): void;
  /** Makes a new version, which the service encrypts under from now on. */
  rotate(): void;
  disable(version: number): void;
  stop(): Promise<void>;
}

/** Starts a service that speaks one dialect. */
export async function startFakeKms(dialect: Dialect): Promise<FakeKms> {
  const tls = await testTls("sandbox");
  const versions = new Map([[1, randomBytes(32)]]);
  const disabled = new Set<number>();
  const asked: Operation[] = [];
  let judge: (operation: Operation) => Misbehaviour = () => undefined;

  const keys: KmsKeys = {
    enabled: () => [...versions.keys()].filter((version) => !disabled.has(version)),
    newest: () => versions.size,
    encrypt(version, plaintext, associated) {
      const nonce = randomBytes(12);
      const cipher = createCipheriv("aes-256-gcm", versions.get(version) ?? "", nonce).setAAD(associated);
      const sealed = Buffer.concat([cipher.update(plaintext), cipher.final(), cipher.getAuthTag()]);
      return Buffer.concat([Buffer.from([version]), nonce, sealed]);
    },
    decrypt(ciphertext, associated) {
      const key = versions.get(ciphertext[0] ?? 0);
      if (key === undefined || ciphertext.length < 29) return undefined;
      const decipher = createDecipheriv("aes-256-gcm", key, ciphertext.subarray(1, 13)).setAAD(associated);
      decipher.setAuthTag(ciphertext.subarray(-16));
      try {
        return Buffer.concat([decipher.update(ciphertext.subarray(13, -16)), decipher.final()]);
      } catch {
        return undefined;
      }
    },
  };

  /** Undefined for a request that gets no answer. */
  function handle(request: KmsRequest): KmsAnswer | "break" | "hang" {
    const operation = dialect.read(request);
    if (typeof operation === "object") return operation;
    asked.push(operation);
    const fault = judge(operation);
    if (fault === "break" || fault === "hang") return fault;
    return fault === undefined ? dialect.answer(operation, request, keys) : dialect.refuse(fault);
  }

  const server = createServer({ key: tls.key, cert: tls.certificate }, async (request, response) => {
    const text = Buffer.concat(await request.toArray()).toString("utf8");
    const { method = "", url: path = "", headers } = request;
    const answer = handle({ method, path, headers, body: text === "" ? {} : JSON.parse(text) });
    if (answer === "break") response.destroy();
    else if (answer !== "hang") {
      response.writeHead(answer.status, { "content-type": "application/json", ...answer.headers });
      response.end(JSON.stringify(answer.body));
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: new URL(`https://localhost:${(server.address() as AddressInfo).port}`),
    ca: tls.ca,
    keys,
    asked,
    misbehave: (next) => {
      judge = next;
    },
    rotate: () => void versions.set(versions.size + 1, randomBytes(32)),
    disable: (version) => void disabled.add(version),
    stop: async () => {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
