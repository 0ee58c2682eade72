// One request and its answer on a pooled connection, chunk by chunk, both ways at once. Settles exactly once, and then the
// connection is idle or closed: whatever ends an exchange early aborts it at the HTTP client too, for an answer that is
// paused and left behind would hold its connection for ever. Whoever takes the answer slowly pauses the upstream, and an
// upstream that reads slowly pauses the body, so that memory is bounded by buffers, not by bodies.
import type { Readable } from "node:stream";
import type { Dispatcher } from "undici";
import { denied, EgressError, type EgressFailure } from "./egress-error.ts";
import type { Header } from "./request-headers.ts";
import { type AnswerHeaders, readAnswerHeaders, readFields } from "./response-headers.ts";
import { notReady } from "./verdict.ts";

/** One request. Its URL is an allowed destination and its headers are judged, or our own. */
export interface ExchangeRequest {
  readonly url: URL;
  readonly method: string;
  readonly headers: readonly Header[];
  readonly body?: Buffer | Readable;
  /** Any of them ends the exchange. */
  readonly signals?: readonly AbortSignal[];
  /** Asked when the connection is there, in the same breath in which the first byte leaves; false withdraws the request. */
  readonly mayStart?: () => boolean;
  /** From the call to the last byte of the answer, by the monotonic clock. */
  readonly totalTimeoutMs: number;
  /** From the request's last byte to the answer's head. */
  readonly headTimeoutMs?: number;
  /** Without a byte either way, except between the request's last byte and the answer's head. */
  readonly idleTimeoutMs?: number;
}

/** What takes an answer as it arrives; throwing an EgressError ends the exchange. */
export interface AnswerSink {
  onHead(head: AnswerHeaders): void;
  /** False pauses the answer until `resume`. */
  onData(chunk: Buffer): boolean;
  onTrailers?(trailers: readonly Header[]): void;
}

/** An exchange at work. */
export interface Exchange {
  /** Rejects with an EgressError only. */
  readonly ended: Promise<void>;
  resume(): void;
  /** Gives it up; without effect when it has ended. */
  abort(): void;
}

