// Serves a service definition. What all methods share stands here once, in this order: who calls, the callers table, the
// deadline, the contract's rules, what the token is bound to, the handler, the errors, the log line. Health checks and
// reflection are attached to the same server.
import { once } from "node:events";
import tls from "node:tls";
import * as grpc from "@grpc/grpc-js";
import { ReflectionService } from "@grpc/reflection";
import { HealthImplementation } from "grpc-health-check";
import { logCall, statusOf } from "./call-outcome.ts";
import { admit, bindToToken, type CallersTable, checkCallersTable } from "./callers.ts";
import { type CallsAtWork, callsAtWork, within } from "./calls-at-work.ts";
import { StatusError, statusCodes } from "./errors.ts";
import { soundRequestId } from "./ids.ts";
import type { Logger } from "./log.ts";
import { serialize } from "./message-bytes.ts";
import { peerServices } from "./peer-service.ts";
import {
  type Call,
  type Handlers,
  type MessageType,
  type MethodDefinition,
  type MethodName,
  maxMessageBytes,
  type ServiceDefinition,
  type TlsIdentity,
} from "./rpc.ts";
import { type Authenticate, identify } from "./rpc-identity.ts";
import { reveal } from "./secret.ts";
import { detailsTrailer, encodeDetails } from "./status-details.ts";
import { fileDescriptors, validationOf } from "./validation.ts";
import { writeAhead } from "./write-ahead.ts";

// grpc-js has no option for it. undici, which must still speak TLS 1.2 to the world, is told so where it dials.
tls.DEFAULT_MIN_VERSION = "TLSv1.3";

// A peer that vanished without a word (a pulled cable, a killed machine) leaves its calls open until a ping goes unanswered.
// A thousand calls at a time per connection are more than a gateway needs, and fewer than would fill the memory.
const connectionLimits = {
  "grpc.max_receive_message_length": maxMessageBytes,
  "grpc.max_concurrent_streams": 1000,
  "grpc.keepalive_time_ms": 60_000,
  "grpc.keepalive_timeout_ms": 20_000,
};

// Whoever watches for longer opens the stream anew; access tokens end after an hour as well.
const maxCallMs = 3_600_000;

// How long answers that are made get to leave, when nothing else is left but health watches and readers who have stopped.
const flushMs = 2000;

/** What a server is made of. */
export interface ServerOptions<D extends ServiceDefinition> {
  readonly definition: D;
  readonly handlers: Handlers<D>;
  /** Who may call which method; a method without a row stops the start. */
  readonly callers: CallersTable<MethodName<D>>;
  readonly authenticate: Authenticate;
  /** Methods whose requests are judged by other rules than the contract's. */
  readonly unvalidated?: readonly MethodName<D>[];
  /** Where services call, with a certificate of their own. */
  readonly internalAddress: string;
  /** Where callers from outside call, with a bearer token and without a certificate. */
  readonly publicAddress?: string;
  /** The same without TLS, tokens and all: for benches, and refused by the house rules to whatever else runs. */
  readonly plaintextAddress?: string;
  readonly tls: TlsIdentity;
  readonly reflection: boolean;
  readonly log: Logger;
}

/** A server at work. */
export interface RunningServer {
  /** Ports in use, where an address asked for any (`:0`). */
  readonly internalPort: number;
  readonly publicPort: number;
  readonly plaintextPort: number;
  /** Says through the health check whether calls can be served. */
  setServing(serving: boolean): void;
  /** Takes no new calls, lets those at work end within the time given, then stops. */
  drain(timeoutMs: number): Promise<void>;
}

type ServerCall = grpc.ServerDuplexStream<unknown, unknown> & grpc.ServerUnaryCall<unknown, unknown>;

interface Received {
  readonly message: object;
  readonly bytes: Uint8Array;
}

