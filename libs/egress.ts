// The only door to outgoing HTTP. It dials judged addresses only (egress-connector.ts) and gives back what the upstream said:
// a redirect is data, an encoded body stays encoded, nothing is sent twice. What may be sent is judged before, by
// destination.ts and request-headers.ts; here are the limits that hold whatever the target: one deadline for the whole
// exchange, a size for headers and body, a lifetime for connections. How one exchange goes is in egress-exchange.ts. Proxies
// named in the environment are not used, only the one that the options name.
import { lookup } from "node:dns/promises";
import { Readable } from "node:stream";
import { Agent, type Dispatcher } from "undici";
import { openConnector, type Resolve } from "./egress-connector.ts";
import { EgressError } from "./egress-error.ts";
import { type ExchangeRequest, exchange } from "./egress-exchange.ts";
import type { EgressProxy } from "./egress-proxy.ts";
import type { Header } from "./request-headers.ts";
import type { AnswerHeaders } from "./response-headers.ts";

// Held of a streamed answer before the upstream is paused: as much as makes a good message of it.
const streamBufferBytes = 65_536;
const empty = Buffer.alloc(0);

/** A request whose answer is taken whole. */
export interface EgressRequest extends Omit<ExchangeRequest, "body" | "headTimeoutMs" | "idleTimeoutMs"> {
  readonly body?: Buffer;
  /** Bytes as they arrive, before any decoding. */
  readonly maxBodyBytes: number;
}

/** A request whose body and answer may be of any size. A body that is a stream is destroyed when the exchange fails. */
export type EgressStreamRequest = ExchangeRequest;

/** A whole answer. */
export interface EgressAnswer extends AnswerHeaders {
  readonly body: Buffer;
}

/** An answer as it arrives. */
export interface EgressStream extends AnswerHeaders {
  /** Fails with an EgressError only. To be read to its end or destroyed: until then its connection is in use. */
  readonly body: Readable;
  /** What came after the body; empty before its end. */
  trailers(): readonly Header[];
}

/** Sends requests; both ways reject with an EgressError only. */
export interface Egress {
  send(request: EgressRequest): Promise<EgressAnswer>;
  /** Resolves with the head of the answer. Not before the first chunk of a streamed body, or its end, is anything sent. */
  open(request: EgressStreamRequest): Promise<EgressStream>;
  /** Breaks what is still under way. */
  close(): Promise<void>;
}

/** What differs between processes; every member has a safe default. */
export interface EgressOptions {
  readonly resolve?: Resolve;
  /** `host:port` whose addresses may be loopback. Development and tests only. */
  readonly exemptTargets?: readonly string[];
  /** CIDR ranges of private addresses that the operator opens. */
  readonly allowedPrivateCidrs?: readonly string[];
  /** PEM certificates trusted beside the system's. */
  readonly extraCa?: string;
  readonly connectTimeoutMs?: number;
  /** The operator's egress proxy, for fixed outgoing addresses. */
  readonly proxy?: EgressProxy;
  readonly maxHeaderBytes?: number;
  /** After this time new requests get new connections, so that addresses are judged again. */
  readonly connectionLifetimeMs?: number;
}

/** Opens the pools, one per origin. Throws a RangeError for a faulty CIDR range. */
export function openEgress(options: EgressOptions = {}): Egress {
  const connect = openConnector({
    resolve: options.resolve ?? resolveBySystem,
    exemptTargets: options.exemptTargets ?? [],
    allowedPrivateCidrs: options.allowedPrivateCidrs ?? [],
    extraCa: options.extraCa,
    connectTimeoutMs: options.connectTimeoutMs ?? 5000,
    proxy: options.proxy,
  });
  const clients = inTurn(
    () => openClient(connect, options.maxHeaderBytes ?? 16_384),
    options.connectionLifetimeMs ?? 60_000,
  );
  return {
    send: (request) => collect(clients.present(), request),
    open: (request) => open(clients.present(), request),
    close: clients.destroy,
  };
}

function openClient(connect: ReturnType<typeof openConnector>, maxHeaderSize: number): Agent {
  return new Agent({
    connect,
    allowH2: false,
    // To one origin: more than any project may have in flight; beyond it requests wait, within their deadline.
    connections: 256,
    pipelining: 1,
    maxHeaderSize,
    keepAliveTimeout: 10_000,
    keepAliveMaxTimeout: 60_000,
    // The deadline of each request stands for both.
    headersTimeout: 0,
    bodyTimeout: 0,
    useMilo: false,
  });
}

/** Whether it has no request, under way or waiting. */
function isAtRest({ stats }: Agent): boolean {
  return Object.values(stats).every(({ size }) => size === 0);
}

/**
 * One client after the other: after its time one takes no new request. undici's own lifetime, of each connection, looks at the
 * clock for every busy connection at every request: 8 us with 64 at work.
 */
function inTurn(openNext: () => Agent, lifetimeMs: number) {
  let present = openNext();
  let endMs = performance.now() + lifetimeMs;
  const open = new Set([present]);

  function replace(): void {
    // Not by `close`, which lets go of requests under way: nothing could break them off any more.
    for (const client of [...open].filter(isAtRest)) {
      open.delete(client);
      void client.destroy();
    }
    present = openNext();
    open.add(present);
    endMs = performance.now() + lifetimeMs;
  }

  return {
    present(): Agent {
      if (performance.now() >= endMs) replace();
      return present;
    },
    async destroy(): Promise<void> {
      // What is sent from now on meets a client that is closed.
      endMs = Number.POSITIVE_INFINITY;
      await Promise.all([...open].map((client) => client.destroy()));
    },
  };
}

async function resolveBySystem(host: string): Promise<readonly string[]> {
  const answers = await lookup(host, { all: true });
  return answers.map(({ address }) => address);
}

async function collect(agent: Dispatcher, request: EgressRequest): Promise<EgressAnswer> {
  let head: AnswerHeaders | undefined;
  const chunks: Buffer[] = [];
  let bytes = 0;
  const { ended } = exchange(agent, request, {
    onHead: (found) => {
      head = found;
    },
    onData: (chunk) => {
      bytes += chunk.length;
      if (bytes > request.maxBodyBytes) {
        throw new EgressError("too_large", `The upstream's answer has more than ${request.maxBodyBytes} bytes.`, true);
      }
      chunks.push(chunk);
      return true;
    },
  });
  await ended;
  if (head === undefined) {
    throw new EgressError("malformed", "The upstream's answer has no head.", true);
  }
  const [only = empty] = chunks;
  return { status: head.status, headers: head.headers, body: chunks.length < 2 ? only : Buffer.concat(chunks, bytes) };
}

function open(agent: Dispatcher, request: EgressStreamRequest): Promise<EgressStream> {
  const { promise, resolve, reject } = Promise.withResolvers<EgressStream>();
  let trailers: readonly Header[] = [];
  const body: Readable = new Readable({
    highWaterMark: streamBufferBytes,
    read: () => running.resume(),
    destroy: (error, done) => {
      running.abort();
      done(error);
    },
  });
  // Without a listener a failure that nobody reads any more would end the process.
  body.on("error", () => undefined);
  const running = exchange(agent, request, {
    onHead: (head) => resolve({ ...head, body, trailers: () => trailers }),
    onData: (chunk) => body.push(chunk),
    onTrailers: (found) => {
      trailers = found;
    },
  });
  running.ended.then(
    () => body.push(null),
    (error) => {
      reject(error);
      body.destroy(error);
    },
  );
  return promise;
}
