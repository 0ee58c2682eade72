// The shape that every remote call has on both sides, inferred from the definitions that ts-proto generates: handlers and
// clients are `async (request, call) => response`, streams are async iterables. rpc-server.ts and rpc-client.ts put it on
// grpc-js. A `Call` is at once what a handler is told and what it hands to its own clients, so that request id, deadline,
// cancellation and the caller's token go along by passing it on.
import type { Caller } from "./callers.ts";
import type { Secret } from "./secret.ts";

/** A message type as ts-proto generates it. */
export interface MessageType {
  encode(message: never, writer?: never): { finish(): Uint8Array };
  decode(bytes: Uint8Array): unknown;
  fromPartial(partial: never): unknown;
}

/** A method as ts-proto generates it. */
export interface MethodDefinition {
  readonly name: string;
  readonly requestType: MessageType;
  readonly requestStream: boolean;
  readonly responseType: MessageType;
  readonly responseStream: boolean;
}

/** A service as ts-proto generates it with `outputServices=generic-definitions`. */
export interface ServiceDefinition {
  readonly fullName: string;
  readonly methods: Readonly<Record<string, MethodDefinition>>;
}

/** Names of a service's methods. */
export type MethodName<D extends ServiceDefinition> = keyof D["methods"] & string;

type Message<T> = T extends { decode(...args: never): infer M } ? M : never;
type Partially<T> = T extends { fromPartial(partial: infer P): unknown } ? P : never;
type Input<M extends MethodDefinition, T> = M["requestStream"] extends true ? AsyncIterable<T> : T;
type Output<M extends MethodDefinition, T> = M["responseStream"] extends true ? AsyncIterable<T> : Promise<T>;

/** What travels with a call. */
export interface CallOptions {
  /** When the caller stops waiting, in milliseconds since 1970. Every call has one. */
  readonly deadlineMs: number;
  readonly signal?: AbortSignal;
  readonly requestId?: string;
  /** A bearer token to send along. */
  readonly token?: string;
}

/** What a handler is told beside the request. */
export interface Call extends CallOptions {
  readonly signal: AbortSignal;
  readonly requestId: string;
  readonly caller: Caller;
}

/** The handlers of a service. */
export type Handlers<D extends ServiceDefinition> = {
  readonly [K in MethodName<D>]: (
    request: Input<D["methods"][K], Message<D["methods"][K]["requestType"]>>,
    call: Call,
  ) => Output<D["methods"][K], Message<D["methods"][K]["responseType"]>>;
};

/** A client of a service. */
export type Client<D extends ServiceDefinition> = {
  readonly [K in MethodName<D>]: (
    request: Input<D["methods"][K], Partially<D["methods"][K]["requestType"]>>,
    options: CallOptions,
  ) => Output<D["methods"][K], Message<D["methods"][K]["responseType"]>>;
};

/** PEM texts of a process's own certificate and of the authority that it trusts. */
export interface TlsIdentity {
  readonly ca: string;
  readonly certificate: string;
  readonly key: string | Secret;
  /** Peers are named `spiffe://<trust domain>/<service>` in their certificates. */
  readonly trustDomain: string;
}

/** The service named in a certificate's subject alternative names, `URI:spiffe://<trust domain>/<service>`. */
export function serviceOfCertificate(subjectAltName: string | undefined, trustDomain: string): string | undefined {
  const prefix = `URI:spiffe://${trustDomain}/`;
  const entry = subjectAltName?.split(", ").find((name) => name.startsWith(prefix));
  return entry?.slice(prefix.length);
}

/** The largest message either side takes: a body of 8 MiB with its head. */
export const maxMessageBytes = 9 * 1024 * 1024;