/** Starts serving. Throws one clear error when an address is taken or the callers table misses a method. */
export async function startServer<D extends ServiceDefinition>(options: ServerOptions<D>): Promise<RunningServer> {
  const { definition, callers, tls: identity } = options;
  checkCallersTable(Object.keys(definition.methods), callers);
  const server = new grpc.Server({ ...connectionLimits, interceptors: [writeAhead] });
  const calls = callsAtWork();
  server.addService(serverDefinition(definition), implementation(options, calls));
  const health = new HealthImplementation({ "": "SERVING", [definition.fullName]: "SERVING" });
  health.addToServer(server);
  if (options.reflection) {
    // @grpc/reflection reads nothing but these bytes; a definition made by proto-loader would lose the imports.
    const contract = { contract: { fileDescriptorProtos: fileDescriptors } } as never;
    new ReflectionService(contract, { services: [definition.fullName] }).addToServer(server);
  }
  const pair = [{ private_key: Buffer.from(reveal(identity.key)), cert_chain: Buffer.from(identity.certificate) }];
  const ca = Buffer.from(identity.ca);
  const internalPort = await bind(server, options.internalAddress, grpc.ServerCredentials.createSsl(ca, pair, true));
  const publicCredentials = grpc.ServerCredentials.createSsl(null, pair, false);
  const publicPort = await bind(server, options.publicAddress, publicCredentials);
  const plaintextPort = await bind(server, options.plaintextAddress, grpc.ServerCredentials.createInsecure());
  const setServing = (serving: boolean) => {
    for (const name of ["", definition.fullName]) health.setStatus(name, serving ? "SERVING" : "NOT_SERVING");
  };
  return {
    internalPort,
    publicPort,
    plaintextPort,
    setServing,
    async drain(timeoutMs) {
      setServing(false);
      const stopped = new Promise<void>((resolve) => server.tryShutdown(() => resolve()));
      await Promise.race([stopped, calls.end(timeoutMs)]);
      await within(stopped, Math.min(flushMs, timeoutMs));
      server.forceShutdown();
      // A connection that had only begun when the others were closed is nobody's call: it ends with the process.
      await within(stopped, flushMs);
    },
  };
}

/** Gives the port; 0 where there is no address. */
async function bind(
  server: grpc.Server,
  address: string | undefined,
  credentials: grpc.ServerCredentials,
): Promise<number> {
  if (address === undefined) return 0;
  return new Promise((resolve, reject) => {
    server.bindAsync(address, credentials, (error, port) => {
      if (error === null) resolve(port);
      else reject(new Error(`cannot listen on ${address}: ${error.message}`));
    });
  });
}

function serverDefinition(definition: ServiceDefinition): grpc.ServiceDefinition {
  const methods = Object.entries(definition.methods).map(([key, method]) => [
    key,
    {
      path: `/${definition.fullName}/${method.name}`,
      requestStream: method.requestStream,
      responseStream: method.responseStream,
      requestSerialize: (message: unknown) => serialize(method.requestType, message),
      requestDeserialize: (bytes: Buffer): Received => ({ message: method.requestType.decode(bytes) as object, bytes }),
      // Messages of a stream come as bytes (`send`).
      responseSerialize: (message: unknown) =>
        method.responseStream ? (message as Buffer) : serialize(method.responseType, message),
      responseDeserialize: (bytes: Buffer) => method.responseType.decode(bytes),
    },
  ]);
  return Object.fromEntries(methods);
}

function implementation<D extends ServiceDefinition>(
  options: ServerOptions<D>,
  calls: CallsAtWork,
): grpc.UntypedServiceImplementation {
  const methods = Object.entries(options.definition.methods).map(([key, method]) => [
    key,
    adapt(options as unknown as ServerOptions<ServiceDefinition>, key, method, calls),
  ]);
  return Object.fromEntries(methods);
}

