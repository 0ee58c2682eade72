// A true server over mutual TLS on a free port for the tests of the gRPC adapter, and true clients of it.
import { afterEach } from "vitest";
import type { CallersTable, TokenIdentity } from "#libs/callers.ts";
import { StatusError, unimplemented } from "#libs/errors.ts";
import { createLogger } from "#libs/log.ts";
import type { Client, Handlers, MethodName, ServiceDefinition } from "#libs/rpc.ts";
import { createClient } from "#libs/rpc-client.ts";
import { type ServerOptions, startServer } from "#libs/rpc-server.ts";
import { testTls } from "./tls.ts";

const ends: (() => unknown)[] = [];

afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end();
});

/** Runs when the test has ended, the last first. */
export function atEnd(end: () => unknown): void {
  ends.push(end);
}

/** When a call made now must have ended. */
export function within(ms: number): { deadlineMs: number } {
  return { deadlineMs: Date.now() + ms };
}

/** What a token says, of a project `proj_1` with every scope unless told otherwise. */
export function identity(more: Partial<TokenIdentity> = {}): TokenIdentity {
  return { subject: "cli_1", projectId: "proj_1", scopes: ["*"], expireMs: Date.now() + 60_000, ...more };
}

/** What of a server matters to a test; methods without a handler are not built, methods without a row are the gateway's. */
export interface TestServerOptions<D extends ServiceDefinition>
  extends Partial<Pick<ServerOptions<D>, "reflection" | "unvalidated" | "internalAddress">> {
  readonly definition: D;
  readonly handlers?: Partial<Handlers<D>>;
  readonly callers?: Partial<CallersTable<MethodName<D>>>;
  /** Tokens that are accepted. */
  readonly tokens?: Readonly<Record<string, TokenIdentity>>;
}

/** Starts a server with the certificate of the service `proxy`. */
export async function startTestServer<D extends ServiceDefinition>(options: TestServerOptions<D>) {
  const { definition, tokens = {}, handlers = {}, callers = {} } = options;
  const lines: Record<string, unknown>[] = [];
  const forEach = <T>(make: (key: string) => T) =>
    Object.fromEntries(Object.keys(definition.methods).map((key) => [key, make(key)]));
  const unbuilt = (key: string) => () => {
    throw unimplemented(key);
  };
  const server = await startServer({
    definition,
    handlers: { ...forEach(unbuilt), ...handlers } as unknown as Handlers<D>,
    callers: defined({ ...forEach(() => [{ service: "gateway" }]), ...callers }) as CallersTable<MethodName<D>>,
    authenticate: async (token) => {
      const found = tokens[token];
      if (found === undefined) throw new StatusError("UNAUTHENTICATED", "TOKEN_INVALID", "The token is not valid.");
      return { identity: found, token };
    },
    ...(options.unvalidated && { unvalidated: options.unvalidated }),
    internalAddress: options.internalAddress ?? "127.0.0.1:0",
    publicAddress: "127.0.0.1:0",
    tls: await testTls("proxy"),
    reflection: options.reflection ?? false,
    log: createLogger("proxy", "info", { write: (line) => lines.push(JSON.parse(line)) }),
  });
  atEnd(() => server.drain(0));
  const connect = async (service: "gateway" | "account" | "operator", port: number): Promise<Client<D>> => {
    const client = createClient(definition, {
      address: `127.0.0.1:${port}`,
      tls: await testTls(service),
      service: "proxy",
    });
    atEnd(() => client.close());
    return client;
  };
  return {
    server,
    lines,
    gateway: await connect("gateway", server.internalPort),
    account: await connect("account", server.internalPort),
    /** The public listener asks for no certificate, so this client shows none. */
    outsider: await connect("gateway", server.publicPort),
  };
}

function defined(table: Readonly<Record<string, unknown>>): Readonly<Record<string, unknown>> {
  return Object.fromEntries(Object.entries(table).filter(([, value]) => value !== undefined));
}

/** The StatusError that a promise ends with. */
export async function failure(promise: Promise<unknown>): Promise<StatusError> {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  if (error instanceof StatusError) return error;
  throw new Error("expected a StatusError", { cause: error });
}
