// The only door to outgoing HTTP. It dials judged addresses only (egress-connector.ts) and gives back what the upstream said:
// a redirect is data, an encoded body stays encoded, nothing is sent twice. What may be sent is judged before, by
// destination.ts and request-headers.ts; here are the limits that hold whatever the target: one deadline for the whole
// exchange, a size for headers and body, a lifetime for connections. Proxies named in the environment are not used, only the
// one that the options name.
import { lookup } from "node:dns/promises";
import { Agent, type Dispatcher } from "undici";
import { openConnector, type Resolve } from "./egress-connector.ts";
import { denied, EgressError, type EgressFailure } from "./egress-error.ts";
import type { EgressProxy } from "./egress-proxy.ts";
import type { Header } from "./request-headers.ts";
import { type AnswerHeaders, readAnswerHeaders } from "./response-headers.ts";
import { notReady } from "./verdict.ts";

/** One request. Its URL is an allowed destination and its headers are judged, or our own. */
export interface EgressRequest {
  readonly url: URL;
  readonly method: string;
  readonly headers: readonly Header[];
  readonly body?: Buffer;
  readonly signal?: AbortSignal;
  /** Asked when the connection is there, in the same breath in which the first byte leaves; false withdraws the request. */
  readonly mayStart?: () => boolean;
  /** From the call to the last byte of the answer, by the monotonic clock. */
  readonly totalTimeoutMs: number;
  /** Bytes as they arrive, before any decoding. */
  readonly maxBodyBytes: number;
}

/** A whole answer. */
export interface EgressAnswer extends AnswerHeaders {
  readonly body: Buffer;
}

/** Sends requests; `send` rejects with an EgressError only. */
export interface Egress {
  send(request: EgressRequest): Promise<EgressAnswer>;
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
  /** A connection takes no new request after this time, so that its address is judged again. */
  readonly connectionLifetimeMs?: number;
}

/** What takes an answer as it arrives; throwing an EgressError ends the exchange. */
interface AnswerSink {
  onHead(head: AnswerHeaders): void;
  onData(chunk: Buffer): void;
}