/** Starts an exchange. */
export function exchange(agent: Dispatcher, request: ExchangeRequest, sink: AnswerSink): Exchange {
  const { promise: ended, resolve, reject } = Promise.withResolvers<void>();
  let controller: Dispatcher.DispatchController | undefined;
  let settled = false;
  let answered = false;
  const { signals = [] } = request;

  const settle = (failure?: EgressError) => {
    if (settled) {
      return;
    }
    settled = true;
    clearTimeout(total);
    silence.stop();
    for (const signal of signals) {
      signal.removeEventListener("abort", onAbort);
    }
    if (failure === undefined) {
      resolve();
    } else {
      controller?.abort(failure);
      if (request.body !== undefined && !Buffer.isBuffer(request.body)) {
        request.body.destroy();
      }
      reject(failure);
    }
  };
  const fail = (kind: EgressFailure, message: string) =>
    settle(new EgressError(kind, message, controller !== undefined, { answered }));
  const onAbort = () => fail("aborted", "The caller gave up the request.");
  const total = setTimeout(
    () => fail("timeout", `The upstream did not answer within ${request.totalTimeoutMs} ms.`),
    request.totalTimeoutMs,
  );
  const silence = silenceTimer((limitMs, isHead) =>
    fail("timeout", isHead ? `The upstream did not answer within ${limitMs} ms.` : `No byte moved for ${limitMs} ms.`),
  );
  silence.expect(request.idleTimeoutMs, false);
  /** Runs a step of the answer; what it throws becomes the failure. */
  const step = (action: () => void) => {
    try {
      if (!settled) {
        action();
      }
    } catch (error) {
      settle(failureOf(error, true, true));
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
    onBodySent: () => silence.heard(),
    onRequestSent() {
      if (!settled && !answered) {
        silence.expect(request.headTimeoutMs, true);
      }
    },
    onResponseStarted() {
      answered = true;
    },
    onResponseStart(current, status) {
      // 100 to 199 come before the answer proper and are not passed on; 101 is an answer to a question never asked.
      step(() => {
        if (status >= 200 || status === 101) {
          silence.expect(request.idleTimeoutMs, false);
          sink.onHead(readAnswerHeaders(status, current.rawHeaders));
        }
      });
    },
    onResponseData(current, chunk) {
      silence.heard();
      step(() => {
        if (!sink.onData(chunk)) {
          current.pause();
        }
      });
    },
    onResponseEnd(current) {
      step(() => sink.onTrailers?.(readFields(current.rawTrailers)));
      settle();
    },
    onResponseError(_current, error) {
      settle(failureOf(error, controller !== undefined, answered));
    },
  };

  if (signals.some(({ aborted }) => aborted)) {
    onAbort();
  } else if (request.url.protocol !== "https:") {
    settle(denied(notReady("PLAINTEXT_REFUSED", "Only https upstreams are dialled.")));
  } else if (request.headers.some(([name]) => name.toLowerCase() === "host")) {
    fail("invalid", "The host comes from the URL, not from a header.");
  } else {
    for (const signal of signals) {
      signal.addEventListener("abort", onAbort);
    }
    try {
      agent.dispatch(dispatchOptions(request), handler);
    } catch (error) {
      settle(failureOf(error, controller !== undefined, answered));
    }
  }
  return { ended, resume: () => controller?.resume(), abort: onAbort };
}

/** Tells when nothing was heard for as long as is allowed in the present phase. */
function silenceTimer(tell: (limitMs: number, isHead: boolean) => void) {
  let timer: NodeJS.Timeout | undefined;
  const stop = () => clearTimeout(timer);
  return {
    stop,
    expect(limitMs: number | undefined, isHead: boolean) {
      stop();
      timer = limitMs === undefined ? undefined : setTimeout(tell, limitMs, limitMs, isHead);
    },
    heard: () => void timer?.refresh(),
  };
}

function dispatchOptions({ url, method, headers, body }: ExchangeRequest): Dispatcher.DispatchOptions {
  return {
    origin: url.origin,
    path: url.pathname + url.search,
    method,
    headers: flatHeaders(headers),
    body: body ?? null,
  };
}

// By hand: `flat` takes three times as long, for each request.
function flatHeaders(headers: readonly Header[]): string[] {
  const flat: string[] = [];
  for (const [name, value] of headers) {
    flat.push(name, value);
  }
  // Nothing is inflated here, so nothing is asked for that would need it.
  flat.push("accept-encoding", "identity");
  return flat;
}

function failureOf(error: unknown, sent: boolean, answered: boolean): EgressError {
  if (error instanceof EgressError) {
    return error;
  }
  const { code, name: title, message } = error as { readonly [key: string]: unknown };
  const name = typeof code === "string" ? code : String(title);
  if (name === "UND_ERR_HEADERS_OVERFLOW") {
    return new EgressError("malformed", "The headers of the upstream's answer are too large.", sent, {
      answered: true,
    });
  }
  if (
    title === "HTTPParserError" ||
    name === "UND_ERR_RES_CONTENT_LENGTH_MISMATCH" ||
    /^bad (response|upgrade)$/.test(String(message))
  ) {
    return new EgressError("malformed", `The upstream's answer is not valid HTTP (${name}).`, sent, { answered: true });
  }
  if (
    name === "UND_ERR_INVALID_ARG" ||
    name === "UND_ERR_NOT_SUPPORTED" ||
    name === "UND_ERR_REQ_CONTENT_LENGTH_MISMATCH"
  ) {
    return new EgressError("invalid", "The request cannot be put on the wire.", false);
  }
  if (name === "UND_ERR_DESTROYED" || name === "UND_ERR_CLOSED") {
    return new EgressError("aborted", "The process is stopping.", sent, { answered });
  }
  return sent
    ? new EgressError("reset", `The connection to the upstream broke (${name}).`, sent, { answered })
    : new EgressError("connect", `No connection to the upstream (${name}).`, sent);
}
