// Makes a client from a service definition: one HTTP/2 connection with mutual TLS, whose peer is known by the service name
// in its certificate, not by a host name. Failures come back as the StatusError that the other side threw.
import { once } from "node:events";
import tls from "node:tls";
import * as grpc from "@grpc/grpc-js";
import { type StatusCode, StatusError } from "./errors.ts";
import { serialize } from "./message-bytes.ts";
import {
  type CallOptions,
  type Client,
  type MethodDefinition,
  maxMessageBytes,
  type ServiceDefinition,
  serviceOfCertificate,
  type TlsIdentity,
} from "./rpc.ts";
import { reveal } from "./secret.ts";
import { decodeStatus, detailsTrailer } from "./status-details.ts";

// grpc-js has no option for it. undici, which must still speak TLS 1.2 to the world, is told so where it dials.
tls.DEFAULT_MIN_VERSION = "TLSv1.3";

// What a sender may have on its way. With HTTP/2's 64 KiB a stream moves one such piece per round trip, and no more than that
// while either side is busy otherwise.
const windowBytes = 256 * 1024;

// A hop gives its callee a little less time than it has, so that the inner failure is the one reported.
const hopMs = 20;

const connectionFaults: Partial<Record<StatusCode, string>> = {
  CANCELLED: "The call was cancelled.",
  DEADLINE_EXCEEDED: "The deadline has passed.",
  RESOURCE_EXHAUSTED: "The message is too large.",
  UNAVAILABLE: "A service that this call needs cannot be reached.",
};

/** Where and how to reach a service. */
export interface ClientOptions {
  /** `host:port`, or any other gRPC target. */
  readonly address: string;
  /** Without a certificate of its own the client speaks to public addresses alone, with a bearer token. */
  readonly tls: Pick<TlsIdentity, "ca" | "trustDomain"> & Partial<Pick<TlsIdentity, "certificate" | "key">>;
  /** The service that must hold the other side's certificate. */
  readonly service: string;
}

/** Connects on first use, again after a loss. `close` ends the connection. */
export function createClient<D extends ServiceDefinition>(
  definition: D,
  options: ClientOptions,
): Client<D> & { close(): void } {
  const { tls: identity } = options;
  const credentials = grpc.credentials.createSsl(
    Buffer.from(identity.ca),
    identity.key === undefined ? null : Buffer.from(reveal(identity.key)),
    identity.certificate === undefined ? null : Buffer.from(identity.certificate),
    {
      checkServerIdentity: (_host, certificate) =>
        serviceOfCertificate(certificate.subjectaltname, identity.trustDomain) === options.service
          ? undefined
          : new Error(`the peer at ${options.address} is not ${options.service}`),
    },
  );
  const channel = new grpc.Client(options.address, credentials, {
    // Node refuses an IP address as TLS server name, which is what an address like 127.0.0.1:7402 would make it.
    "grpc.ssl_target_name_override": options.service,
    "grpc.max_receive_message_length": maxMessageBytes,
    "grpc.service_config_disable_resolution": 1,
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 2000,
    // Pings while calls are open: a peer that vanished without a word is given up after ten seconds.
    "grpc.keepalive_time_ms": 5000,
    "grpc.keepalive_timeout_ms": 5000,
    "grpc-node.flow_control_window": windowBytes,
  });
  const methods = Object.entries(definition.methods).map(([key, method]) => [
    key,
    call.bind(undefined, channel, `/${definition.fullName}/${method.name}`, method),
  ]);
  return { ...Object.fromEntries(methods), close: () => channel.close() };
}

function call(
  channel: grpc.Client,
  path: string,
  method: MethodDefinition,
  input: unknown,
  options: CallOptions,
): unknown {
  const encode = (message: unknown) => serialize(method.requestType, message);
  const deserialize = (bytes: Buffer) => method.responseType.decode(bytes);
  const complete = (partial: unknown) => method.requestType.fromPartial(partial as never);
  const metadata = new grpc.Metadata();
  if (options.token !== undefined) metadata.set("authorization", `Bearer ${soundToken(options.token)}`);
  if (options.requestId !== undefined) metadata.set("x-request-id", options.requestId);
  const callOptions = { deadline: options.deadlineMs - hopMs };

  if (method.requestStream && !method.responseStream)
    throw new Error(`${path}: client streams are not in the contract`);
  if (method.requestStream) {
    const stream = channel.makeBidiStreamRequest(path, encode, deserialize, metadata, callOptions);
    write(stream, input as AsyncIterable<unknown>, complete).catch((error) => stream.destroy(error));
    return read(stream, options.signal);
  }
  if (method.responseStream) {
    const request = complete(input);
    const stream = channel.makeServerStreamRequest(path, encode, deserialize, request, metadata, callOptions);
    return read(stream, options.signal);
  }
  return new Promise((resolve, reject) => {
    const request = complete(input);
    const unary = channel.makeUnaryRequest(
      path,
      encode,
      deserialize,
      request,
      metadata,
      callOptions,
      (error, response) => {
        done();
        if (error === null) resolve(response);
        else reject(statusOfCall(error));
      },
    );
    const done = cancelOn(options.signal, unary);
  });
}

// What cannot be sent is refused here: grpc-js's own error would quote it.
function soundToken(token: string): string {
  if (/^[\x20-\x7e]*$/.test(token)) return token;
  throw new StatusError("UNAUTHENTICATED", "TOKEN_INVALID", "The token holds characters that no token has.");
}

/** Cancels the call when the signal fires; the function returned stops listening. */
function cancelOn(signal: AbortSignal | undefined, stream: { cancel(): void }): () => void {
  const cancel = () => stream.cancel();
  if (signal?.aborted) cancel();
  signal?.addEventListener("abort", cancel, { once: true });
  return () => signal?.removeEventListener("abort", cancel);
}

async function write(
  stream: grpc.ClientDuplexStream<unknown, unknown>,
  items: AsyncIterable<unknown>,
  complete: (item: unknown) => unknown,
): Promise<void> {
  // The call can end while there is more to send: then nothing drains any more.
  const ended = new AbortController();
  stream.once("status", () => ended.abort());
  for await (const item of items) {
    if (ended.signal.aborted || stream.destroyed) return;
    if (stream.write(complete(item))) continue;
    await once(stream, "drain", { signal: ended.signal }).catch((error) => {
      if (!ended.signal.aborted) throw error;
    });
  }
  stream.end();
}

/** The call runs from now on, whenever its messages are taken; an end in failure that nobody watched for is kept. */
function read(stream: grpc.ClientReadableStream<unknown>, signal: AbortSignal | undefined): AsyncGenerator<unknown> {
  const done = cancelOn(signal, stream);
  let failure: unknown;
  stream.once("error", (error) => {
    failure = error;
  });
  stream.once("close", done);
  return take();

  async function* take(): AsyncGenerator<unknown> {
    try {
      yield* stream as AsyncIterable<unknown>;
      if (failure !== undefined) throw failure;
    } catch (error) {
      throw statusOfCall(error as grpc.ServiceError);
    } finally {
      done();
      stream.cancel();
    }
  }
}

function statusOfCall(error: grpc.ServiceError): unknown {
  if (error instanceof StatusError || error.metadata === undefined) return error;
  const [details] = error.metadata.get(detailsTrailer);
  if (Buffer.isBuffer(details)) return decodeStatus(error.code, error.details, details);
  // Not the other side's words but the connection's, which name inner addresses: for the log alone.
  const { code, reason } = decodeStatus(error.code, "", undefined);
  return new StatusError(code, reason, connectionFaults[code] ?? "The call to another service failed.", {
    cause: error,
  });
}