/** One method as grpc-js calls it. */
function adapt(options: ServerOptions<ServiceDefinition>, key: string, method: MethodDefinition, calls: CallsAtWork) {
  const { definition, log } = options;
  const peerService = peerServices(options.tls.trustDomain);
  const handler = options.handlers[key] as unknown as (input: unknown, call: Call) => unknown;
  const validate = options.unvalidated?.includes(key) ? undefined : validationOf(definition.fullName, method.name);

  async function serve(stream: ServerCall, call: Call): Promise<unknown> {
    const accept = ({ message, bytes }: Received) => {
      validate?.(bytes);
      bindToToken(message, call.caller.token);
      return message;
    };
    const input = method.requestStream ? receive(stream, accept) : accept(stream.request as Received);
    const output = handler(input, call);
    if (!method.responseStream) return output;
    return send(stream, { items: output as AsyncIterable<unknown>, type: method.responseType }, call.signal);
  }

  return (stream: ServerCall, callback?: grpc.sendUnaryData<unknown>): void => {
    const cancellation = new AbortController();
    // grpc-js says "cancelled" at the end of every call: who has been answered need not be told.
    let isAnswered = false;
    stream.on("cancelled", () => isAnswered || cancellation.abort());
    const work = run(stream, cancellation, callback).then(() => {
      isAnswered = true;
    });
    calls.add(work, cancellation);
  };

  async function run(
    stream: ServerCall,
    cancellation: AbortController,
    callback?: grpc.sendUnaryData<unknown>,
  ): Promise<void> {
    const startMs = performance.now();
    const along = {
      deadlineMs: deadlineOf(stream),
      signal: cancellation.signal,
      requestId: soundRequestId(stream.metadata.get("x-request-id")[0]),
    };
    let caller: Call["caller"] = {};
    const facts = () => ({ requestId: along.requestId, method: method.name, caller, startMs });
    try {
      const call = await identify(stream, peerService, options.authenticate, along);
      caller = call.caller;
      admit(options.callers[key] ?? [], caller);
      checkDeadline(along.deadlineMs);
      const response = await serve(stream, call);
      if (callback === undefined) stream.end();
      else callback(null, response);
      logCall(log, { ...facts(), status: undefined });
    } catch (error) {
      const status = statusOf(error, along);
      const metadata = new grpc.Metadata();
      metadata.set(detailsTrailer, encodeDetails(status, along.requestId));
      // grpc-js throws at half a character (a lone surrogate, which JSON of a provider can hold), and nobody would catch it.
      const answer = { code: statusCodes[status.code], details: status.message.toWellFormed(), metadata };
      if (callback === undefined) stream.emit("error", answer);
      else callback(answer);
      logCall(log, { ...facts(), status, cause: status === error ? status.cause : error });
    }
  }
}

function deadlineOf(stream: ServerCall): number {
  const deadline = stream.getDeadline();
  return deadline instanceof Date ? deadline.getTime() : deadline;
}

function checkDeadline(deadlineMs: number): void {
  if (deadlineMs === Number.POSITIVE_INFINITY) {
    throw new StatusError("INVALID_ARGUMENT", "DEADLINE_REQUIRED", "Every call needs a deadline.");
  }
  if (deadlineMs - Date.now() > maxCallMs) {
    throw new StatusError("INVALID_ARGUMENT", "DEADLINE_TOO_FAR", "A call may take an hour at most.");
  }
}

async function* receive(stream: ServerCall, accept: (item: Received) => unknown): AsyncGenerator<unknown> {
  for await (const item of stream.iterator({ destroyOnReturn: false })) yield accept(item as Received);
}

/** Writes messages as bytes: one that cannot be serialized fails here, and not when others have been written behind it. */
async function send(
  stream: ServerCall,
  { items, type }: { readonly items: AsyncIterable<unknown>; readonly type: MessageType },
  signal: AbortSignal,
): Promise<void> {
  for await (const item of items) {
    signal.throwIfAborted();
    if (!stream.write(serialize(type, item))) await once(stream, "drain", { signal });
  }
}
