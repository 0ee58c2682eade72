// Makes requests for bench/proxy.ts: so many at a time, for so long, over one connection to each gRPC server and as many as there
// are requests in flight for HTTP. Raw HTTP/2 and undici's dispatch, because a client that costs more than what it measures measures
// itself. Tells how many were answered rightly, and how long the slow ones took.
import { type ClientHttp2Session, connect } from "node:http2";
import { Agent, type Dispatcher } from "undici";
import { ForwardRequest } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { readBenchTls } from "./proxy-tls.ts";

/** One segment. */
export interface LoadOrder {
  readonly protocol: "grpc" | "http";
  /** Of the servers, each with its share of the requests in flight: `http://127.0.0.1:1234`. With `https:` gRPC is called with the gateway's certificate. */
  readonly origins: readonly string[];
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  /** The size of the answer's body. */
  readonly size: number;
  readonly inFlight: number;
  readonly durationMs: number;
  /** Ends it earlier. */
  readonly maxRequests: number;
  /** gRPC: the accounts that are used in turn; `new` makes each request the first of its account. */
  readonly accounts: number | "new";
}

/** What came of it. */
export interface LoadResult {
  readonly requests: number;
  readonly failures: number;
  readonly perSecond: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
}

/** `caller` numbers the requests in flight: each of them is always at the same server, so that none waits for another's. */
type Send = (caller: number, done: (isRight: boolean) => void) => void;

const [directory = ""] = process.argv.slice(2);
const tls = readBenchTls(directory, "gateway");
const agent = new Agent({ connections: 64, pipelining: 1, connect: { ca: tls.ca } });
const sessions = new Map<string, ClientHttp2Session>();
const windowBytes = 16 * 1024 * 1024;
let newAccounts = 0;

function sessionOf(origin: string): ClientHttp2Session {
  const known = sessions.get(origin);
  if (known !== undefined) return known;
  const session = connect(origin, {
    ...(origin.startsWith("https:") && { ca: tls.ca, cert: tls.certificate, key: tls.key, ALPNProtocols: ["h2"] }),
    settings: { initialWindowSize: windowBytes },
  });
  session.once("connect", () => session.setLocalWindowSize(windowBytes));
  session.on("error", () => sessions.delete(origin));
  sessions.set(origin, session);
  return session;
}

function frameOf(account: string, size: number): Buffer {
  const message = ForwardRequest.encode(
    ForwardRequest.fromPartial({
      projectId: "proj_bench",
      environment: 1,
      externalUserId: "user-1",
      accountId: account,
      method: "GET",
      url: `/${size}`,
      headers: [{ name: "Accept", value: "*/*" }],
    }),
  ).finish();
  const frame = Buffer.alloc(5 + message.length);
  frame.writeUInt32BE(message.length, 1);
  frame.set(message, 5);
  return frame;
}

function grpcSender({ origins, path, headers, size, accounts }: LoadOrder): Send {
  const [first = "", second = first] = origins;
  const head = { ":method": "POST", ":path": path, "content-type": "application/grpc", te: "trailers", ...headers };
  const frames = accounts === "new" ? [] : Array.from({ length: accounts }, (_, i) => frameOf(`apn_${i}`, size));
  let turn = 0;
  const nextFrame = () => {
    turn += 1;
    if (accounts === "new") return frameOf(`apn_new_${newAccounts++}`, size);
    return frames[turn % frames.length];
  };
  return (caller, done) => {
    const stream = sessionOf(caller % 2 === 0 ? first : second).request(head, { endStream: false });
    let bytes = 0;
    let status: unknown;
    stream.on("data", (chunk: Buffer) => {
      bytes += chunk.length;
    });
    stream.on("response", (answer) => {
      status = answer["grpc-status"];
    });
    stream.on("trailers", (trailers) => {
      status = trailers["grpc-status"];
    });
    stream.on("error", () => undefined);
    stream.on("close", () => done(status === "0" && bytes > size));
    stream.end(nextFrame());
  };
}

function httpSender({ origins: [origin = ""], path, headers, size }: LoadOrder): Send {
  const options: Dispatcher.DispatchOptions = { origin, path, method: "GET", headers: { ...headers } };
  return (_caller, done) => {
    let bytes = 0;
    let status = 0;
    agent.dispatch(options, {
      onRequestStart: () => undefined,
      onResponseStart: (_controller, code) => {
        status = code;
      },
      onResponseData: (_controller, chunk) => {
        bytes += chunk.length;
      },
      onResponseEnd: () => done(status === 200 && bytes === size),
      onResponseError: () => done(false),
    });
  };
}

function run(order: LoadOrder): Promise<LoadResult> {
  const send = order.protocol === "grpc" ? grpcSender(order) : httpSender(order);
  const { promise, resolve } = Promise.withResolvers<LoadResult>();
  const startMs = performance.now();
  const endMs = startMs + order.durationMs;
  const times: number[] = [];
  let failures = 0;
  let open = 0;
  const next = (caller: number) => {
    const sentMs = performance.now();
    open += 1;
    send(caller, (isRight) => {
      const nowMs = performance.now();
      open -= 1;
      if (isRight) times.push(nowMs - sentMs);
      else failures += 1;
      if (nowMs < endMs && times.length + failures < order.maxRequests) next(caller);
      else if (open === 0) resolve(resultOf(times, failures, nowMs - startMs));
    });
  };
  for (let index = 0; index < order.inFlight; index += 1) next(index);
  return promise;
}

function resultOf(times: number[], failures: number, durationMs: number): LoadResult {
  const sorted = Float64Array.from(times).sort();
  const at = (share: number) => sorted[Math.floor((sorted.length - 1) * share)] ?? 0;
  return {
    requests: times.length,
    failures,
    perSecond: (times.length / durationMs) * 1000,
    p50Ms: at(0.5),
    p99Ms: at(0.99),
  };
}

process.on("message", (order: LoadOrder) => {
  run(order).then((result) => process.send?.(result));
});
process.on("disconnect", () => process.exit());
process.send?.({ port: 0 });