/** Opens the pools, one per origin. Throws a RangeError for a faulty CIDR range. */
export function openEgress(options: EgressOptions = {}): Egress {
  const agent = new Agent({
    connect: openConnector({
      resolve: options.resolve ?? resolveBySystem,
      exemptTargets: options.exemptTargets ?? [],
      allowedPrivateCidrs: options.allowedPrivateCidrs ?? [],
      extraCa: options.extraCa,
      connectTimeoutMs: options.connectTimeoutMs ?? 5000,
      proxy: options.proxy,
    }),
    allowH2: false,
    // More than any project may have in flight; beyond it requests wait, within their deadline.
    connections: 256,
    pipelining: 1,
    maxHeaderSize: options.maxHeaderBytes ?? 16_384,
    clientTtl: options.connectionLifetimeMs ?? 60_000,
    keepAliveTimeout: 10_000,
    keepAliveMaxTimeout: 60_000,
    // The deadline of each request stands for both.
    headersTimeout: 0,
    bodyTimeout: 0,
    useMilo: false,
  });
  return {
    send: (request) => collect(agent, request),
    close: () => agent.destroy(),
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
  await exchange(agent, request, {
    onHead: (found) => {
      head = found;
    },
    onData: (chunk) => {
      bytes += chunk.length;
      if (bytes > request.maxBodyBytes) {
        throw new EgressError("too_large", `The upstream's answer has more than ${request.maxBodyBytes} bytes.`, true);
      }
      chunks.push(chunk);
    },
  });
  if (head === undefined) {
    throw new EgressError("malformed", "The upstream's answer has no head.", true);
  }
  return { ...head, body: Buffer.concat(chunks, bytes) };
}

/** One request and its answer, chunk by chunk. Settles exactly once, and then the connection is idle or closed. */
function exchange(agent: Dispatcher, request: EgressRequest, sink: AnswerSink): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  let controller: Dispatcher.DispatchController | undefined;
  let settled = false;

  const settle = (failure?: EgressError) => {
    if (settled) {
      return;
    }
    settled = true;
    clearTimeout(timer);
    request.signal?.removeEventListener("abort", onAbort);
    if (failure === undefined) {
      resolve();
    } else {
      controller?.abort(failure);
      reject(failure);
    }
  };
  const fail = (kind: EgressFailure, message: string) =>
    settle(new EgressError(kind, message, controller !== undefined));
  const onAbort = () => fail("aborted", "The caller gave up the request.");
  const timer = setTimeout(
    () => fail("timeout", `The upstream did not answer within ${request.totalTimeoutMs} ms.`),
    request.totalTimeoutMs,
  );
  /** Runs a step of the answer; what it throws becomes the failure. */
  const step = (action: () => void) => {
    try {
      if (!settled) {
        action();
      }
    } catch (error) {
      settle(failureOf(error, true));
    }
  };

  const handler: Dispatcher.DispatchHandler = {
    onRequestStart(started) {
      // Given up while it waited for a connection, or about to be sent a second time: not a byte more may leave.
      if (settled || controller !== undefined) {
        started.abort(new EgressError("reset", "The connection to the upstream broke.", controller !== undefined));
        return;
      }
      if (request.mayStart?.() === false) {
        const withdrawn = new EgressError("withdrawn", "The request was withdrawn before it was sent.", false);
        settle(withdrawn);
        started.abort(withdrawn);
        return;
      }
      controller = started;
    },
    onResponseStart(current, status) {
      // 100 to 199 come before the answer proper and are not passed on; 101 is an answer to a question never asked.
      step(() => {
        if (status >= 200 || status === 101) {
          sink.onHead(readAnswerHeaders(status, current.rawHeaders));
        }
      });
    },
    onResponseData(_current, chunk) {
      step(() => sink.onData(chunk));
    },
    onResponseEnd() {
      settle();
    },
    onResponseError(_current, error) {
      settle(failureOf(error, controller !== undefined));
    },
  };

  if (request.signal?.aborted === true) {
    onAbort();
  } else if (request.url.protocol !== "https:") {
    settle(denied(notReady("PLAINTEXT_REFUSED", "Only https upstreams are dialled.")));
  } else if (request.headers.some(([name]) => name.toLowerCase() === "host")) {
    fail("invalid", "The host comes from the URL, not from a header.");
  } else {
    request.signal?.addEventListener("abort", onAbort, { once: true });
    try {
      agent.dispatch(dispatchOptions(request), handler);
    } catch (error) {
      settle(failureOf(error, controller !== undefined));
    }
  }
  return promise;
}

function dispatchOptions({ url, method, headers, body }: EgressRequest): Dispatcher.DispatchOptions {
  return {
    origin: url.origin,
    path: url.pathname + url.search,
    method,
    // Nothing is inflated here, so nothing is asked for that would need it.
    headers: [...headers.flat(), "accept-encoding", "identity"],
    body: body ?? null,
  };
}

function failureOf(error: unknown, sent: boolean): EgressError {
  if (error instanceof EgressError) {
    return error;
  }
  const { code, name: title, message } = error as { readonly [key: string]: unknown };
  const name = typeof code === "string" ? code : String(title);
  if (name === "UND_ERR_HEADERS_OVERFLOW") {
    return new EgressError("malformed", "The headers of the upstream's answer are too large.", sent);
  }
  if (
    title === "HTTPParserError" ||
    name === "UND_ERR_RES_CONTENT_LENGTH_MISMATCH" ||
    /^bad (response|upgrade)$/.test(String(message))
  ) {
    return new EgressError("malformed", `The upstream's answer is not valid HTTP (${name}).`, sent);
  }
  if (
    name === "UND_ERR_INVALID_ARG" ||
    name === "UND_ERR_NOT_SUPPORTED" ||
    name === "UND_ERR_REQ_CONTENT_LENGTH_MISMATCH"
  ) {
    return new EgressError("invalid", "The request cannot be put on the wire.", false);
  }
  if (name === "UND_ERR_DESTROYED" || name === "UND_ERR_CLOSED") {
    return new EgressError("aborted", "The process is stopping.", sent);
  }
  return sent
    ? new EgressError("reset", `The connection to the upstream broke (${name}).`, sent)
    : new EgressError("connect", `No connection to the upstream (${name}).`, sent);
}
